"""Dense families: sizes, norms, biases and windows that differ from those of Llama."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BeforeValidator

from perfmodel.specs.checkpoint.hf_config import Count, Layers, Off, On
from perfmodel.specs.families.base import Text, Whole, Windowed
from perfmodel.specs.model import ModelSpec


def _period(pattern: object) -> object:
    """The length of a pattern of local layers before one global layer, such as LLLG."""
    is_one = isinstance(pattern, str) and re.fullmatch("L*G", pattern)
    return len(pattern) if isinstance(pattern, str) and is_one else pattern


class Phi3(Windowed):
    ignored = f"{Text.ignored} full_attn_mod interpolate_factor"
    original_max_position_embeddings: Count = 4096
    head_dim: None = None
    lists_layers = False
    attention_bias: Off = False


class Granite(Text):
    embedding_multiplier: float = 1.0
    logits_scaling: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float = 1.0


class Olmo(Text):
    """The norms have no weights, not even the last one."""

    clip_qkv: float | None = None

    def spec(self, name: str) -> ModelSpec:
        spec = super().spec(name)
        norms = (spec.norms_per_layer * spec.layers + 1) * spec.hidden
        return replace(spec, more_parameters=spec.more_parameters - norms)


class Olmo2(Text):
    def spec(self, name: str) -> ModelSpec:
        """The norms of queries and keys span all of their heads."""
        spec = super().spec(name)
        norms = (spec.query_heads + spec.kv_heads) * spec.head_dim * spec.layers
        return replace(spec, more_parameters=spec.more_parameters + norms)


class Olmo3(Olmo2, Windowed):
    pattern = 4
    sliding_window: Count | None = 4096


class Cohere(Text):
    """Attention and MLP run in parallel after one norm."""

    norms = 1
    tie_word_embeddings: bool = True
    logit_scale: float | None = 0.0625
    use_qk_norm: bool = False
    model_max_length: Count | None = None  # vLLM prefers it to max_position_embeddings

    @property
    def longest(self) -> int:
        return self.model_max_length or super().longest

    def spec(self, name: str) -> ModelSpec:
        """The norms of queries and keys have a weight for each of their heads."""
        spec = super().spec(name)
        norms = (spec.query_heads + spec.kv_heads) * spec.head_dim * spec.layers
        more = norms if self.use_qk_norm else 0
        return replace(spec, more_parameters=spec.more_parameters + more)


class Cohere2(Windowed):
    ignored = (
        f"{Text.ignored} order_of_interleaved_layers position_embedding_type rotary_pct "
        "use_embedding_sharing use_gated_activation use_parallel_block use_parallel_embedding "
        "layer_switch"
    )
    norms = 1
    tie_word_embeddings: bool = True
    logit_scale: float | None = 0.0625
    sliding_window: Count | None = 4096
    sliding_window_pattern: Layers = 4


class Ernie45(Text):
    tie_word_embeddings: bool = True
    num_key_value_heads: Count | None = 2
    head_dim: Count | None = 128
    attention_bias: Off = False
    use_bias: Off = False


class SeedOss(Text):
    """The output projection of attention has a bias of its own flag."""

    output_bias = False
    num_key_value_heads: Count | None = 8
    head_dim: Count | None = 128
    attention_bias: bool = True
    attention_out_bias: bool = False
    mlp_bias: Off = False

    def bias_of_layers(self, name: str) -> int:
        output = self.num_hidden_layers * self.hidden_size if self.attention_out_bias else 0
        return super().bias_of_layers(name) + output


class HunyuanDense(Text):
    ignored = (  # most are not fields of transformers' class, but the hub has them
        f"{Text.ignored} cla_share_factor org_vocab_size norm_type position_embedding_xdrope "
        "use_rotary_pos_emb pool_type dense_list class_num im_start_id im_end_id im_newline_id "
        "text_start_id text_end_id mask_init_id video_start_id video_end_id eod_token_id pad_id "
        "num_media_embeds anyres_pooling_size anyres_vit_max_image_size anyres_vit_two_views"
    )
    aliases = (("attention_head_dim", "head_dim"),)
    head_norms = True
    use_qk_norm: On = True
    use_cla: Off = False
    mlp_bias: Off = False


class Exaone4(Windowed):
    """Every fourth layer attends to all tokens; a pattern such as LLLG says so, too."""

    pattern = 4
    head_norms = True
    num_key_value_heads: Count = 32
    attention_bias: Off = False
    sliding_window: Count | None = 4096
    sliding_window_pattern: Annotated[Whole | None, BeforeValidator(_period)] = 4


class SmolLM3(Text):
    """Layers without rotary positions take the same time."""

    ignored = f"{Text.ignored} max_window_layers"
    tie_word_embeddings: bool = True
    num_key_value_heads: Count | None = 4
    use_sliding_window: Off = False
    sliding_window: Count | None = None
    layer_types: list[Literal["full_attention"]] | None = None
    no_rope_layers: list[int] | None = None
    no_rope_layer_interval: int = 4
    mlp_bias: Off = False


class Gemma3(Windowed):
    ignored = f"{Text.ignored} rope_local_base_freq"
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
    use_bidirectional_attention: Off = False

    @property
    def longest(self) -> int:
        """`max_position_embeddings` already includes the scaling, which full layers alone have."""
        return self.max_position_embeddings


class Ministral(Windowed):
    num_key_value_heads: Count = 8
    attention_bias: Off = False
    sliding_window: Count | None = 4096


class Ministral3(Windowed):
    num_key_value_heads: Count | None = 8
    head_dim: Count | None = 128
    lists_layers = False
    attention_bias: Off = False


class Glm4(Text):
    """GLM-4-0414: attention and MLP also have a norm after them."""

    output_bias = False
    norms = 4
    num_key_value_heads: Count | None = 2
    head_dim: Count | None = 128
    attention_bias: bool = True
