"""Modules of transformers on the meta device, where those of any size take no memory."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is the reference here")

# Multimodal models whose decoder is only built as a part of them.
VISUAL = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v",
          "glm4v_moe", "llava", "llava_next", "internvl")  # fmt: skip
TYPES_OF_TRANSFORMERS = {"kimi_k2": "deepseek_v3"}


def module_of(config: Mapping[str, Any]) -> Any:
    """The module of a config, or of its text config: the text decoder and the LM head."""
    is_visual = config["model_type"] in VISUAL
    fields = dict(config if is_visual else config.get("text_config", config))
    model_type = fields.pop("model_type")
    stated = transformers.AutoConfig.for_model(
        TYPES_OF_TRANSFORMERS.get(model_type, model_type), **fields
    )
    build = transformers.AutoModelForCausalLM.from_config
    if is_visual:
        build = transformers.AutoModelForImageTextToText.from_config
    elif model_type == "mistral4":
        build = transformers.Mistral4ForCausalLM
    with torch.device("meta"):
        module = build(stated)
    if is_visual:
        module.model, module.config = module.model.language_model, stated.text_config
    return module
