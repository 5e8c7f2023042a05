"""Families with experts, of which some have latent, linear or chunked attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from perfmodel.errors import ConfigError
from perfmodel.specs.checkpoint.hf_config import Count, Layers, Off, On
from perfmodel.specs.families.base import Kind, Size, Text, Whole, Windowed
from perfmodel.specs.families.dense import Granite, Olmo2
from perfmodel.specs.layers import Experts, LatentAttention, LinearAttention, LocalAttention
from perfmodel.specs.model import ModelSpec


class EveryLayer(Text):
    """All layers are mixtures of experts as wide as `intermediate_size`."""

    count: ClassVar[str] = "num_local_experts"  # the field with the number of experts
    expert_bias: ClassVar[bool] = False
    num_experts_per_tok: Count = 2

    def spec(self, name: str) -> ModelSpec:
        return _with_experts(
            super().spec(name),
            layers=self.num_hidden_layers,
            count=getattr(self, self.count),
            top_k=self.num_experts_per_tok,
            width=self.intermediate_size,
            shared_width=getattr(self, "shared_intermediate_size", 0),
            bias=self.expert_bias,
        )


class Mixtral(EveryLayer, Windowed):
    aliases = (("num_experts", "num_local_experts"),)
    num_key_value_heads: Count | None = 8
    lists_layers = False
    attention_bias: Off = False
    num_local_experts: Count = 8


class Phimoe(EveryLayer, Windowed):
    """Norms and the LM head have biases."""

    ignored = f"{Text.ignored} input_jitter_noise"
    original_max_position_embeddings: Count | None = None
    num_key_value_heads: Count = 8
    lists_layers = False
    lm_head_bias: bool = False
    num_local_experts: Count = 16

    def spec(self, name: str) -> ModelSpec:
        spec = super().spec(name)
        norms = (spec.norms_per_layer * spec.layers + 1) * spec.hidden
        head = spec.vocab if self.lm_head_bias else 0
        return replace(spec, more_parameters=spec.more_parameters + norms + head)


class GraniteMoe(EveryLayer, Granite):
    num_local_experts: Count = 8


class GraniteMoeShared(GraniteMoe):
    shared_intermediate_size: Size = 0


class Olmoe(EveryLayer, Olmo2):
    ignored = f"{Text.ignored} norm_topk_prob"
    count = "num_experts"
    aliases = (("num_local_experts", "num_experts"),)
    clip_qkv: float | None = None
    num_experts: Count = 64
    num_experts_per_tok: Count = 8


class GptOss(EveryLayer, Windowed):
    """Every second layer has a window; queries, outputs, routers and experts have biases."""

    ignored = f"{Text.ignored} swiglu_alpha swiglu_limit initial_context_length"
    aliases = Mixtral.aliases
    expert_bias = True
    num_key_value_heads: Count | None = 8
    head_dim: Count | None = 64
    attention_bias: bool = True
    num_local_experts: Count = 128
    num_experts_per_tok: Count = 4
    experts_per_token: Count = 4
    pattern = 2
    sliding_window: Count | None = 128

    def spec(self, name: str) -> ModelSpec:
        spec = super().spec(name)
        sinks_and_routers = spec.layers * (spec.query_heads + self.num_local_experts)
        return replace(spec, more_parameters=spec.more_parameters + sinks_and_routers)


class Sparse(Text):
    """Qwen: every `decoder_sparse_step`-th layer is a mixture, unless it is listed as dense."""

    ignored = f"{Text.ignored} norm_topk_prob max_window_layers"
    num_experts: Count
    num_experts_per_tok: Count
    moe_intermediate_size: Count
    decoder_sparse_step: Layers = 1
    mlp_only_layers: list[Whole] | None = None
    shared_expert_intermediate_size: Size = 0
    use_sliding_window: Off = False
    sliding_window: Size | None = None

    def spec(self, name: str) -> ModelSpec:
        dense = self.layer_numbers(name, "mlp_only_layers")
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


class Qwen2Moe(Sparse):
    output_bias = False
    layer_types: list[Literal["full_attention"]] | None = None
    num_key_value_heads: Count = 16
    num_experts: Count = 60
    num_experts_per_tok: Count = 4
    moe_intermediate_size: Count = 1408
    shared_expert_intermediate_size: Size = 5632
    attention_bias: On = True
    qkv_bias: On = True


class Qwen3Moe(Sparse):
    aliases = (("num_local_experts", "num_experts"),)
    shared_expert_intermediate_size: Literal[0] = 0
    head_norms = True
    num_key_value_heads: Count = 4
    num_experts: Count = 128
    num_experts_per_tok: Count = 8
    moe_intermediate_size: Count = 768


class Qwen3Next(Sparse):
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

    def kinds(self) -> list[Kind]:
        """The kind of each layer."""
        step = self.full_attention_interval
        return list(self.layer_types or []) or [
            "linear_attention" if (i + 1) % step else "full_attention"
            for i in range(self.num_hidden_layers)
        ]

    def bias_of_layers(self, name: str) -> int:
        """Those of full attention, whose query projection also has an output gate."""
        outputs = 2 * (self.num_attention_heads + self.kv_heads) * self.width(name)
        full = self.of_kind(name, self.kinds(), "full_attention")
        return full * (outputs + self.hidden_size) if self.attention_bias else 0

    def spec(self, name: str) -> ModelSpec:
        spec = super().spec(name)
        layers = self.of_kind(name, self.kinds(), "linear_attention")
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


class Shared(Text):
    """GLM and DeepSeek: the first layers are dense, and experts are also shared."""

    ignored = (
        f"{Text.ignored} topk_method norm_topk_prob routed_scaling_factor scoring_func ep_size"
    )
    aliases: ClassVar[tuple[tuple[str, str], ...]] = (
        ("num_local_experts", "n_routed_experts"),
        ("num_mtp_layers", "num_nextn_predict_layers"),
    )
    moe_intermediate_size: Count
    n_routed_experts: Count
    num_experts_per_tok: Count
    n_shared_experts: Whole | None = 1
    first_k_dense_replace: Whole = 1
    num_nextn_predict_layers: Whole = 1
    n_group: Whole | None = None
    topk_group: Whole | None = None

    def spec(self, name: str) -> ModelSpec:
        self._check_groups(name)
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ConfigError(
                f"{name}: first_k_dense_replace={self.first_k_dense_replace} exceeds the "
                f"{self.num_hidden_layers} layers; use at most that many"
            )
        states_mtp = "num_nextn_predict_layers" in self.model_fields_set
        return _with_experts(
            replace(
                super().spec(name), mtp_layers=self.num_nextn_predict_layers if states_mtp else 0
            ),
            layers=self.num_hidden_layers - self.first_k_dense_replace,
            count=self.n_routed_experts,
            top_k=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            shared_width=(self.n_shared_experts or 0) * self.moe_intermediate_size,
        )

    def _check_groups(self, name: str) -> None:
        """Refuse groups of experts that routers cannot form; they change no time here."""
        groups, chosen = self.n_group or 1, self.topk_group or 1
        if self.n_routed_experts % groups:
            raise ConfigError(
                f"{name}: {self.n_routed_experts} experts do not divide evenly among n_group="
                f"{groups} groups; use a divisor"
            )
        if chosen > groups and self.n_group:
            raise ConfigError(
                f"{name}: topk_group={chosen} exceeds n_group={groups}; use at most that many"
            )


class Glm4Moe(Shared):
    output_bias = False
    num_key_value_heads: Count = 8
    moe_intermediate_size: Count = 1408
    n_routed_experts: Count = 128
    num_experts_per_tok: Count = 8
    use_qk_norm: bool = False
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] = 0.5

    def spec(self, name: str) -> ModelSpec:
        return replace(super().spec(name), qk_norm=self.use_qk_norm)


class DeepSeek(Shared):
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
    qk_head_dim: Count | None = None  # the sum of these two
    v_head_dim: Count = 128
    attention_bias: Off = False

    @property
    def kv_heads(self) -> int:
        return self.num_attention_heads

    def width(self, name: str) -> int:
        width = self.qk_nope_head_dim + self.qk_rope_head_dim
        if self.qk_head_dim not in (None, width):
            raise ConfigError(
                f"{name}: qk_head_dim={self.qk_head_dim} is not the sum of qk_nope_head_dim="
                f"{self.qk_nope_head_dim} and qk_rope_head_dim={self.qk_rope_head_dim}; remove it"
            )
        return width

    def spec(self, name: str) -> ModelSpec:
        latent = LatentAttention(
            kv_rank=self.kv_lora_rank,
            rope_dim=self.qk_rope_head_dim,
            nope_dim=self.qk_nope_head_dim,
            value_dim=self.v_head_dim,
            q_rank=self.q_lora_rank,
        )
        return replace(super().spec(name), latent=latent)


class DeepSeekV2(DeepSeek):
    aliases = (("num_experts", "n_routed_experts"),)
    moe_intermediate_size: Count = 1407
    n_routed_experts: Count = 64
    n_shared_experts: Whole | None = 2
    first_k_dense_replace: Whole = 0
    mlp_bias: Off = False


class Llama4(Text):
    """Experts in every `interleave_moe_layer_step`-th layer; most layers attend within chunks."""

    ignored = f"{Text.ignored} floor_scale attn_scale"
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
            layers=moe_layers
            if self.moe_layers is None
            else len(self.layer_numbers(name, "moe_layers")),
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
    return replace(spec, experts=Experts(layers=layers, **experts) if layers else None)
