"""Families with linear attention in most layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from perfmodel.errors import ConfigError
from perfmodel.specs.checkpoint.hf_config import Count, Layers, Off, On
from perfmodel.specs.families.base import Axes, Kind, Size, Text, Whole
from perfmodel.specs.families.mixtures import Sparse
from perfmodel.specs.layers import LinearAttention
from perfmodel.specs.model import ModelSpec


class Delta(Text):
    """Gated delta networks in most layers; the others have gated full attention."""

    head_norms = True
    head_dim: Count = 256
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
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise ConfigError(
                f"{name}: linear_num_value_heads={self.linear_num_value_heads} is not a multiple "
                f"of linear_num_key_heads={self.linear_num_key_heads}; use a multiple"
            )
        linear = LinearAttention(
            layers=layers,
            key_heads=self.linear_num_key_heads,
            value_heads=self.linear_num_value_heads,
            key_dim=self.linear_key_head_dim,
            value_dim=self.linear_value_head_dim,
            conv_tokens=self.linear_conv_kernel_dim,
        )
        return replace(spec, linear=linear if layers else None, attention_gate=True)


class Qwen3Next(Delta, Sparse):
    num_key_value_heads: Count = 2
    num_experts: Count = 512
    num_experts_per_tok: Count = 10
    moe_intermediate_size: Count = 512
    shared_expert_intermediate_size: Size = 512


class Qwen35(Delta):
    """The linear layers have separate input projections, of the same size in all."""

    rope_scaling: Axes | None = None
    rope_parameters: Axes | None = None
    num_key_value_heads: Count = 4
    attn_output_gate: On = True
    mamba_ssm_dtype: Literal["float32"] = "float32"
    output_gate_type: Literal["sigmoid", "swish"] = "sigmoid"
    mtp_num_hidden_layers: Whole = 0
    mtp_use_dedicated_embeddings: Off = False

    def spec(self, name: str) -> ModelSpec:
        return replace(super().spec(name), mtp_layers=self.mtp_num_hidden_layers)


class Qwen35Moe(Qwen35, Sparse):
    """Every layer is a mixture."""

    intermediate_size: Count = 512  # of no layer
    num_key_value_heads: Count = 2
    num_experts: Count = 256
    num_experts_per_tok: Count = 8
    moe_intermediate_size: Count = 512
    shared_expert_intermediate_size: Size = 512
    decoder_sparse_step: Literal[1] = 1
    mlp_only_layers: Annotated[list[Whole], Field(max_length=0)] | None = None
