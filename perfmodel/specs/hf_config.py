"""Read the `config.json` of a dense Llama-, Mistral- or Qwen-family model into a `ModelSpec`.

The rules are those of transformers: a missing field takes the default of the model type's
configuration class, and a null or a wrong type is refused where that class refuses it. A field that
changes the mathematics and is not modelled is refused by name, never ignored. `runtime.config`
follows the same rules; `tests/test_config_truth.py` checks both against transformers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from perfmodel.errors import ConfigError, fault_reason, printable, shown
from perfmodel.specs.model import ModelSpec

# Fields that change the mathematics and are not modelled, by what to use instead.
_REFUSED = {
    "use the unquantised config and set the weight dtype in the scenario":
        "quantization_config compression_config",
    "only dense MLPs are supported, not mixtures of experts":
        "num_experts num_local_experts n_routed_experts moe_intermediate_size",
    "only multi-head and grouped-query attention are supported, not latent attention":
        "kv_lora_rank q_lora_rank v_head_dim qk_head_dim qk_nope_head_dim qk_rope_head_dim",
    "only text models with their fields at the top level are supported":
        "text_config vision_config audio_config",
    "only attention, residuals and logits at their usual scale and without caps are supported":
        "attention_multiplier residual_multiplier embedding_multiplier scale_emb scale_depth "
        "logits_scaling logit_scale query_pre_attn_scalar attn_logit_softcapping "
        "final_logit_softcapping attn_temperature_tuning",
    "only the q, k and v biases that model_type qwen2 implies are supported":
        "attention_bias qkv_bias",
    "only the query and key norms that model_type qwen3 implies are supported":
        "use_qk_norm qk_layernorm",
    "only MLPs without bias are supported": "mlp_bias",
    "only rotary positions over the whole head and in every layer are supported":
        "alibi partial_rotary_factor no_rope_layers no_rope_layer_interval",
    "move it into rope_scaling or rope_parameters": "original_max_position_embeddings",
    "only full and sliding-window attention are supported":
        "attention_chunk_size clip_qkv dual_chunk_attention_config attention_sinks "
        "sliding_window_pattern interleaved_sliding_window index_topk attn_output_gate "
        "full_attention_interval",
    "only sequential, identical layers that each have a KV cache are supported":
        "use_parallel_residual num_kv_shared_layers block_configs per_layer_config "
        "num_nextn_predict_layers layers_block_type hybrid_override_pattern "
        "first_k_dense_replace pruned_heads",
    "only decoder-only models are supported": "is_encoder_decoder add_cross_attention",
}  # fmt: skip
REFUSED_FIELDS = {name: text for text, names in _REFUSED.items() for name in names.split()}
# Factors have no effect at 1, objects at null, and all other fields at null, false, 0 or empty.
NEUTRAL_AT_ONE = frozenset(
    ("residual_multiplier", "embedding_multiplier", "scale_emb", "logits_scaling", "logit_scale",
     "partial_rotary_factor")
)  # fmt: skip

Count = Annotated[int, Field(ge=1, le=10**9)]
Number = Annotated[float, Field(gt=0)]
Factor = Annotated[float, Field(ge=1, le=10**6)]
Theta = Annotated[float, Field(gt=1, lt=1e15)]
Layer = Literal["full_attention", "sliding_attention"]
RopeKind = Literal["default", "linear", "llama3", "yarn"]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]

_ABSENT: Any = None  # the default of a field that may be left out but not written as null


def _with_a_point(value: object) -> object:
    if not isinstance(value, float):
        raise ValueError("must be a number with a decimal point")
    return value


class Strict(BaseModel):
    """Fields without conversion of types."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False, frozen=True)


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


class _Decoder(Strict):
    """The fields that the four configuration classes share, with their defaults."""

    num_hidden_layers: Annotated[int, Field(ge=1, le=10_000)]
    hidden_size: Count
    num_attention_heads: Count
    intermediate_size: Count
    vocab_size: Count
    max_position_embeddings: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    tie_word_embeddings: bool = False
    is_causal: Literal[True] = True
    attention_bias: bool = False
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
    attention_dropout: float | None = 0.0
    initializer_range: Annotated[float, BeforeValidator(_with_a_point)] = 0.02
    use_cache: bool = True
    num_labels: int = 2
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
    attention_dropout: float = 0.0
    num_key_value_heads: Count = 8
    sliding_window: Count | None = 4096


class _Qwen2(_Decoder):
    attention_dropout: float = 0.0
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
    """Return the spec of the model that transformers would build from `config`.

    Raises `ConfigError` if a field is missing, malformed or not supported.

    Parameters
    ----------
    config : mapping
        The parsed `config.json`; its `model_type` is llama, mistral, qwen2 or qwen3.
    name : str
        The model's name in messages and reports.
    model_types : sequence of str, optional
        The model types that a message about another one lists.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{name}: a config must be an object of fields, not {shown(config)}")
    family = _family(config, name, ", ".join(model_types))
    check_names(config, name)
    check_refused(config, name)
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


def check_names(config: Mapping[str, Any], name: str) -> None:
    """Raise a `ConfigError` if a field has the name of an attribute of configuration classes."""
    for field in config:
        if field in ("attribute_map", "to_dict") or field.startswith("__"):
            raise ConfigError(f"{name}: {shown(field)} is not a field of a config; remove it")


def check_refused(config: Mapping[str, Any], name: str, read: Collection[str] = ()) -> None:
    """Raise a `ConfigError` if a refused field has an effect and is not among those `read`."""
    for field, instead in REFUSED_FIELDS.items():
        if field not in read and not has_no_effect(field, config.get(field)):
            raise ConfigError(f"{name}: {field}={shown(config[field])} is not supported; {instead}")


def _family(config: Mapping[str, Any], name: str, supported: str) -> type[_Decoder]:
    if "model_type" not in config:
        raise ConfigError(f"{name}: model_type is missing; use one of {supported}")
    model_type = config["model_type"]
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise ConfigError(
            f"{name}: model_type={shown(model_type)} is not supported; use one of {supported}"
        )
    family, architecture = _FAMILIES[model_type]
    stated = config.get("architectures")
    if stated is not None and stated != [architecture]:
        if isinstance(stated, list) and len(stated) == 1:
            stated = stated[0]
        raise ConfigError(
            f"{name}: architectures={shown(stated)} is not supported for model_type "
            f"{model_type}; use {architecture}"
        )
    return family


def has_no_effect(field: str, value: object) -> bool:
    """Whether a refused field with this value changes nothing."""
    if value is None or field.endswith("_config"):
        return value is None
    if field in NEUTRAL_AT_ONE:
        return value == 1 and not isinstance(value, bool)
    return value in (False, 0, {}, [])


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
    if (rope.beta_fast or 32) < (rope.beta_slow or 1):
        raise ConfigError(f"{name}: beta_fast must be at least beta_slow")
    return max(stated, int(rope.factor * (rope.original_max_position_embeddings or stated)))
