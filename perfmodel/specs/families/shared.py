"""Families with shared experts, whose first layers are dense; most have latent attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from perfmodel.errors import ConfigError
from perfmodel.specs.checkpoint.hf_config import Count, Layers, Off
from perfmodel.specs.families.base import Text, Whole
from perfmodel.specs.families.mixtures import with_experts
from perfmodel.specs.layers import LatentAttention
from perfmodel.specs.model import ModelSpec


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
    moe_layer_freq: Literal[1] = 1
    num_nextn_predict_layers: Whole | None = 1
    n_group: Whole | None = 1
    topk_group: Whole | None = 1

    def spec(self, name: str) -> ModelSpec:
        self._check_groups(name)
        if self.first_k_dense_replace > self.num_hidden_layers:
            raise ConfigError(
                f"{name}: first_k_dense_replace={self.first_k_dense_replace} exceeds the "
                f"{self.num_hidden_layers} layers; use at most that many"
            )
        states_mtp = "num_nextn_predict_layers" in self.model_fields_set
        mtp_layers = (self.num_nextn_predict_layers or 0) if states_mtp else 0
        return with_experts(
            replace(super().spec(name), mtp_layers=mtp_layers),
            layers=self.mixtures(name),
            count=self.n_routed_experts,
            top_k=self.num_experts_per_tok,
            width=self.moe_intermediate_size,
            shared_width=(self.n_shared_experts or 0) * self.moe_intermediate_size,
        )

    def mixtures(self, name: str) -> int:
        """Number of layers with experts."""
        return self.num_hidden_layers - self.first_k_dense_replace

    def _check_groups(self, name: str) -> None:
        """Refuse groups of experts that routers cannot form; they change no time here."""
        groups, chosen = self.n_group or 1, self.topk_group or 1
        if self.n_routed_experts % groups:
            raise ConfigError(
                f"{name}: {self.n_routed_experts} experts do not divide evenly among n_group="
                f"{self._shown('n_group')} groups; use a divisor"
            )
        if chosen > groups and self.n_group:
            raise ConfigError(
                f"{name}: topk_group={self._shown('topk_group')} exceeds n_group="
                f"{self._shown('n_group')}; use at most that many"
            )
        within = self.n_routed_experts // groups * chosen
        if self.n_group and self.topk_group and self.num_experts_per_tok > within:
            raise ConfigError(
                f"{name}: num_experts_per_tok={self.num_experts_per_tok} exceeds the {within} "
                f"experts of topk_group={self._shown('topk_group')} groups; use at most that many"
            )

    def _shown(self, name: str) -> str:
        """The value of a field, and whether it is the default."""
        return f"{getattr(self, name)}{'' if name in self.model_fields_set else ' (the default)'}"


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
    kv_lora_rank: Count = 512
    q_lora_rank: Count | None = 1536
    qk_rope_head_dim: Count = 64
    qk_nope_head_dim: Count = 128
    qk_head_dim: Count | None = None  # the sum of these two
    v_head_dim: Count = 128
    attention_bias: Off = False
    n_group: Whole | None = 8
    topk_group: Whole | None = 4

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
    n_group: Whole | None = None
    topk_group: Whole | None = None


class Glm4MoeLite(DeepSeek):
    """The first layer is dense, unless a list states the kind of each layer."""

    moe_intermediate_size: Count = 1536
    n_routed_experts: Count = 64
    num_experts_per_tok: Count = 4
    first_k_dense_replace: Whole = 1
    q_lora_rank: Count | None = 768
    qk_nope_head_dim: Count = 192
    v_head_dim: Count = 256
    n_group: Whole | None = 1
    topk_group: Whole | None = 1
    mlp_layer_types: list[Literal["dense", "sparse"]] | None = None

    def mixtures(self, name: str) -> int:
        kinds = self.mlp_layer_types
        if kinds is None:
            return super().mixtures(name)
        if len(kinds) != self.num_hidden_layers:
            raise ConfigError(
                f"{name}: mlp_layer_types has {len(kinds)} layers; it must list "
                f"{self.num_hidden_layers}"
            )
        return kinds.count("sparse")


class Mistral4(DeepSeek):
    n_routed_experts: Count = 128
    num_experts_per_tok: Count = 4
    first_k_dense_replace: Whole = 0
    kv_lora_rank: Count = 256
    q_lora_rank: Count | None = 1024
    qk_nope_head_dim: Count = 64
    n_group: Whole | None = 1
    topk_group: Whole | None = 1


class Dots1(Shared):
    head_norms = True
    moe_intermediate_size: Count = 1408
    num_key_value_heads: Count | None = 32
    n_shared_experts: Count
    first_k_dense_replace: Whole = 0
    layer_types: list[Literal["full_attention"]] | None = None
    max_window_layers: Count = 62
    sliding_window: Count | None = 4096
    use_sliding_window: Off = False

    def spec(self, name: str) -> ModelSpec:
        windowed = self.num_hidden_layers > self.max_window_layers and self.layer_types is None
        if windowed and self.sliding_window is not None:
            raise ConfigError(
                f"{name}: max_window_layers={self.max_window_layers} gives the last layers a "
                f"window, which is not supported; use {self.num_hidden_layers}"
            )
        return super().spec(name)


class Ernie45Moe(Text):
    """Mixtures from one layer to another, at an interval; routers have a bias per expert."""

    ignored = (
        f"{Text.ignored} moe_norm_min moe_capacity moe_gate moe_use_aux_free moe_group "
        "use_rmsnorm fuse_rms_norm moe_use_hard_gate moe_aux_loss_lambda moe_z_loss_lambda "
        "moe_orthogonal_loss_lambda moe_all_to_all_dropout moe_dense_experts_token_type_id "
        "multi_token_pred_lambda enable_mtp_magic_send sinkhorn_2gate sinkhorn_temp "
        "moe_reverse_token_drop compression_ratio use_recompute_moe"
    )
    aliases = (("num_experts", "moe_num_experts"), ("num_experts_per_tok", "moe_k"))
    tie_word_embeddings: bool = True
    num_key_value_heads: Count | None = 4
    attention_bias: Off = False
    use_bias: Off = False
    moe_intermediate_size: Count = 1536
    moe_k: Count = 6
    moe_num_experts: Count = 64
    moe_num_shared_experts: Whole = 2
    moe_layer_start_index: Whole = 1
    moe_layer_end_index: Annotated[int, Field(ge=-1, le=10_000)] = -1
    moe_layer_interval: Layers = 1
    num_nextn_predict_layers: Whole = 0

    def spec(self, name: str) -> ModelSpec:
        last = self.num_hidden_layers - 1
        end = last if self.moe_layer_end_index == -1 else min(self.moe_layer_end_index, last)
        step = self.moe_layer_interval
        layers = sum((i + 1) % step == 0 for i in range(self.moe_layer_start_index, end + 1))
        spec = with_experts(
            replace(super().spec(name), mtp_layers=self.num_nextn_predict_layers),
            layers=layers,
            count=self.moe_num_experts,
            top_k=self.moe_k,
            width=self.moe_intermediate_size,
            shared_width=self.moe_num_shared_experts * self.moe_intermediate_size,
        )
        return replace(spec, more_parameters=spec.more_parameters + layers * self.moe_num_experts)
