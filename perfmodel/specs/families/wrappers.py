"""The text decoder of a multimodal model, from the config of the whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from perfmodel.errors import ConfigError, shown
from perfmodel.specs.checkpoint.config_fields import check_refused

# Multimodal models whose decoder has this type unless their `text_config` states another one. In
# other models, `text_config` must state a supported type.
WRAPPERS = {
    "gemma3": "gemma3_text",
    "glm4v": "glm4v_text",
    "glm4v_moe": "glm4v_moe_text",
    "internvl": "qwen2",
    "kimi_k25": "deepseek_v3",
    "llama4": "llama4_text",
    "llava": "llama",
    "llava_next": "llama",
    "mistral3": "mistral",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen2_vl": "qwen2_vl_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
}
# Models that may state the fields of their decoder at the top level instead of in `text_config`.
FLAT = ("qwen2_vl", "qwen2_5_vl")
SECTIONS = ("text_config", "llm_config")  # the latter in InternVL's own format
# Defaults of transformers for sizes that a `text_config` leaves out.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048,
    },
    "mistral": {
        "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 131_072,
    },
    "qwen2": {
        "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22_016,
        "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 32_768,
    },
}  # fmt: skip


def wraps_decoder(config: Mapping[str, Any], model_type: str, decoders: Collection[str]) -> bool:
    """Whether a multimodal model has a text decoder of one of the supported types."""
    if model_type in WRAPPERS or model_type in decoders:
        return model_type in WRAPPERS
    text = next((config[key] for key in SECTIONS if config.get(key) is not None), None)
    decoder = text.get("model_type") if isinstance(text, Mapping) else None
    return isinstance(decoder, str) and decoder in decoders


def decoder_config(config: Mapping[str, Any], model_type: str, name: str) -> dict[str, Any]:
    """The config of the text decoder of a multimodal model.

    Raises `ConfigError` if it is not an object, or its `model_type` is not that of a decoder.
    """
    section = next((key for key in SECTIONS if config.get(key) is not None), SECTIONS[0])
    text = config.get(section)
    if text is None and model_type in FLAT:
        text = {k: v for k, v in config.items() if k not in ("vision_config", "model_type")}
    if not isinstance(text, Mapping):
        raise ConfigError(
            f"{name}: {section}={shown(text)} is not supported; it must be the config of the "
            f"text decoder"
        )
    outer = {"quantization_config": config.get("quantization_config")}
    check_refused({k: v for k, v in outer.items() if v is not None}, name, read=())
    tied = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    fields = {"model_type": WRAPPERS.get(model_type)} | tied | dict(text)
    decoder = fields["model_type"]
    if not isinstance(decoder, str) or decoder in WRAPPERS:
        raise ConfigError(
            f"{name}: {section} has model_type={shown(decoder)}, which is not a text decoder; "
            f"use the model_type of the decoder, such as {WRAPPERS.get(model_type, 'llama')}"
        )
    return DEFAULTS.get(decoder, {}) | fields
