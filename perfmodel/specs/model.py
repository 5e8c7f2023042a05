"""`ModelSpec`: the dimensions of a decoder, its parameters and its bytes per rank."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from perfmodel._typing import Floats
from perfmodel.errors import ConfigError, either
from perfmodel.specs.dtypes import Scales, dtype_bytes
from perfmodel.specs.layers import Experts, LatentAttention, LinearAttention, LocalAttention


def checkpoint_variant(hub_id: str) -> str:
    """ "instruct" for the hub id of a checkpoint trained on instructions, otherwise "base"."""
    parts = re.split(r"[^a-z0-9]+", hub_id.lower().rpartition("/")[2])
    return "" if not hub_id else "instruct" if {"instruct", "it", "chat"} & {*parts} else "base"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One decoder, by default a dense one of the Llama, Mistral or Qwen family.

    `head_dim` is the width of one head, `ffn_hidden` that of the gated MLP, `max_context_tokens`
    the longest sequence that the model was trained for. `sliding_window_tokens` is the window of
    all layers, and None if attention reads the whole cache. `experts`, `latent`, `linear` and
    `local` describe the layers that differ, and are None if there are none. Source: the model's
    `config.json`.
    """

    name: str
    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    ffn_hidden: int
    vocab: int
    max_context_tokens: int
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window_tokens: int | None = None
    rope_theta: float = 10_000.0
    qkv_inputs: int = 1  # input width of the QKV projection over `hidden`; 2 in an EAGLE-3 head
    fusion_inputs: int = 0  # the same of a draft head's fusion projection; 0 without one
    family: str = ""  # model_type, if the runtime does not implement it
    norms_per_layer: int = 2  # of the width of the hidden state
    attention_gate: bool = False  # the query projection also has a gate for each output
    experts: Experts | None = None
    latent: LatentAttention | None = None
    linear: LinearAttention | None = None
    local: LocalAttention | None = None
    more_parameters: int = 0  # biases and norms that no other field counts; every rank stores them
    weight_dtype: str = ""  # storage types of the checkpoint; "" if not quantised
    expert_dtype: str = ""
    kv_dtype: str = ""
    part_dtypes: tuple[tuple[str, str], ...] = ()  # of `specs.dtypes.PARTS` that differ
    scale_bytes: Scales = ()
    cast_from: str = ""  # type of the checkpoint, if engines cast it to one with half the bits
    mtp_layers: int = 0  # multi-token-prediction layers that the checkpoint states
    tokenizer: str = ""  # models with the same tokenizer can draft for each other
    hub_id: str = ""
    checkpoint: str = ""  # the hub id, if it was named rather than the model
    source: str = ""

    def __post_init__(self) -> None:
        counts = "layers hidden query_heads kv_heads head_dim ffn_hidden vocab max_context_tokens"
        for field in counts.split():
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise ConfigError(f"{self.name}: {field}={value!r} must be a positive whole number")
        if self.query_heads % self.kv_heads:
            raise ConfigError(
                f"{self.name}: {self.query_heads} query heads do not divide evenly among "
                f"{self.kv_heads} KV heads; use a multiple"
            )

    @property
    def variant(self) -> str:
        """ "base" or "instruct"; "" unless a checkpoint was named."""
        return checkpoint_variant(self.checkpoint)

    @property
    def reference(self) -> str:
        """What a user gives to select this model: its catalog name, or the path of its config."""
        return self.name if self.hub_id or not self.source else self.source

    @property
    def parameters(self) -> int:
        """The number of parameters; a tied vocabulary matrix counts once."""
        return self.parameters_per_rank(1)

    def check_tp(self, tp: int) -> None:
        """Raise a `ConfigError` that lists the valid degrees if `splits_over(tp)` is false."""
        if not self.splits_over(tp):
            valid = [n for n in range(1, 65) if self.splits_over(n)]
            raise ConfigError(
                f"tp={tp} does not fit {self.name}: {self.query_heads} query heads, "
                f"{self.kv_heads} KV heads and an MLP of width {self.ffn_hidden} do not split "
                f"over {tp} ranks; use {either(map(str, valid))}"
            )

    def splits_over(self, tp: int) -> bool:
        """Whether the model can be sharded over `tp` ranks.

        `tp` must divide the query heads and the MLP, and divide the KV heads or be a multiple of
        them: KV heads are replicated if there are more ranks than heads. Experts must be divisible
        by `tp` in width or number.
        """
        if tp < 1 or self.query_heads % tp or (self.dense_layers and self.ffn_hidden % tp):
            return False
        if self.linear is not None and self.linear.key_heads % tp:
            return False
        if self.experts is not None and not any(
            self.experts.splits_over(tp, ep) for ep in range(1, tp + 1)
        ):
            return False
        return self.kv_heads % tp == 0 or tp % self.kv_heads == 0

    @property
    def dense_layers(self) -> int:
        """Layers with a dense MLP."""
        return self.layers - (self.experts.layers if self.experts else 0)

    @property
    def cached_layers(self) -> int:
        """Layers with a KV cache."""
        return self.layers - (self.linear.layers if self.linear else 0)

    @property
    def attention_layers(self) -> tuple[tuple[int, int | None], ...]:
        """(layers, window) of the layers with a KV cache; the window is None for full attention."""
        if self.local is None:
            return ((self.cached_layers, self.sliding_window_tokens),)
        full = self.cached_layers - self.local.layers
        windowed = (self.local.layers, self.local.window_tokens)
        return ((full, None), windowed) if full else (windowed,)

    def cached_tokens(self, length: Floats) -> Floats:
        """Tokens cached per sequence of `length` tokens, as a mean over layers with a KV cache."""
        tokens = [
            length if window is None else np.minimum(length, window)
            for _, window in self.attention_layers
        ]
        if len(tokens) == 1:
            return tokens[0]
        layers = [count for count, _ in self.attention_layers]
        return np.asarray(sum(n * t for n, t in zip(layers, tokens, strict=True)) / sum(layers))

    def query_heads_per_rank(self, tp: int) -> int:
        """Query heads on one rank."""
        return self.query_heads // tp

    def kv_heads_per_rank(self, tp: int) -> int:
        """KV heads on one rank, at least one."""
        return max(1, self.kv_heads // tp)

    def parameters_per_rank(self, tp: int) -> int:
        """Parameters stored by one rank: sharded layers, replicated norms, KV heads and latents."""
        mlp = self.dense_layers * (3 * self.hidden * self.ffn_hidden // tp)
        if self.experts is not None:
            mlp += self.experts.routed_parameters(self.hidden, tp)
            mlp += self.experts.other_parameters(self.hidden, tp)
        attention = self.cached_layers * self._attention_parameters(tp)
        if self.linear is not None:
            attention += self.linear.layers * self.linear.parameters(self.hidden, tp)
        norms = (self.norms_per_layer * self.layers + 1) * self.hidden + self.more_parameters
        vocabulary = self.padded_vocab_per_rank(tp) * self.hidden
        vocabulary *= 1 if self.tied_embeddings else 2
        fusion = self.fusion_inputs * self.hidden**2  # each rank stores all of it
        return attention + mlp + norms + vocabulary + fusion

    def _attention_parameters(self, tp: int) -> int:
        heads = self.query_heads_per_rank(tp)
        if self.latent is not None:
            return self.latent.parameters(self.hidden, heads)
        qkv = (heads + 2 * self.kv_heads_per_rank(tp)) * self.head_dim
        gate = heads * self.head_dim if self.attention_gate else 0
        linear = self.qkv_inputs * self.hidden * (qkv + gate) + heads * self.head_dim * self.hidden
        return linear + (2 * self.head_dim if self.qk_norm else 0) + (qkv if self.qkv_bias else 0)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token uses: of the routed experts, only `top_k`."""
        if self.experts is None:
            return self.parameters
        idle = self.experts.count - self.experts.top_k
        unused = self.experts.layers * idle * self.experts.parameters_of_one(self.hidden)
        return self.parameters - unused

    def padded_vocab_per_rank(self, tp: int) -> int:
        """Vocabulary rows on one rank, rounded up."""
        return -(-self.vocab // tp)

    def weight_bytes_per_rank(self, tp: int, weight_dtype: str = "bf16") -> float:
        """Bytes of the weights on one rank in the given storage type."""
        return self.parameters_per_rank(tp) * dtype_bytes(weight_dtype)

    def kv_bytes_per_token_per_rank(self, tp: int, kv_dtype: str = "bf16") -> float:
        """Bytes of the keys and values, or latents, of one cached token on one rank."""
        if self.latent is not None:
            return self.cached_layers * self.latent.width * dtype_bytes(kv_dtype)
        layers, width = self.cached_layers, self.head_dim
        return 2.0 * layers * self.kv_heads_per_rank(tp) * width * dtype_bytes(kv_dtype)

    def state_bytes_per_rank(self, tp: int) -> float:
        """Bytes per sequence on one rank that do not depend on its length."""
        return 0.0 if self.linear is None else self.linear.state_bytes(tp)
