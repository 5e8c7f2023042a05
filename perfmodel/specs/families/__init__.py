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
from perfmodel.specs.families import dense, linear, mixtures, shared, visual
from perfmodel.specs.families.base import Text
from perfmodel.specs.families.wrappers import WRAPPERS, decoder_config, wraps_decoder
from perfmodel.specs.model import ModelSpec

_FAMILIES: dict[str, type[Text]] = {
    "mixtral": mixtures.Mixtral,
    "qwen2_moe": mixtures.Qwen2Moe,
    "qwen3_moe": mixtures.Qwen3Moe,
    "qwen3_next": linear.Qwen3Next,
    "qwen3_5_text": linear.Qwen35,
    "qwen3_5_moe_text": linear.Qwen35Moe,
    "qwen3_vl_moe_text": visual.Qwen3VlMoe,
    "olmoe": mixtures.Olmoe,
    "granitemoe": mixtures.GraniteMoe,
    "granitemoeshared": mixtures.GraniteMoeShared,
    "granitemoehybrid": mixtures.GraniteMoeHybrid,
    "hunyuan_v1_moe": mixtures.HunyuanMoe,
    "minimax_m2": mixtures.MiniMaxM2,
    "phimoe": mixtures.Phimoe,
    "gpt_oss": mixtures.GptOss,
    "glm4_moe": shared.Glm4Moe,
    "glm4_moe_lite": shared.Glm4MoeLite,
    "mistral4": shared.Mistral4,
    "dots1": shared.Dots1,
    "ernie4_5_moe": shared.Ernie45Moe,
    "glm4v_moe_text": visual.Glm4vMoe,
    "deepseek_v2": shared.DeepSeekV2,
    "deepseek_v3": shared.DeepSeek,
    "kimi_k2": shared.DeepSeek,
    "llama4_text": mixtures.Llama4,
    "gemma3_text": dense.Gemma3,
    "ministral": dense.Ministral,
    "ministral3": dense.Ministral3,
    "glm4": dense.Glm4,
    "glm4v_text": visual.Glm4v,
    "qwen2_vl_text": visual.Qwen2Vl,
    "qwen2_5_vl_text": visual.Qwen2Vl,
    "qwen3_vl_text": visual.Qwen3Vl,
    "phi3": dense.Phi3,
    "granite": dense.Granite,
    "olmo": dense.Olmo,
    "olmo2": dense.Olmo2,
    "olmo3": dense.Olmo3,
    "cohere": dense.Cohere,
    "cohere2": dense.Cohere2,
    "ernie4_5": dense.Ernie45,
    "exaone4": dense.Exaone4,
    "hunyuan_v1_dense": dense.HunyuanDense,
    "seed_oss": dense.SeedOss,
    "smollm3": dense.SmolLM3,
}
_DECODERS = (*hf_config.MODEL_TYPES, *_FAMILIES)
MODEL_TYPES = (*_DECODERS, *WRAPPERS)
# Model types that are refused, by what they have that is not modelled.
_REASONS = {
    "sparse attention": "deepseek_v32 deepseek_v4 glm_moe_dsa minimax_m3_vl minimax_m3_vl_text",
    "Mamba layers": "nemotron_h bamba jamba falcon_h1 falcon_mamba mamba mamba2 zamba zamba2",
    "linear attention other than gated delta networks": "minimax minimax_text_01 bailing_hybrid "
    "bailing_moe_linear kimi_linear recurrent_gemma",
    "multi-matrix factorised attention": "step3 step3_text step3_vl",
    "convolutions in place of attention": "lfm2 lfm2_moe lfm2_vl lfm3 lfm3_vl",
    "two attention blocks in each layer": "longcat_flash",
    "windowed layers with heads of their own": "mimo_v2_flash step3p7 gemma4 gemma4_text",
    "embeddings in every layer": "gemma3n gemma3n_text",
    "MLPs without a gate": "gpt2 gpt_neox gptj gpt_bigcode opt bloom mpt falcon phi starcoder2 "
    "nemotron arcee",
    "layers with attention to images": "mllama mllama_text_model",
}
NOT_MODELLED = {name: what for what, names in _REASONS.items() for name in names.split()}
# Those of whole models, which messages list.
_LISTED = [name for name in MODEL_TYPES if not name.endswith("_text")]


def model_spec(config: Mapping[str, Any], *, name: str) -> ModelSpec:
    """Return the spec of the model that transformers would build from any supported `config.json`.

    For a multimodal model, this is the spec of the text decoder. Errors and arguments are those of
    `hf_config.from_hf_config`.
    """
    model_type = config.get("model_type") if isinstance(config, Mapping) else None
    if isinstance(model_type, str) and wraps_decoder(config, model_type, _DECODERS):
        decoder = decoder_config(config, model_type, name)
        return replace(model_spec(decoder, name=name), family=model_type)
    check_modelled(config, name)
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        return hf_config.from_hf_config(config, name=name, model_types=_LISTED)
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


def check_modelled(config: Mapping[str, Any], name: str) -> None:
    """Raise a `ConfigError` if the family has something that is not modelled.

    This is said before faults of other fields, such as a quantisation of the same family.
    """
    model_type = config.get("model_type") if isinstance(config, Mapping) else None
    if isinstance(model_type, str) and model_type in NOT_MODELLED:
        raise ConfigError(
            f"{name}: model_type={shown(model_type)} is not supported, because it has "
            f"{NOT_MODELLED[model_type]}; use a model of another family"
        )


def _without_aliases(config: Mapping[str, Any], family: type[Text], name: str) -> Mapping[str, Any]:
    """The config with the other spellings that transformers has for a field of the family."""
    fields = dict(config)
    for alias, field in family.aliases:
        value = fields.pop(alias, None)
        if value is None:
            continue
        if fields.get(field) is None:
            fields[field] = value
        if mixtures.same(fields[field]) != mixtures.same(value):
            raise ConfigError(
                f"{name}: {alias}={shown(value)} contradicts {field}={shown(fields[field])}; "
                f"remove one of them"
            )
    return fields
