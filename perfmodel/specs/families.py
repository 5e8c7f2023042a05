"""Read the `config.json` of the model families that only the cost model implements.

The rules are those of `hf_config`: a missing field takes the default of transformers' configuration
class, and a field that changes the mathematics and is not modelled is refused by name. Scaling
factors, caps, rotary variants and activations are read and ignored, because they change results but
not times. `tests/perfmodel/specs/test_families.py` compares the sizes with transformers' modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError

from perfmodel.errors import ConfigError, shown
from perfmodel.specs import hf_config
from perfmodel.specs.hf_config import Count, Factor, Strict
from perfmodel.specs.layers import Experts, LatentAttention, LinearAttention, LocalAttention
from perfmodel.specs.model import ModelSpec

Whole = Annotated[int, Field(ge=0, le=10_000)]
Size = Annotated[int, Field(ge=0, le=10**9)]
Layers = Annotated[int, Field(ge=1, le=10_000)]
Kind = Literal["full_attention", "sliding_attention", "chunked_attention", "linear_attention"]
_MISSING: Any = None  # the default of a field that may be left out but not written as null


class _Rope(Strict):
    """Rotary scaling, of which only the longest context matters here."""

    rope_type: Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope", "su"] = (
        _MISSING
    )
    type: Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope", "su"] = _MISSING
    factor: Factor | None = None
    original_max_position_embeddings: Count | None = None


class _Text(Strict):
    """A decoder with grouped-query attention and a gated MLP in every layer."""

    output_bias: ClassVar[bool] = True  # `attention_bias` also applies to the output projection
    norms: ClassVar[int] = 2
    head_norms: ClassVar[bool] = False  # of queries and keys

    num_hidden_layers: Layers
    hidden_size: Count
    num_attention_heads: Count
    intermediate_size: Count
    vocab_size: Count
    max_position_embeddings: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_act: Literal["silu", "gelu_pytorch_tanh"] = "silu"
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] = 1.0

    def spec(self, name: str) -> ModelSpec:
        """The model that these fields describe."""
        heads, kv_heads, width = self.num_attention_heads, self.kv_heads, self.width(name)
        bias = (heads + 2 * kv_heads) * width + (self.hidden_size if self.output_bias else 0)
        return ModelSpec(
            name=name,
            layers=self.num_hidden_layers,
            hidden=self.hidden_size,
            query_heads=heads,
            kv_heads=kv_heads,
            head_dim=width,
            ffn_hidden=self.intermediate_size,
            vocab=self.vocab_size,
            max_context_tokens=self.longest,
            tied_embeddings=self.tie_word_embeddings,
            qk_norm=self.head_norms,
            norms_per_layer=self.norms,
            more_parameters=self.num_hidden_layers * bias if self.attention_bias else 0,
            source="config.json",
        )

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
        return self.head_dim or hidden // heads

    @property
    def longest(self) -> int:
        """The longest context, stretched by linear or YaRN scaling."""
        rope, stated = self.rope_scaling or self.rope_parameters, self.max_position_embeddings
        if rope is None or (rope.rope_type or rope.type) not in ("linear", "yarn"):
            return stated
        original = rope.original_max_position_embeddings or stated
        return max(stated, int((rope.factor or 1.0) * original))

    def of_kind(self, name: str, kinds: list[Kind], *wanted: Kind) -> int:
        """How many of the layers are of the wanted kinds."""
        if len(kinds) != self.num_hidden_layers:
            raise ConfigError(
                f"{name}: layer_types is {shown(kinds)}; it must list "
                f"{self.num_hidden_layers} layers"
            )
        return sum(kind in wanted for kind in kinds)


class _Windowed(_Text):
    """Some layers, by default all, attend to a sliding window."""

    sliding_window: Count | None = None
    sliding_window_pattern: Layers = 1
    layer_types: list[Literal["full_attention", "sliding_attention"]] | None = None

    def kinds(self) -> list[Kind]:
        """The kind of each layer; every `sliding_window_pattern`-th layer is a full one."""
        if self.layer_types is not None:
            return list(self.layer_types)
        step = self.sliding_window_pattern
        return [
            "full_attention" if step > 1 and (i + 1) % step == 0 else "sliding_attention"
            for i in range(self.num_hidden_layers)
        ]

    def spec(self, name: str) -> ModelSpec:
        spec, window = super().spec(name), self.sliding_window
        layers = self.of_kind(name, self.kinds(), "sliding_attention")
        if layers and window is None and self.layer_types is not None:
            raise ConfigError(
                f"{name}: layer_types has sliding_attention, but there is no sliding_window; add it"
            )
        if window is None or not layers:
            return spec
        if layers == spec.layers:
            return replace(spec, sliding_window_tokens=window)
        return replace(spec, local=LocalAttention(layers=layers, window_tokens=window))


# ---- dense families -----------------------------------------------------------------------------


class _Phi3(_Windowed):
    original_max_position_embeddings: Count = 4096
    head_dim: None = None


class _Granite(_Text):
    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0


class _Olmo2(_Text):
    def spec(self, name: str) -> ModelSpec:
        """The norms of queries and keys span all of their heads."""
        spec = super().spec(name)
        norms = (spec.query_heads + spec.kv_heads) * spec.head_dim * spec.layers
        return replace(spec, more_parameters=spec.more_parameters + norms)


class _Olmo3(_Olmo2, _Windowed):
    sliding_window: Count | None = 4096
    sliding_window_pattern: Layers = 4


class _Cohere(_Text):
    """Attention and MLP run in parallel after one norm."""

    norms = 1
    tie_word_embeddings: bool = True
    logit_scale: float | None = 0.0625
    use_qk_norm: bool = False

    def spec(self, name: str) -> ModelSpec:
        """The norms of queries and keys have a weight for each of their heads."""
        spec = super().spec(name)
        norms = (spec.query_heads + spec.kv_heads) * spec.head_dim * spec.layers
        more = norms if self.use_qk_norm else 0
        return replace(spec, more_parameters=spec.more_parameters + more)


class _Cohere2(_Windowed):
    norms = 1
    tie_word_embeddings: bool = True
    logit_scale: float | None = 0.0625
    sliding_window: Count | None = 4096
    sliding_window_pattern: Layers = 4


class _SmolLM3(_Text):
    """Layers without rotary positions take the same time."""

    tie_word_embeddings: bool = True
    num_key_value_heads: Count | None = 4
    use_sliding_window: Literal[False] = False
    sliding_window: Count | None = None
    layer_types: list[Literal["full_attention"]] | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int = 4
    mlp_bias: Literal[False] = False


class _Gemma3(_Windowed):
    norms = 4
    head_norms = True
    num_attention_heads: Count = 8
    vocab_size: Count = 262_208
    max_position_embeddings: Count = 131_072
    num_key_value_heads: Count | None = 4
    head_dim: Count = 256
    hidden_activation: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    tie_word_embeddings: bool = True
    query_pre_attn_scalar: float | None = 256
    final_logit_softcapping: float | None = None
    attn_logit_softcapping: float | None = None
    sliding_window: Count | None = 4096
    sliding_window_pattern: Layers = 6
    use_bidirectional_attention: Literal[False] = False


class _Ministral(_Windowed):
    num_key_value_heads: Count = 8
    sliding_window: Count | None = 4096


# ---- mixtures of experts ------------------------------------------------------------------------


class _Mixtral(_Windowed):
    num_key_value_heads: Count | None = 8
    num_local_experts: Count = 8
    num_experts_per_tok: Count = 2

    def spec(self, name: str) -> ModelSpec:
        return _with_experts(
            super().spec(name),
            layers=self.num_hidden_layers,
            count=self.num_local_experts,
            top_k=self.num_experts_per_tok,
            width=self.intermediate_size,
        )


class _GptOss(_Windowed):
    """Every second layer has a window; queries, outputs, routers and experts have biases."""

    num_key_value_heads: Count | None = 8
    head_dim: Count | None = 64
    attention_bias: bool = True
    num_local_experts: Count = 128
    num_experts_per_tok: Count = 4
    experts_per_token: Count = 4
    sliding_window: Count | None = 128
    sliding_window_pattern: Layers = 2

    def spec(self, name: str) -> ModelSpec:
        spec = super().spec(name)
        sinks_and_routers = spec.layers * (spec.query_heads + self.num_local_experts)
        return _with_experts(
            replace(spec, more_parameters=spec.more_parameters + sinks_and_routers),
            layers=self.num_hidden_layers,
            count=self.num_local_experts,
            top_k=self.num_experts_per_tok,
            width=self.intermediate_size,
            bias=True,
        )


class _Sparse(_Text):
    """Qwen: every `decoder_sparse_step`-th layer is a mixture, unless it is listed as dense."""

    num_experts: Count
    num_experts_per_tok: Count
    moe_intermediate_size: Count
    decoder_sparse_step: Layers = 1
    mlp_only_layers: list[Whole] | None = None
    shared_expert_intermediate_size: Size = 0
    use_sliding_window: Literal[False] = False
    sliding_window: Count | None = None

    def spec(self, name: str) -> ModelSpec:
        dense = self.mlp_only_layers or []
        layers = sum(
            i not in dense and (i + 1) % self.decoder_sparse_step == 0
            for i in range(self.num_hidden_layers)
        )
        spec = _with_experts(
            super().spec(name),
            layers=layers,
            count=self.num_experts,
            top_k=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            shared_width=self.shared_expert_intermediate_size,
        )
        gates = layers * self.hidden_size if self.shared_expert_intermediate_size else 0
        return replace(spec, more_parameters=spec.more_parameters + gates)


class _Qwen2Moe(_Sparse):
    output_bias = False
    num_key_value_heads: Count = 16
    num_experts: Count = 60
    num_experts_per_tok: Count = 4
    moe_intermediate_size: Count = 1408
    shared_expert_intermediate_size: Size = 5632
    attention_bias: Literal[True] = True
    qkv_bias: Literal[True] = True


class _Qwen3Moe(_Sparse):
    head_norms = True
    num_key_value_heads: Count = 4
    num_experts: Count = 128
    num_experts_per_tok: Count = 8
    moe_intermediate_size: Count = 768


class _Qwen3Next(_Sparse):
    """Gated delta networks in most layers; the others have gated full attention."""

    head_norms = True
    num_key_value_heads: Count = 2
    head_dim: Count = 256
    num_experts: Count = 512
    num_experts_per_tok: Count = 10
    moe_intermediate_size: Count = 512
    shared_expert_intermediate_size: Size = 512
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] = 0.25
    full_attention_interval: Layers = 4
    layer_types: list[Literal["full_attention", "linear_attention"]] | None = None
    linear_conv_kernel_dim: Count = 4
    linear_key_head_dim: Count = 128
    linear_value_head_dim: Count = 128
    linear_num_key_heads: Count = 16
    linear_num_value_heads: Count = 32

    def spec(self, name: str) -> ModelSpec:
        step, spec = self.full_attention_interval, super().spec(name)
        kinds: list[Kind] = [
            "linear_attention" if (i + 1) % step else "full_attention" for i in range(spec.layers)
        ]
        layers = self.of_kind(name, list(self.layer_types or kinds), "linear_attention")
        if layers == spec.layers:
            raise ConfigError(f"{name}: layer_types has no full_attention; at least one is needed")
        linear = LinearAttention(
            layers=layers,
            key_heads=self.linear_num_key_heads,
            value_heads=self.linear_num_value_heads,
            key_dim=self.linear_key_head_dim,
            value_dim=self.linear_value_head_dim,
            conv_tokens=self.linear_conv_kernel_dim,
        )
        return replace(spec, linear=linear if layers else None, attention_gate=True)


class _Shared(_Text):
    """GLM and DeepSeek: the first layers are dense, and experts are also shared."""

    moe_intermediate_size: Count
    n_routed_experts: Count
    num_experts_per_tok: Count
    n_shared_experts: Whole | None = 1
    first_k_dense_replace: Whole = 1
    num_nextn_predict_layers: Whole = 1

    def spec(self, name: str) -> ModelSpec:
        return _with_experts(
            super().spec(name),
            layers=max(self.num_hidden_layers - self.first_k_dense_replace, 0),
            count=self.n_routed_experts,
            top_k=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            shared_width=(self.n_shared_experts or 0) * self.moe_intermediate_size,
        )


class _Glm4Moe(_Shared):
    output_bias = False
    num_key_value_heads: Count = 8
    moe_intermediate_size: Count = 1408
    n_routed_experts: Count = 128
    num_experts_per_tok: Count = 8
    use_qk_norm: bool = False
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] = 0.5

    def spec(self, name: str) -> ModelSpec:
        return replace(super().spec(name), qk_norm=self.use_qk_norm)


class _DeepSeek(_Shared):
    """Latent attention. Number and width of KV heads follow from the other fields."""

    moe_intermediate_size: Count = 2048
    n_routed_experts: Count = 256
    num_experts_per_tok: Count = 8
    first_k_dense_replace: Whole = 3
    moe_layer_freq: Literal[1] = 1
    kv_lora_rank: Count = 512
    q_lora_rank: Count | None = 1536
    qk_rope_head_dim: Count = 64
    qk_nope_head_dim: Count = 128
    v_head_dim: Count = 128
    attention_bias: Literal[False] = False

    @property
    def kv_heads(self) -> int:
        return self.num_attention_heads

    def width(self, name: str) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def spec(self, name: str) -> ModelSpec:
        latent = LatentAttention(
            kv_rank=self.kv_lora_rank,
            rope_dim=self.qk_rope_head_dim,
            nope_dim=self.qk_nope_head_dim,
            value_dim=self.v_head_dim,
            q_rank=self.q_lora_rank,
        )
        return replace(super().spec(name), latent=latent)


class _DeepSeekV2(_DeepSeek):
    moe_intermediate_size: Count = 1407
    n_routed_experts: Count = 64
    n_shared_experts: Whole | None = 2
    first_k_dense_replace: Whole = 0
    mlp_bias: Literal[False] = False


class _Llama4(_Text):
    """Experts in every `interleave_moe_layer_step`-th layer; most layers attend within chunks."""

    num_key_value_heads: Count | None = 8
    head_dim: Count | None = 128
    intermediate_size_mlp: Count = 16_384
    num_local_experts: Count = 16
    num_experts_per_tok: Count = 1
    moe_layers: list[Whole] | None = None
    interleave_moe_layer_step: Layers = 1
    use_qk_norm: bool = True
    attn_temperature_tuning: bool | int = True
    attention_chunk_size: Count | None = 8192
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: Layers = 4
    layer_types: list[Literal["full_attention", "chunked_attention"]] | None = None

    def kinds(self) -> list[Kind]:
        """The kind of each layer; layers without rotary positions attend to all tokens."""
        if self.layer_types is not None:
            return list(self.layer_types)
        step, layers = self.no_rope_layer_interval, self.num_hidden_layers
        rotary = self.no_rope_layers or [int((i + 1) % step != 0) for i in range(layers)]
        return ["chunked_attention" if on else "full_attention" for on in rotary]

    def spec(self, name: str) -> ModelSpec:
        step, spec = self.interleave_moe_layer_step, super().spec(name)
        moe_layers = len(range(step - 1, spec.layers, step))
        spec = _with_experts(
            replace(spec, ffn_hidden=self.intermediate_size_mlp),
            layers=moe_layers if self.moe_layers is None else len(set(self.moe_layers)),
            count=self.num_local_experts,
            top_k=self.num_experts_per_tok,
            width=self.intermediate_size,
            shared_width=self.intermediate_size,
        )
        chunked = self.of_kind(name, self.kinds(), "chunked_attention")
        if self.attention_chunk_size is None or not chunked:
            return spec
        local = LocalAttention(layers=chunked, window_tokens=self.attention_chunk_size)
        return replace(spec, local=local)


def _with_experts(spec: ModelSpec, *, layers: int, **experts: Any) -> ModelSpec:
    """The spec with experts in `layers` layers."""
    if experts["top_k"] > experts["count"]:
        raise ConfigError(
            f"{spec.name}: num_experts_per_tok={experts['top_k']} exceeds the "
            f"{experts['count']} experts of a layer; use at most that many"
        )
    if layers > spec.layers:
        raise ConfigError(f"{spec.name}: moe_layers lists more than {spec.layers} layers")
    return replace(spec, experts=Experts(layers=layers, **experts) if layers else None)


# ---- which family -------------------------------------------------------------------------------

_FAMILIES: dict[str, type[_Text]] = {
    "mixtral": _Mixtral,
    "qwen2_moe": _Qwen2Moe,
    "qwen3_moe": _Qwen3Moe,
    "qwen3_next": _Qwen3Next,
    "gpt_oss": _GptOss,
    "glm4_moe": _Glm4Moe,
    "deepseek_v2": _DeepSeekV2,
    "deepseek_v3": _DeepSeek,
    "kimi_k2": _DeepSeek,
    "llama4_text": _Llama4,
    "gemma3_text": _Gemma3,
    "ministral": _Ministral,
    "phi3": _Phi3,
    "granite": _Granite,
    "olmo2": _Olmo2,
    "olmo3": _Olmo3,
    "cohere": _Cohere,
    "cohere2": _Cohere2,
    "smollm3": _SmolLM3,
}
# Multimodal models, whose `text_config` describes the decoder, and the default type of the latter.
_WRAPPERS = {
    "gemma3": "gemma3_text",
    "kimi_k25": "deepseek_v3",
    "llama4": "llama4_text",
    "mistral3": "mistral",
}
MODEL_TYPES = (*hf_config.MODEL_TYPES, *_FAMILIES, *_WRAPPERS)
# Fields that some family reads; they are refused in the config of a family that does not.
_READ_SOMEWHERE = {field for family in _FAMILIES.values() for field in family.model_fields}


def model_spec(config: Mapping[str, Any], *, name: str) -> ModelSpec:
    """Return the spec of the model that transformers would build from any supported `config.json`.

    Of a multimodal model it is the spec of the text decoder. Errors and arguments are those of
    `hf_config.from_hf_config`.
    """
    model_type = config.get("model_type") if isinstance(config, Mapping) else None
    if isinstance(model_type, str) and model_type in _WRAPPERS:
        return _wrapped(config, model_type, name)
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        return hf_config.from_hf_config(config, name=name, model_types=MODEL_TYPES)
    family = _FAMILIES[model_type]
    hf_config.check_names(config, name)
    hf_config.check_refused(config, name, read=family.model_fields)
    for field in sorted(_READ_SOMEWHERE & config.keys() - family.model_fields.keys()):
        if not hf_config.has_no_effect(field, config[field]):
            raise ConfigError(
                f"{name}: {field}={shown(config[field])} is not supported for model_type "
                f"{model_type}; remove it if the model does not use it"
            )
    try:
        fields = family.model_validate(dict(config))
    except ValidationError as error:
        raise ConfigError(f"{name}: {hf_config.first_fault(error)}") from error
    return replace(fields.spec(name), family=model_type)


def _wrapped(config: Mapping[str, Any], model_type: str, name: str) -> ModelSpec:
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise ConfigError(
            f"{name}: text_config={shown(text)} is not supported; it must be the config of the "
            f"text decoder"
        )
    outer = {"quantization_config": config.get("quantization_config")}
    hf_config.check_refused({k: v for k, v in outer.items() if v is not None}, name, read=())
    fields = {"model_type": _WRAPPERS[model_type]} | dict(text)
    if fields["model_type"] in _WRAPPERS:
        raise ConfigError(f"{name}: text_config has model_type {model_type}, which has no decoder")
    return replace(model_spec(fields, name=name), family=model_type)
