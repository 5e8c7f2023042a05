"""Read the `config.json` of a dense Llama-, Mistral- or Qwen-family model into a `ModelSpec`.

The rules are those of transformers: a missing field takes the default of the model type's
configuration class, and a null or a wrong type is refused where that class refuses it. A field that
changes the mathematics and is not modelled is refused by name, never ignored. `runtime.config`
follows the same rules; `tests/test_config_truth.py` checks both against transformers.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from perfmodel.errors import ConfigError, fault_reason, printable, shown
from perfmodel.specs.checkpoint.config_fields import check_known, check_names, check_refused
from perfmodel.specs.model import ModelSpec

Count = Annotated[int, Field(ge=1, le=10**9)]
Layers = Annotated[int, Field(ge=1, le=10_000)]
Number = Annotated[float, Field(gt=0)]
Factor = Annotated[float, Field(ge=1, le=10**6)]
Share = Annotated[float, Field(ge=0, le=1)]
Theta = Annotated[float, Field(gt=1, lt=1e15)]
Layer = Literal["full_attention", "sliding_attention"]
RopeKind = Literal["default", "linear", "llama3", "yarn"]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]

MAX_LABELS = 10_000  # transformers makes a name for each
_ABSENT: Any = None  # the default of a field that may be left out but not written as null


def _with_a_point(value: object) -> object:
    if not isinstance(value, float):
        raise ValueError("must be a number with a decimal point")
    return value


def _flag(value: object) -> object:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


# Flags with a single supported value; a plain `Literal` also accepts the equal numbers 1 and 0.
On = Annotated[Literal[True], BeforeValidator(_flag)]
Off = Annotated[Literal[False], BeforeValidator(_flag)]


class Strict(BaseModel):
    """Fields without conversion of types."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True, defer_build=True)


class _Rope(Strict):
    """`rope_scaling` in transformers 4, `rope_parameters` in transformers 5."""

    model_config = ConfigDict(extra="forbid")
    rope_type: RopeKind = _ABSENT
    type: RopeKind = _ABSENT
    rope_theta: Theta = _ABSENT
    factor: Factor = _ABSENT
    original_max_position_embeddings: Count = _ABSENT
    low_freq_factor: Number = _ABSENT
    high_freq_factor: Number = _ABSENT
    attention_factor: Number | None = None
    beta_fast: Number | None = None
    beta_slow: Number | None = None
    mscale: Number | None = None
    mscale_all_dim: Number | None = None
    truncate: bool = True
    partial_rotary_factor: Annotated[float, Field(ge=1, le=1)] = 1.0
    finetuned: bool = True

    @property
    def kind(self) -> str:
        return self.rope_type or self.type or "default"


class _AutoMap(Strict):
    """Remote code; only its type matters, because the code is not run."""

    AutoConfig: str = _ABSENT


class Sizes(Strict):
    """The fields of every decoder with heads of one width."""

    num_hidden_layers: Layers
    hidden_size: Count
    num_attention_heads: Count
    intermediate_size: Count
    vocab_size: Count
    max_position_embeddings: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    is_causal: On = True


class _Decoder(Sizes):
    """The fields that the four configuration classes share, with their defaults."""

    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    mlp_bias: bool = False
    rope_theta: Theta = 10_000.0
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None
    sliding_window: Count | None = None
    layer_types: list[Layer] | None = None
    torch_dtype: Dtype | None = None
    dtype: Dtype | None = None
    eos_token_id: int | list[int] | None = None
    # These have no effect here, but transformers refuses wrong types.
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    attention_dropout: Share | None = 0.0
    initializer_range: Annotated[Share, BeforeValidator(_with_a_point)] = 0.02
    use_cache: bool = True
    auto_map: _AutoMap = _ABSENT
    num_labels: Annotated[int, Field(ge=0, le=MAX_LABELS)] = 2
    id2label: dict[Annotated[str, Field(pattern=r"^-?\d+$")], Any] | None = None

    @property
    def window(self) -> int | None:
        return self.sliding_window

    @property
    def first_window_layer(self) -> int:
        return 0


