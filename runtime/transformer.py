"""`Decoder`: one configuration-driven Llama-, Mistral- or Qwen-family decoder on one rank.

Column-parallel projections into heads and MLP, row-parallel projections out of them, each followed
by one all-reduce; the vocabulary is split over the ranks at both ends.
"""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from runtime.attention import AttentionPlan
from runtime.config import DecoderConfig
from runtime.distributed import Group
from runtime.layers import (
    DecoderWeights,
    LayerWeights,
    Rotary,
    embed,
    gated_mlp,
    rms_norm,
    rotate,
    vocabulary_logits,
)


class QueryObserver(Protocol):
    """Sees the rotated queries of every layer: what SnapKV selects by."""

    def record(self, layer: int, query: Tensor) -> None:
        """query (tokens, query heads of this rank, head_dim)."""
        ...


class Decoder:
    """A decoder over one rank's weights; it holds no cache and no state."""

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

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        plan: AttentionPlan,
        observer: QueryObserver | None = None,
    ) -> Tensor:
        """Hidden states before the final norm: tokens (T,), positions (T,) -> (T, hidden)."""
        hidden = embed(tokens, self.weights.embedding, self.group)
        angles = self.rotary.tables(positions)
        for index, layer in enumerate(self.weights.layers):
            hidden = hidden + self._attention(index, layer, hidden, angles, plan, observer)
            normed = rms_norm(hidden, layer.mlp_norm, self.config.norm_epsilon)
            hidden = hidden + gated_mlp(normed, layer, self.group)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits over the whole vocabulary, on every rank: (rows, hidden) -> (rows, vocab)."""
        normed = rms_norm(hidden, self.weights.norm, self.config.norm_epsilon)
        return vocabulary_logits(normed, self.weights.head, self.config.vocab, self.group)

    def _attention(
        self,
        index: int,
        layer: LayerWeights,
        hidden: Tensor,
        angles: tuple[Tensor, Tensor],
        plan: AttentionPlan,
        observer: QueryObserver | None,
    ) -> Tensor:
        epsilon = self.config.norm_epsilon
        normed = rms_norm(hidden, layer.input_norm, epsilon)
        projected = F.linear(normed, layer.qkv, layer.qkv_bias)
        heads = projected.view(len(hidden), -1, self.config.head_dim)
        query, key, value = heads.split([self.query_heads, self.kv_heads, self.kv_heads], dim=1)
        if layer.query_norm is not None and layer.key_norm is not None:
            query = rms_norm(query, layer.query_norm, epsilon)
            key = rms_norm(key, layer.key_norm, epsilon)
        if not plan.rotate_on_read:
            query, key = rotate(query, *angles), rotate(key, *angles)
        if observer is not None:
            observer.record(index, query)
        mixed = plan.run(index, query, key, value).flatten(1)
        return self.group.all_reduce(F.linear(mixed, layer.attention_out))
