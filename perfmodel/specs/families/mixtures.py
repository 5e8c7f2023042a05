"""Families with experts in every layer or in some of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator

from perfmodel.errors import ConfigError, shown
from perfmodel.specs.checkpoint.hf_config import Count, Layers, Off, On
from perfmodel.specs.families.base import Kind, Size, Text, Whole, Windowed
from perfmodel.specs.families.dense import Granite, HunyuanDense, Olmo2
from perfmodel.specs.layers import Experts, LocalAttention
from perfmodel.specs.model import ModelSpec


class EveryLayer(Text):
    """All layers are mixtures of experts as wide as `intermediate_size`."""

    count: ClassVar[str] = "num_local_experts"  # the field with the number of experts
    expert_bias: ClassVar[bool] = False
    num_experts_per_tok: Count = 2

    def spec(self, name: str) -> ModelSpec:
        return with_experts(
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


class MiniMaxM2(EveryLayer, Olmo2):
    """The multi-token-prediction modules that its fields count are not part of the checkpoint."""

    ignored = (
        f"{Text.ignored} rotary_dim scoring_func shared_moe_mode use_routing_bias use_mtp "
        "num_mtp_modules mtp_transformer_layers mlp_intermediate_size "
        "layernorm_full_attention_beta layernorm_linear_attention_beta layernorm_mlp_beta"
    )
    aliases = Mixtral.aliases
    num_key_value_heads: Count = 8
    head_dim: Count = 128
    attention_bias: Off = False
    num_local_experts: Count = 256
    num_experts_per_tok: Count = 8
    attn_type_list: list[Literal[1]] | None = None  # 0 is linear attention
    use_qk_norm: On = True
    qk_norm_type: Literal["per_layer"] = "per_layer"
    shared_intermediate_size: Literal[0] = 0
    sliding_window: None = None


def same(value: object) -> object:
    """A list with one value for all layers, as that value."""
    is_uniform = isinstance(value, list) and value and all(one == value[0] for one in value)
    return value[0] if isinstance(value, list) and is_uniform else value


class HunyuanMoe(EveryLayer):
    """One shared expert as wide as the routed ones. Fields may be lists, one value per layer."""

    ignored = (
        f"{HunyuanDense.ignored} capacity_factor moe_drop_tokens use_mixed_mlp_moe "
        "moe_random_routing_dropped_token group_limited_greedy norm_topk_prob "
        "routed_scaling_factor"
    )
    head_norms = True
    count = "num_experts"
    aliases = (
        ("moe_topk", "num_experts_per_tok"),
        ("num_local_experts", "num_experts"),
        *HunyuanDense.aliases,
    )
    num_experts: Annotated[Count, BeforeValidator(same)] = 1
    num_experts_per_tok: Annotated[Count, BeforeValidator(same)] = 1
    moe_intermediate_size: Annotated[Count | None, BeforeValidator(same)] = None
    num_shared_expert: Annotated[Literal[1], BeforeValidator(same)] = 1
    moe_layer_num_skipped: Literal[0] = 0
    use_qk_norm: On = True
    use_cla: Off = False

    def spec(self, name: str) -> ModelSpec:
        if self.moe_intermediate_size not in (None, self.intermediate_size):
            raise ConfigError(
                f"{name}: moe_intermediate_size={self.moe_intermediate_size} differs from "
                f"intermediate_size={self.intermediate_size}, which transformers reads; remove it"
            )
        return super().spec(name)

    @property
    def shared_intermediate_size(self) -> int:
        return self.intermediate_size


class GraniteMoeHybrid(GraniteMoeShared):
    """Granite-4 without Mamba layers; with no experts, its MLP has the width of the shared one."""

    ignored = (
        f"{Text.ignored} position_embedding_type mamba_n_heads mamba_n_groups mamba_d_state "
        "mamba_d_head mamba_d_conv mamba_expand mamba_chunk_size mamba_conv_bias mamba_proj_bias "
        "time_step_limit init_method normalization_function"
    )
    aliases = (("layers_block_type", "layer_types"),)
    num_local_experts: Whole = 8
    num_experts_per_tok: Whole = 2
    shared_intermediate_size: Count = 1024
    layer_types: list[str] | None = None

    def spec(self, name: str) -> ModelSpec:
        kinds = self.layer_types or ["mamba"]
        other = [kind for kind in kinds if kind not in ("attention", "full_attention")]
        if other or len(kinds) != self.num_hidden_layers:
            raise ConfigError(
                f"{name}: layer_types={shown(self.layer_types)} is not supported; only models with "
                f"attention in all {self.num_hidden_layers} layers are, because Mamba layers are "
                f"not modelled"
            )
        if self.num_local_experts:
            return super().spec(name)
        return replace(Text.spec(self, name), ffn_hidden=self.shared_intermediate_size)


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
        spec = with_experts(
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
    use_qk_norm: On = True
    num_key_value_heads: Count = 4
    num_experts: Count = 128
    num_experts_per_tok: Count = 8
    moe_intermediate_size: Count = 768


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
        spec = with_experts(
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


def with_experts(spec: ModelSpec, *, layers: int, **experts: Any) -> ModelSpec:
    """The spec with experts in `layers` layers."""
    if experts["top_k"] > experts["count"]:
        raise ConfigError(
            f"{spec.name}: num_experts_per_tok={experts['top_k']} exceeds the "
            f"{experts['count']} experts of a layer; use at most that many"
        )
    return replace(spec, experts=Experts(layers=layers, **experts) if layers else None)