class _Llama(_Decoder):
    """Llama has no sliding window; a stated one is refused because engines disagree about it."""

    sliding_window: None = None
    pretraining_tp: int | None = 1


class _Mistral(_Decoder):
    attention_dropout: Share = 0.0
    num_key_value_heads: Count = 8
    sliding_window: Count | None = 4096


class _Qwen2(_Decoder):
    attention_dropout: Share = 0.0
    num_key_value_heads: Count | None = 32
    head_dim: Count = _ABSENT
    sliding_window: Count | None = 4096
    use_sliding_window: bool = False
    max_window_layers: Annotated[int, Field(ge=0, le=10_000)] = 28

    @property
    def window(self) -> int | None:
        return self.sliding_window if self.use_sliding_window else None

    @property
    def first_window_layer(self) -> int:
        return self.max_window_layers


class _Qwen3(_Qwen2):
    head_dim: Count = 128


_FAMILIES: dict[str, tuple[type[_Decoder], str]] = {
    "llama": (_Llama, "LlamaForCausalLM"),
    "mistral": (_Mistral, "MistralForCausalLM"),
    "qwen2": (_Qwen2, "Qwen2ForCausalLM"),
    "qwen3": (_Qwen3, "Qwen3ForCausalLM"),
}


MODEL_TYPES = tuple(_FAMILIES)


def from_hf_config(
    config: Mapping[str, Any], *, name: str, model_types: Sequence[str] = MODEL_TYPES
) -> ModelSpec:
    """Return the spec of the model that transformers would build from a parsed `config.json`.

    Raises `ConfigError` if a field is missing, malformed or not supported; a message about another
    model type lists `model_types`.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{name}: a config must be an object of fields, not {shown(config)}")
    family = _family(config, name, model_types)
    check_names(config, name)
    check_refused(config, name)
    check_known(config, name, config["model_type"], family.model_fields)
    try:
        fields = family.model_validate(dict(config))
    except ValidationError as error:
        raise ConfigError(f"{name}: {first_fault(error)}") from error
    query_heads = fields.num_attention_heads
    return ModelSpec(
        name=name,
        layers=fields.num_hidden_layers,
        hidden=fields.hidden_size,
        query_heads=query_heads,
        kv_heads=fields.num_key_value_heads or query_heads,
        head_dim=_head_dim(fields, name),
        ffn_hidden=fields.intermediate_size,
        vocab=fields.vocab_size,
        max_context_tokens=_max_context(fields, name),
        tied_embeddings=fields.tie_word_embeddings,
        qkv_bias=type(fields) is _Qwen2,
        qk_norm=type(fields) is _Qwen3,
        sliding_window_tokens=_window(fields, name),
        rope_theta=_rope(fields).rope_theta or fields.rope_theta,
        source="config.json",
    )


def _family(config: Mapping[str, Any], name: str, supported: Sequence[str]) -> type[_Decoder]:
    if "model_type" not in config:
        if "quantization" in config or "quant_method" in config:
            raise ConfigError(
                f"{name}: this states a quantisation, not a model; give the config.json beside it"
            )
        raise ConfigError(f"{name}: model_type is missing; use {_listed('', supported)}")
    model_type = config["model_type"]
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        listed = _listed(model_type, supported)
        raise ConfigError(f"{name}: model_type={shown(model_type)} is not supported; use {listed}")
    family, architecture = _FAMILIES[model_type]
    stated = config.get("architectures")
    if isinstance(stated, str):
        raise ConfigError(f"{name}: architectures={shown(stated)} must be a list of names")
    if stated is not None and stated != [architecture]:
        if isinstance(stated, list) and len(stated) == 1:
            stated = stated[0]
        raise ConfigError(
            f"{name}: architectures={shown(stated)} is not supported for model_type "
            f"{model_type}; use {architecture}"
        )
    return family


def _listed(model_type: object, supported: Sequence[str]) -> str:
    """The supported model types with the nearest names, or else the first makers of all."""
    near = get_close_matches(model_type, supported, 4, 0.5) if isinstance(model_type, str) else []
    if near or len(supported) <= len(_FAMILIES):
        return f"one of {', '.join(near or supported)}"
    makers = dict.fromkeys(re.split(r"[\d_]", one)[0] for one in supported)
    first = textwrap.shorten(", ".join(makers), 60, placeholder=" ...")
    return f"one of {first} (docs/results/architectures.md lists them)"


def first_fault(error: ValidationError) -> str:
    """The first fault, with the field's name and value."""
    fault = error.errors(include_url=False)[0]
    field = " ".join(part for part in fault["loc"][:2] if isinstance(part, str))
    if fault["type"] == "missing":
        return f"{field} is missing; check that this is the config.json of a model"
    text = f"{field}={shown(fault['input'])} is not supported; it {fault_reason(fault)}"
    return printable(text, limit=300)


