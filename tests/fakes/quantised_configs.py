"""Checkpoints that state a quantisation, and how it is read."""

import json
from pathlib import Path
from typing import Any

from perfmodel import catalog
from perfmodel.specs.checkpoint.modules import Stored
from perfmodel.specs.checkpoint.quantisation import without_quantisation
from perfmodel.specs.families import model_spec

LLAMA = catalog.model_config("llama-3.2-1b")
QWEN = catalog.model_config("qwen2.5-7b")


def stored_types(config: dict[str, Any], stated: Any) -> Stored:
    """The types of a model whose checkpoint states this quantisation."""
    rest, quantisation = without_quantisation(config | {"quantization_config": stated}, "m")
    return quantisation.stored(model_spec(rest, name="m"))


def compressed(bits: int, kind: str, *, inputs: bool = False, **weights: Any) -> dict[str, Any]:
    group = {
        "targets": ["Linear"],
        "weights": {"num_bits": bits, "type": kind, **weights},
        "input_activations": {"num_bits": bits, "type": kind} if inputs else None,
    }
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def write(folder: Path, config: dict[str, Any], **files: Any) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)
