"""Text decoders of multimodal families that are not also models of their own.

Their rotary positions have three axes (`mrope`), which changes results but neither sizes nor times.
"""

from __future__ import annotations

from typing import Literal

from perfmodel.specs.checkpoint.hf_config import Count, Off, On
from perfmodel.specs.families.base import Axes, Size, Text
from perfmodel.specs.families.dense import Glm4
from perfmodel.specs.families.mixtures import Qwen3Moe
from perfmodel.specs.families.shared import Glm4Moe


class Qwen2Vl(Text):
    """Queries, keys and values have biases, as in Qwen2."""

    ignored = f"{Text.ignored} max_window_layers"
    output_bias = False
    rope_scaling: Axes | None = None
    rope_parameters: Axes | None = None
    attention_bias: On = True
    num_key_value_heads: Count | None = 8
    use_sliding_window: Off | None = False
    sliding_window: Size | None = None
    layer_types: list[Literal["full_attention"]] | None = None


class Qwen3Vl(Text):
    head_norms = True
    rope_scaling: Axes | None = None
    rope_parameters: Axes | None = None
    num_key_value_heads: Count | None = 32
    head_dim: Count = 128


class Qwen3VlMoe(Qwen3Moe):
    rope_scaling: Axes | None = None
    rope_parameters: Axes | None = None
    num_key_value_heads: Count = 16
    num_experts: Count = 60
    num_experts_per_tok: Count = 4
    moe_intermediate_size: Count = 1408


class Glm4v(Glm4):
    rope_scaling: Axes | None = None
    rope_parameters: Axes | None = None
    num_key_value_heads: Count | None = 2
    head_dim: Count | None = None
    attention_bias: On = True


class Glm4vMoe(Glm4Moe):
    rope_scaling: Axes | None = None
    rope_parameters: Axes | None = None
    attention_bias: bool = True
    use_qk_norm: Off = False
