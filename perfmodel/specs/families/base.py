"""`Text` and `Windowed`: the fields that decoders of all families share."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from perfmodel.errors import ConfigError, shown
from perfmodel.specs.checkpoint.hf_config import Count, Factor, Sizes, Strict
from perfmodel.specs.layers import LocalAttention
from perfmodel.specs.model import ModelSpec

Whole = Annotated[int, Field(ge=0, le=10_000)]
Size = Annotated[int, Field(ge=0, le=10**9)]
Kind = Literal["full_attention", "sliding_attention", "chunked_attention", "linear_attention"]
_MISSING: Any = None  # the default of a field that may be left out but not written as null


class Rope(Strict):
    """Rotary scaling, of which only the longest context matters here."""

    rope_type: Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope", "su"] = (
        _MISSING
    )
    type: Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope", "su"] = _MISSING
    factor: Factor | None = None
    original_max_position_embeddings: Count | None = None


class Axes(Rope):
    """Rotary positions with three axes, of models that read images."""

    rope_type: Literal["default", "mrope", "linear", "dynamic", "yarn"] = "default"  # type: ignore[assignment]
    type: Literal["default", "mrope", "linear", "dynamic", "yarn"] = "default"  # type: ignore[assignment]


class Text(Sizes):
    """A decoder with grouped-query attention and a gated MLP in every layer."""

    # Fields that change results but neither sizes nor times, and other spellings of fields.
    ignored: ClassVar[str] = "rms_norm_eps layer_norm_eps rope_theta rope_interleave"
    aliases: ClassVar[tuple[tuple[str, str], ...]] = ()
    output_bias: ClassVar[bool] = True  # `attention_bias` also applies to the output projection
    norms: ClassVar[int] = 2
    head_norms: ClassVar[bool] = False  # of queries and keys

    hidden_act: Literal["silu", "gelu_pytorch_tanh"] = "silu"
    rope_scaling: Rope | None = None
    rope_parameters: Rope | None = None
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] = 1.0

    def spec(self, name: str) -> ModelSpec:
        """The model that these fields describe."""
        if (listed := getattr(self, "layer_types", None)) is not None:
            self.of_kind(name, listed)  # transformers refuses another length, read or not
        return ModelSpec(
            name=name,
            layers=self.num_hidden_layers,
            hidden=self.hidden_size,
            query_heads=self.num_attention_heads,
            kv_heads=self.kv_heads,
            head_dim=self.width(name),
            ffn_hidden=self.intermediate_size,
            vocab=self.vocab_size,
            max_context_tokens=self.longest,
            tied_embeddings=self.tie_word_embeddings,
            qk_norm=self.head_norms,
            norms_per_layer=self.norms,
            more_parameters=self.bias_of_layers(name),
            source="config.json",
        )

    def bias_of_layers(self, name: str) -> int:
        """Biases of the attention of all layers."""
        heads = self.num_attention_heads + 2 * self.kv_heads
        bias = heads * self.width(name) + (self.hidden_size if self.output_bias else 0)
        return self.num_hidden_layers * bias if self.attention_bias else 0

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    def width(self, name: str) -> int:
        """The width of a head."""
        hidden, heads = self.hidden_size, self.num_attention_heads
        if self.head_dim is None and hidden % heads:
            raise ConfigError(
                f"{name}: hidden_size={hidden} is not a multiple of num_attention_heads={heads}; "
                f"state head_dim"
            )
        width = self.head_dim or hidden // heads
        if width % 2:
            raise ConfigError(f"{name}: head_dim={width} is odd; rotary positions need an even one")
        return width

    @property
    def longest(self) -> int:
        """The longest context, stretched by linear or YaRN scaling."""
        rope, stated = self.rope_scaling or self.rope_parameters, self.max_position_embeddings
        if rope is None or (rope.rope_type or rope.type) not in ("linear", "yarn"):
            return stated
        original = rope.original_max_position_embeddings or stated
        return max(stated, int((rope.factor or 1.0) * original))

    def of_kind(self, name: str, kinds: list[Kind], *wanted: Kind) -> int:
        """Number of layers of the given kinds."""
        if len(kinds) != self.num_hidden_layers:
            raise ConfigError(
                f"{name}: layer_types is {shown(kinds)}; it must list "
                f"{self.num_hidden_layers} layers"
            )
        return sum(kind in wanted for kind in kinds)

    def layer_numbers(self, name: str, field: str) -> set[int]:
        """The layers that a field lists, from 0; one that the model does not have is refused."""
        numbers = getattr(self, field) or []
        if wrong := [i for i in numbers if i >= self.num_hidden_layers]:
            raise ConfigError(
                f"{name}: {field} lists layer {wrong[0]}, but the last of {self.num_hidden_layers} "
                f"layers is {self.num_hidden_layers - 1}; remove it"
            )
        return set(numbers)


class Windowed(Text):
    """Some layers, by default all, attend to a sliding window."""

    pattern: ClassVar[int | None] = None  # every n-th layer attends to all tokens; None: no layer
    lists_layers: ClassVar[bool] = True  # whether transformers reads `layer_types`

    sliding_window: Count | None = None
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None

    def kinds(self) -> list[Kind]:
        """The kind of each layer."""
        step = getattr(self, "sliding_window_pattern", self.pattern)
        if self.layer_types is None or not self.lists_layers:
            return _by_pattern(step, self.num_hidden_layers)
        return list(self.layer_types)

    def spec(self, name: str) -> ModelSpec:
        spec, window = super().spec(name), self.sliding_window
        self._check_pattern(name)
        layers = self.of_kind(name, self.kinds(), "sliding_attention")
        if layers and window is None and self.layer_types is not None and self.lists_layers:
            raise ConfigError(
                f"{name}: layer_types has sliding_attention, but there is no sliding_window; add it"
            )
        if window is None or not layers:
            return spec
        if layers == spec.layers:
            return replace(spec, sliding_window_tokens=window)
        return replace(spec, local=LocalAttention(layers=layers, window_tokens=window))

    def _check_pattern(self, name: str) -> None:
        """Refuse a stated pattern that contradicts the list of layers."""
        field = "sliding_window_pattern"
        if field not in self.model_fields_set or None in (self.layer_types, self.sliding_window):
            return
        step = getattr(self, field)
        if self.kinds() != _by_pattern(step, self.num_hidden_layers):
            raise ConfigError(f"{name}: {field}={step} contradicts layer_types; remove one of them")


def _by_pattern(step: int | None, layers: int) -> list[Kind]:
    """Every `step`-th layer attends to all tokens; without a step, none does."""
    return [
        "full_attention" if step and (i + 1) % step == 0 else "sliding_attention"
        for i in range(layers)
    ]
