"""Catalog models that are named by the ids of other checkpoints."""

import pytest

from perfmodel import ConfigError, catalog
from perfmodel.catalog import hub_ids
from perfmodel.catalog.checkpoint_ids import CheckpointId, checkpoint_id
from perfmodel.specs import DTYPES

SUFFIXES = {
    "": "",
    "-FP8": "fp8",
    "-FP8-dynamic": "fp8",
    "-FP8-block": "fp8_block",
    "-AWQ": "int4",
    "-AWQ-INT4": "int4",
    "-GPTQ-Int4": "int4",
    "-GPTQ-Int8": "int8",
    "-quantized.w4a16": "int4",
    "-bnb-4bit": "int4",
    "-unsloth-bnb-4bit": "int4",
    "-NVFP4": "nvfp4",
    "-MXFP4": "mxfp4",
    "-BF16": "bf16",
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_suffix_of_every_known_id_states_the_type_of_its_weights(suffix: str) -> None:
    for hub_id, (model, _) in hub_ids().items():
        name = f"someone/{hub_id.rpartition('/')[2]}{suffix}"
        found = checkpoint_id(name)
        assert (found.model, found.weight_dtype) == (model, SUFFIXES[suffix]), name
        assert found.weight_dtype in ("", *DTYPES)
    assert checkpoint_id(f"/models/llama-3.1-8b{suffix}/").model == "llama-3.1-8b"


def test_ids_of_the_catalog_and_their_makers_are_taken_as_they_are() -> None:
    for hub_id, (model, _) in hub_ids().items():
        assert checkpoint_id(hub_id) == CheckpointId(model)
        assert catalog.model(hub_id).name == model
    assert checkpoint_id("Qwen/Qwen3-32B-FP8").weight_dtype == "fp8_block"
    assert checkpoint_id("amd/Llama-3.1-70B-FP8-KV").kv_dtype == "fp8"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "-FP8",
        "me/unknown-FP8",
        "Qwen/Qwen3-8B-GGUF",
        "me/Qwen3-8B-quantized.w8a8",
        "me/Hermes-3-Llama-3.1-8B",
        "/etc/passwd",
        "x" * 20_000,
        "me/qwen3-8b\n-fp8",
    ],
)
def test_another_id_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError) as raised:
        checkpoint_id(name)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
