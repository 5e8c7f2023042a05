"""`ModelSpec`: the dimensions of a dense decoder, its parameters and its bytes per rank."""

from __future__ import annotations

from dataclasses import dataclass

from perfmodel.errors import ConfigError, either
from perfmodel.specs.dtypes import DTYPE_BYTES as DTYPE_BYTES
from perfmodel.specs.dtypes import dtype_bytes as dtype_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One dense Llama-, Mistral- or Qwen-family decoder.

    `head_dim` is the width of one head, `ffn_hidden` that of the gated MLP, `max_context_tokens`
    the longest sequence that the model was trained for. `sliding_window_tokens` is None if
    attention reads the whole cache. Source: the model's `config.json`.
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
    tokenizer: str = ""  # models with the same tokenizer can draft for each other
    hub_id: str = ""
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
        them: KV heads are replicated if there are more ranks than heads.
        """
        heads = tp >= 1 and self.query_heads % tp == 0 and self.ffn_hidden % tp == 0
        return heads and (self.kv_heads % tp == 0 or tp % self.kv_heads == 0)

    def query_heads_per_rank(self, tp: int) -> int:
        """Query heads on one rank."""
        return self.query_heads // tp

    def kv_heads_per_rank(self, tp: int) -> int:
        """KV heads on one rank, at least one."""
        return max(1, self.kv_heads // tp)

    def parameters_per_rank(self, tp: int) -> int:
        """Parameters stored by one rank: sharded layers, replicated norms and KV heads."""
        heads = self.query_heads_per_rank(tp)
        qkv = (heads + 2 * self.kv_heads_per_rank(tp)) * self.head_dim
        linear = self.qkv_inputs * self.hidden * qkv + heads * self.head_dim * self.hidden
        linear += 3 * self.hidden * self.ffn_hidden // tp
        small = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        small += qkv if self.qkv_bias else 0
        vocabulary = self.padded_vocab_per_rank(tp) * self.hidden
        vocabulary *= 1 if self.tied_embeddings else 2
        fusion = self.fusion_inputs * self.hidden**2  # each rank stores all of it
        return self.layers * (linear + small) + vocabulary + self.hidden + fusion

    def padded_vocab_per_rank(self, tp: int) -> int:
        """Vocabulary rows on one rank, rounded up."""
        return -(-self.vocab // tp)

    def weight_bytes_per_rank(self, tp: int, weight_dtype: str = "bf16") -> float:
        """Bytes of the weights on one rank in the given storage type."""
        return self.parameters_per_rank(tp) * dtype_bytes(weight_dtype)

    def kv_bytes_per_token_per_rank(self, tp: int, kv_dtype: str = "bf16") -> float:
        """Bytes of the keys and values of one cached token on one rank."""
        return (
            2.0 * self.layers * self.kv_heads_per_rank(tp) * self.head_dim * dtype_bytes(kv_dtype)
        )
