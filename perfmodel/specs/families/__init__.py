"""Read the `config.json` of the model families that only the cost model implements.

The rules are those of `hf_config`: a missing field takes the default of transformers' configuration
class, and a field that changes the mathematics and is not modelled is refused by name. Scaling
factors, caps, rotary variants and activations are read and ignored, because they change results but
not times. `tests/perfmodel/specs/test_families.py` compares the sizes with transformers' modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from perfmodel.errors import ConfigError, shown
from perfmodel.specs.checkpoint import config_fields, hf_config
from perfmodel.specs.families import dense, mixtures
from perfmodel.specs.families.base import Text
from perfmodel.specs.model import ModelSpec

_FAMILIES: dict[str, type[Text]] = {
    "mixtral": mixtures.Mixtral,
    "qwen2_moe": mixtures.Qwen2Moe,
    "qwen3_moe": mixtures.Qwen3Moe,
    "qwen3_next": mixtures.Qwen3Next,
    "gpt_oss": mixtures.GptOss,
    "glm4_moe": mixtures.Glm4Moe,
    "deepseek_v2": mixtures.DeepSeekV2,
    "deepseek_v3": mixtures.DeepSeek,
    "kimi_k2": mixtures.DeepSeek,
    "llama4_text": mixtures.Llama4,
    "gemma3_text": dense.Gemma3,
    "ministral": dense.Ministral,
    "phi3": dense.Phi3,
    "granite": dense.Granite,
    "olmo2": dense.Olmo2,
    "olmo3": dense.Olmo3,
    "cohere": dense.Cohere,
    "cohere2": dense.Cohere2,
    "smollm3": dense.SmolLM3,
}
# Multimodal models, whose `text_config` describes the decoder, and the default type of the latter.
# In other ones, `text_config` must state a supported type.
_WRAPPERS = {
    "gemma3": "gemma3_text",
    "kimi_k25": "deepseek_v3",
    "llama4": "llama4_text",
    "mistral3": "mistral",
}
MODEL_TYPES = (*hf_config.MODEL_TYPES, *_FAMILIES, *_WRAPPERS)


def model_spec(config: Mapping[str, Any], *, name: str) -> ModelSpec:
    """Return the spec of the model that transformers would build from any supported `config.json`.

    For a multimodal model, this is the spec of the text decoder. Errors and arguments are those of
    `hf_config.from_hf_config`.
    """
    model_type = config.get("model_type") if isinstance(config, Mapping) else None
    if isinstance(model_type, str) and _wraps_decoder(config, model_type):
        return _wrapped(config, model_type, name)
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        return hf_config.from_hf_config(config, name=name, model_types=MODEL_TYPES)
    family = _FAMILIES[model_type]
    config_fields.check_names(config, name)
    config = _without_aliases(config, family, name)
    config_fields.check_refused(config, name, read=family.model_fields)
    known = family.model_fields.keys() | family.ignored.split()
    config_fields.check_known(config, name, model_type, known)
    try:
        fields = family.model_validate(dict(config))
    except ValidationError as error:
        raise ConfigError(f"{name}: {hf_config.first_fault(error)}") from error
    return replace(fields.spec(name), family=model_type)


def _without_aliases(config: Mapping[str, Any], family: type[Text], name: str) -> Mapping[str, Any]:
    """The config with the other spellings that transformers has for a field of the family."""
    fields = dict(config)
    for alias, field in family.aliases:
        value = fields.pop(alias, None)
        if value is not None and fields.setdefault(field, value) != value:
            raise ConfigError(
                f"{name}: {alias}={shown(value)} contradicts {field}={shown(fields[field])}; "
                f"remove one of them"
            )
    return fields


def _wraps_decoder(config: Mapping[str, Any], model_type: str) -> bool:
    """Whether a multimodal model has a text decoder of a supported type."""
    if model_type in MODEL_TYPES:
        return model_type in _WRAPPERS
    text = config.get("text_config")
    decoder = text.get("model_type") if isinstance(text, Mapping) else None
    return isinstance(decoder, str) and decoder in MODEL_TYPES and decoder not in _WRAPPERS


def _wrapped(config: Mapping[str, Any], model_type: str, name: str) -> ModelSpec:
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        raise ConfigError(
            f"{name}: text_config={shown(text)} is not supported; it must be the config of the "
            f"text decoder"
        )
    outer = {"quantization_config": config.get("quantization_config")}
    config_fields.check_refused({k: v for k, v in outer.items() if v is not None}, name, read=())
    tied = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    fields = {"model_type": _WRAPPERS.get(model_type)} | tied | dict(text)
    decoder = fields["model_type"]
    if not isinstance(decoder, str) or decoder in _WRAPPERS:
        raise ConfigError(
            f"{name}: text_config has model_type={shown(decoder)}, which is not a text decoder; "
            f"use the model_type of the decoder, such as {_WRAPPERS[model_type]}"
        )
    return replace(model_spec(fields, name=name), family=model_type)