def _head_dim(fields: _Decoder, name: str) -> int:
    hidden, heads = fields.hidden_size, fields.num_attention_heads
    if hidden % heads and (fields.head_dim is None or isinstance(fields, _Llama)):
        why = "state head_dim" if fields.head_dim is None else "transformers requires it for llama"
        raise ConfigError(
            f"{name}: hidden_size={hidden} is not a multiple of num_attention_heads={heads}; {why}"
        )
    head_dim = fields.head_dim or hidden // heads
    if head_dim % 2:
        raise ConfigError(f"{name}: head_dim={head_dim} is odd; rotary positions need an even one")
    return head_dim


def _window(fields: _Decoder, name: str) -> int | None:
    """The window of every layer, or None where attention reads the whole cache."""
    window, layers, kinds = fields.window, fields.num_hidden_layers, fields.layer_types
    if isinstance(fields, _Mistral) and "layer_types" in fields.model_fields_set:
        raise ConfigError(
            f"{name}: layer_types is not supported for model_type mistral (transformers reads "
            f"such a config as Ministral); leave it out"
        )
    if kinds is None:
        slides = window is not None and fields.first_window_layer < layers
        if slides and fields.first_window_layer:
            raise ConfigError(
                f"{name}: max_window_layers={fields.first_window_layer} mixes full and "
                f"sliding-window attention, which is not supported; use 0 (every layer slides) or "
                f"{layers} (every layer is full)"
            )
        return window if slides else None
    if len(kinds) != layers:
        raise ConfigError(f"{name}: layer_types is {shown(kinds)}; it must list {layers} layers")
    if len(set(kinds)) > 1:
        raise ConfigError(
            f"{name}: layer_types mixes full and sliding-window attention, which is not "
            f"supported; use one kind in every layer"
        )
    slides = kinds[0] == "sliding_attention"
    if slides and window is None:
        raise ConfigError(
            f"{name}: layer_types={kinds[0]} needs a window, and the other fields give none; "
            f"state sliding_window or use full_attention"
        )
    return window if slides else None


def _rope(fields: _Decoder) -> _Rope:
    """The rotary scaling that applies; transformers prefers `rope_scaling` to `rope_parameters`."""
    for rope in (fields.rope_scaling, fields.rope_parameters):
        if rope is not None and rope.model_fields_set:
            return rope
    return _Rope()


def _max_context(fields: _Decoder, name: str) -> int:
    """The stated context length, or the original one stretched by linear or YaRN scaling.

    Without an original length the stated one is stretched, as in vLLM.
    """
    rope, stated = _rope(fields), fields.max_position_embeddings
    if rope.kind == "default":
        return stated
    needed = ("factor", "low_freq_factor", "high_freq_factor")
    for field in needed if rope.kind == "llama3" else needed[:1]:
        if getattr(rope, field) is None:
            raise ConfigError(f"{name}: {field} is missing; rope type {rope.kind} needs it")
    if rope.kind == "llama3":
        if rope.low_freq_factor >= rope.high_freq_factor:
            raise ConfigError(f"{name}: low_freq_factor must be below high_freq_factor")
        return stated
    if rope.kind == "yarn" and (rope.beta_fast or 32) < (rope.beta_slow or 1):
        raise ConfigError(f"{name}: beta_fast must be at least beta_slow")
    return max(stated, int(rope.factor * (rope.original_max_position_embeddings or stated)))
