"""`Decoder`: a tensor-parallel Llama-, Mistral- or Qwen-family decoder on one rank.

Projections into heads and MLP are column-parallel; those out of them are row-parallel and followed
by an all-reduce. Embedding and head are split along the vocabulary.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from runtime.attention.base import AttentionPlan
from runtime.config import DecoderConfig
from runtime.kernels.ops import ops_for
from runtime.kernels.rotary import Rotary
from runtime.model.layers import DecoderWeights, LayerWeights
from runtime.parallel.groups import Group


class QueryObserver(Protocol):
    """Receives the rotated queries of every layer, which SnapKV needs."""

    def record(self, layer: int, query: Tensor) -> None:
        """Receive query (tokens, query heads of this rank, head_dim)."""


class Decoder:
    """A decoder over one rank's weights, without cache or other state."""

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, group: Group) -> None:
        config.check_tp(group.size)
        self.config = config
        self.weights = weights
        self.group = group
        self.query_heads = config.query_heads_on(group.size)
        self.kv_heads = config.kv_heads_on(group.size)
        table = weights.embedding
        self.device, self.dtype = table.device, table.dtype
        self.rotary = Rotary(config, table.device, table.dtype)
        self.ops = ops_for(table.dtype, table.device, group, config.hidden)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        plan: AttentionPlan,
        observer: QueryObserver | None = None,
    ) -> Tensor:
        """Hidden states after the last norm: tokens (T,), positions (T,) -> (T, hidden)."""
        epsilon = self.config.norm_epsilon
        layers, norm = self.weights.layers, self.weights.norm
        embedded = self.ops.embed(tokens, self.weights.embedding)
        normed, hidden = self.ops.sum_add_norm(embedded, None, layers[0].input_norm, epsilon)
        for index, layer in enumerate(layers):
            mixed = self._attention(index, layer, normed, positions, plan, observer)
            normed, hidden = self.ops.sum_add_norm(mixed, hidden, layer.mlp_norm, epsilon)
            fed = self._mlp(layer, normed)
            after = layers[index + 1].input_norm if index + 1 < len(layers) else norm
            normed, hidden = self.ops.sum_add_norm(fed, hidden, after, epsilon)
        return normed

    def logits(self, normed: Tensor) -> Tensor:
        """Logits over the whole vocabulary, on every rank: (rows, hidden) -> (rows, vocab)."""
        return self.group.gather_columns(self._head(normed))[..., : self.config.vocab]

    def best(self, normed: Tensor) -> Tensor:
        """The most likely token of each row, on every rank: (rows, hidden) -> (rows,)."""
        return self.ops.best(self._head(normed), self.config.vocab)

    def _attention(
        self,
        index: int,
        layer: LayerWeights,
        normed: Tensor,
        positions: Tensor,
        plan: AttentionPlan,
        observer: QueryObserver | None,
    ) -> Tensor:
        norms = None
        if layer.query_norm is not None and layer.key_norm is not None:
            norms = layer.query_norm, layer.key_norm
        query = self.ops.place(
            self.ops.linear(normed, layer.qkv, layer.qkv_bias),
            self.query_heads,
            norms,
            self.config.norm_epsilon,
            self.rotary,
            positions=positions,
            slots=plan.write_slots,
            cache=plan.cache.slots(index),
        )
        if observer is not None:
            observer.record(index, query)
        mixed = plan.attend(index, query).flatten(1)
        return self.ops.partial(mixed, layer.attention_out)

    def _mlp(self, layer: LayerWeights, normed: Tensor) -> Tensor:
        active = self.ops.silu_mul(self.ops.linear(normed, layer.gate_up))
        return self.ops.partial(active, layer.down)

    def _head(self, normed: Tensor) -> Tensor:
        """Logits of this rank's part of the vocabulary."""
        product = self.ops.linear(normed, self.weights.head)
        if product.dim() == 2:
            return product
        return product[0] if len(product) == 1 else product.sum(0).to(self.dtype)
