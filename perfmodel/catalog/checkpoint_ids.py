"""Which catalog model a hub id or a folder names, and the storage types that its suffix states.

Quantised checkpoints are named after their model: `RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic`
has the layers of `meta-llama/Meta-Llama-3.1-8B-Instruct`. Nothing is read but the name, so a result
is what the name says, and not what a `config.json` would.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from perfmodel.catalog import hub_ids, model_names
from perfmodel.errors import ConfigError, printable, unknown_name

# Suffixes of names in lower case, and the type of the weights; "" is one that is not modelled.
_SUFFIXES = (
    (r"-fp8-block", "fp8_block"),
    (r"-fp8([-_](dynamic|kv|per-?tensor))?|[-.]w8a8-fp8", "fp8"),
    (r"-nvfp4(a16)?|-fp4", "nvfp4"),
    (r"-mxfp4", "mxfp4"),
    (
        r"(-quantized)?[-.]w4a16([-_]g\d+)?|(-awq|-gptq|-autoround|-bnb|-unsloth-bnb)?-(int4|4bit)",
        "int4",
    ),
    (r"(-int4)?-(awq|gptq|autoround)(-marlin)?", "int4"),
    (r"(-quantized)?[-.]w8a16|-gptq-int8", "int8"),
    (r"-bf16", "bf16"),
    (r"-(gguf|exl2|exl3|hqq|mlx|int8|8bit)|(-quantized)?[-.]w8a8", ""),
)
_BLOCK_ORGANISATIONS = ("qwen", "deepseek-ai", "zai-org")  # their -FP8 has a scale per block


@dataclass(frozen=True, slots=True)
class CheckpointId:
    """The catalog name of a model, and the types of its checkpoint; "" are those of the catalog."""

    model: str
    weight_dtype: str = ""
    kv_dtype: str = ""


def checkpoint_id(name: str) -> CheckpointId:
    """The model that a hub id, a catalog name, or the last part of a path names.

    Raises `ConfigError` if it is not in the catalog, or its types are not modelled.
    """
    wanted = name.strip().rstrip("/").lower()
    if wanted in hub_ids():
        return CheckpointId(hub_ids()[wanted][0])
    owner, _, last = wanted.rpartition("/")
    known = {one.rpartition("/")[2]: model for one, (model, _) in hub_ids().items()}
    known |= {one: one for one in model_names()}
    if last in known:
        return CheckpointId(known[last])
    cut = [(re.sub(rf"({suffix})$", "", last), dtype) for suffix, dtype in _SUFFIXES]
    named = [(base, dtype) for base, dtype in cut if base != last and base in known]
    if not named:
        raise unknown_name("model", printable(name[:80]), model_names())
    base, dtype = named[0]
    if not dtype:
        raise ConfigError(
            f"{printable(name[:80])} is {known[base]} in a format that is not modelled; choose "
            f"{known[base]}, and a type for its weights"
        )
    blocks = dtype == "fp8" and owner in _BLOCK_ORGANISATIONS
    return CheckpointId(
        known[base],
        weight_dtype="fp8_block" if blocks else dtype,
        kv_dtype="fp8" if last.endswith("-kv") else "",
    )
