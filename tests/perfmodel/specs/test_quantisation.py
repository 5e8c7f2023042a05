"""How quantised checkpoints state their storage types, in the forms that tools write."""

import json
from pathlib import Path
from typing import Any

import pytest
from quantised_configs import LLAMA, compressed, stored_types, write

from perfmodel import ConfigError, catalog, estimate, parse_scenario
from perfmodel.specs.checkpoint.modules import Stored
from perfmodel.specs.checkpoint.quantisation import without_quantisation
from perfmodel.specs.families import model_spec

KV_FP8 = {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}
FORMATS: list[tuple[dict[str, Any], Stored]] = [
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, Stored("fp8_block", "fp8_block")),
    ({"quant_method": "fp8", "activation_scheme": "static"}, Stored("fp8", "fp8")),
    ({"quant_method": "awq", "bits": 4, "group_size": 128}, Stored("int4", "int4")),
    ({"quant_method": "gptq", "bits": 8, "group_size": 128}, Stored("int8", "int8")),
    (compressed(8, "float", inputs=True, strategy="channel"), Stored("fp8", "fp8")),
    (compressed(8, "float", inputs=True, strategy="block"), Stored("fp8_block", "fp8_block")),
    (compressed(8, "float", inputs=True) | KV_FP8, Stored("fp8", "fp8", "fp8")),
    ({"quant_method": "fp8"} | KV_FP8, Stored("fp8", "fp8", "fp8")),
    (compressed(4, "int", group_size=128), Stored("int4", "int4")),
    (compressed(4, "float", inputs=True, group_size=16), Stored("nvfp4", "nvfp4")),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, Stored("nvfp4", "nvfp4")),
    (
        {"quant_method": "modelopt", "quant_algo": None, "kv_cache_quant_algo": "FP8"},
        Stored(kv="fp8"),
    ),
    (
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
        Stored("", "mxfp4", parts=(("mlp", "mxfp4"),)),
    ),
]


@pytest.mark.parametrize(("stated", "stored"), FORMATS)
def test_each_format_names_its_types(stated: dict[str, Any], stored: Stored) -> None:
    rest, _ = without_quantisation(LLAMA | {"quantization_config": stated}, "m")
    assert rest == LLAMA
    assert stored_types(LLAMA, stated) == stored


def test_a_wrapper_may_state_it_inside_its_text_config() -> None:
    inner = LLAMA | {"quantization_config": {"quant_method": "fp8"}}
    rest, found = without_quantisation({"model_type": "llava", "text_config": inner}, "m")
    assert rest == {"model_type": "llava", "text_config": LLAMA}
    assert found.stored(model_spec(rest, name="m")).weights == "fp8"


@pytest.mark.parametrize(
    "stated",
    [
        "from a file",
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 3},
        {"quant_method": "gptq", "bits": True},
        {"quant_method": "modelopt", "quant_algo": "W8A8_SQ_PER_CHANNEL"},
        {"quant_method": ["fp8"]},
        {"quant_method": "modelopt", "quant_algo": ["FP8"]},
        {"quant_method": "modelopt", "quant_algo": None},
        {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"},
        {"quant_method": "gptq", "bits": 4.0},
        {"quant_method": "fp8", "weight_block_size": [128, 0]},
        {"quant_method": "fp8", "weight_block_size": "128"},
        {"quant_method": "fp8", "weight_block_size": [64, 64]},
        {"quant_method": "fp8", "modules_to_not_convrt": ["lm_head"]},
        {
            "quant_method": "modelopt",
            "quantization": {"quant_algo": "FP8", "exclude_module": ["lm_head"]},
        },
        {"quant_method": "fp8", "modules_to_not_convert": ["self_atn"]},
        {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.99.mlp.up_proj"]},
        compressed(4, "int", group_sizes=128),
        compressed(8, "float", strategy="block", block_structure=[64, 128]),
        {"quant_method": "fp8", "modules_to_not_convert": "lm_head"},
        {
            "quant_method": "modelopt",
            "quantization": {"quant_algo": "FP8", "exclude_modules": "lm_head"},
        },
        compressed(4, "int") | {"kv_cache_scheme": {"num_bits": 4, "type": "float"}},
        compressed(4, "int") | {"kv_cache_scheme": "fp8"},
        {"quant_method": "compressed-tensors"},
        {"quant_method": "compressed-tensors", "config_groups": {"a": 1}},
        compressed(8, "int", inputs=True),
        compressed(4, "float", group_size=64),
        compressed(4, "float"),
        compressed(4, "int", group_size=0),
        compressed(4, "int", group_size="128"),
        compressed(4, "int") | {"format": "marlin-24"},
        compressed(4, "int") | {"sparsity_config": {"format": "sparse-24-bitmask"}},
        compressed(4, "int") | {"sparsity_config": {"sparsity_structure": "2:4"}},
        compressed(4, "int") | {"sparsity_config": ["2:4"]},
        compressed(4, "int") | {"transform_config": {"config_groups": {"u": {}}}},
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 32},
        {"quant_method": "gptq", "bits": 4, "group_size": 0},
        {"quant_method": "awq", "bits": 4, "group_size": 7},
        {"quant_method": "awq", "bits": 4, "q_group_size": 1.5},
        compressed(2, "int"),
        compressed(4, "int") | {"ignore": ["re:*"]},
        compressed(4, "int") | {"ignore": [r"re:(\w+.)+!"]},
        compressed(4, "int") | {"ignore": ["re:(.*)*(.*)*x"]},
        {"quant_method": "fp8", "activation_scheme": "foo"},
        {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"},
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"a": {"targets": "Linear", "weights": {"num_bits": 8}}},
        },
        {"quant_method": "gptq", "bits": 4, "dynamic": ["-:attn"]},
        {"quant_method": "fp8", "modules_to_not_convert": ["self_attn.q_proj"]},
        {"quant_method": "fp8", "modules_to_not_convert": [f"layers.{i}.mlp" for i in range(9)]},
    ],
)
def test_a_format_without_kernels_is_refused_in_one_line(stated: Any) -> None:
    with pytest.raises(ConfigError, match=r"^m: quantization_config") as caught:
        stored_types(LLAMA, stated)
    assert str(caught.value).isprintable()


def test_a_file_of_modelopt_beside_the_config_is_read(tmp_path: Path) -> None:
    quantised = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    path = write(tmp_path, LLAMA, hf_quant_config=quantised)
    scenario = parse_scenario({"target": path}).scenario()
    assert (scenario.weight_dtype, scenario.kv_dtype) == ("fp8", "fp8")


def test_modules_excluded_by_modelopt_are_those_that_a_config_ignores(tmp_path: Path) -> None:
    config = catalog.model_config("deepseek-v3") | {"quantization_config": None}
    excluded = [f"model.layers.{layer}.self_attn*" for layer in range(61)]
    inner = {"quant_algo": "NVFP4", "exclude_modules": excluded}
    for name in ("inner", "outer"):
        (tmp_path / name).mkdir()
    beside = write(tmp_path / "inner", config, hf_quant_config={"quantization": inner})
    stated = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": excluded}
    inside = write(tmp_path / "outer", config | {"quantization_config": stated})
    first, second = (
        estimate(parse_scenario({"target": path, "tp": 8}).scenario()).memory
        for path in (beside, inside)
    )
    assert first.weights == second.weights


def test_stated_types_take_precedence_over_those_of_the_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path, LLAMA | {"quantization_config": {"quant_method": "fp8"}})
    stated = {"target": path, "weight_dtype": "bf16", "kv_dtype": "fp8"}
    scenario = parse_scenario(stated).scenario()
    assert (scenario.weight_dtype, scenario.kv_dtype) == ("bf16", "fp8")


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        ({"quant_method": "fp8", "bits": 16}, "bits=16 contradicts 'fp8'"),
        ({"quant_method": "fbgemm_fp8", "num_bits": 4}, "num_bits=4"),
        ({"quant_method": "fp8", "bits": "8"}, "bits='8'"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt='e5m2'"),
        ({"quant_method": "mxfp4", "bits": 8}, "bits=8"),
        ({"quant_method": "awq", "bits": 4, "w_bit": 8}, "w_bit=8"),
        ({"quant_method": "gptq", "bits": 16}, "bits=16 is not supported"),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "bits": 4}, "bits=4"),
        (
            {"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4", "bits": 8}},
            "bits=8",
        ),
    ],
)
def test_bits_that_contradict_the_method_are_refused(stated: object, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        without_quantisation(LLAMA | {"quantization_config": stated}, "m")
    assert named in str(error.value)


@pytest.mark.parametrize(
    "stated",
    [
        {"quant_method": "fp8", "bits": 8, "fmt": "e4m3"},
        {"quant_method": "fp8", "bits": None},
        {"quant_method": "awq", "bits": 4, "w_bit": 4},
    ],
)
def test_bits_that_agree_with_the_method_are_read(stated: object) -> None:
    assert stored_types(LLAMA, stated).weights


def test_only_a_cache_may_be_quantised() -> None:
    stated = {"quant_method": "compressed-tensors", "config_groups": {}} | KV_FP8
    assert stored_types(LLAMA, stated) == Stored(kv="fp8")


def test_a_quantised_target_does_not_quantise_a_draft_model(tmp_path: Path) -> None:
    path = write(tmp_path, LLAMA | {"quantization_config": {"quant_method": "fp8"}})
    values = {"target": path, "draft": "llama-3.2-1b", "draft_policy": "full"}
    scenario = parse_scenario(values).scenario()
    assert scenario.target_types.weights == "fp8"
    assert scenario.draft_types.weights == "bf16"
    assert not scenario.draft_is_quantised


def test_a_null_in_the_config_does_not_hide_the_file_next_to_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"quantization_config": None}))
    stated = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(stated))
    assert catalog.model(str(tmp_path)).weight_dtype == "fp8"


def test_two_files_that_state_different_types_are_refused(tmp_path: Path) -> None:
    stated = {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | stated))
    beside = tmp_path / "hf_quant_config.json"
    beside.write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    assert catalog.model(str(tmp_path)).weight_dtype == "fp8"
    beside.write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    with pytest.raises(ConfigError, match=r"states nvfp4 .* config\.json states fp8; remove"):
        catalog.model(str(tmp_path))


# ---- files as tools wrote them -------------------------------------------------------------------


def test_an_early_modelopt_states_no_method(tmp_path: Path) -> None:
    """As in nvidia's Qwen3-32B in fp8, whose KV cache is in fp8, too."""
    stated = {"quant_algo": "FP8", "kv_cache_scheme": "FP8", "ignore": ["lm_head"],
              "producer": {"name": "modelopt", "version": "0.31.0"}}  # fmt: skip
    assert stored_types(LLAMA, stated) == Stored("fp8", "fp8", "fp8")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"model_type": "deepseek_v4", "quantization_config": {"quant_method": "odd"}},
            "has sparse attention",
        ),
        ({"quantization": {"quant_algo": "FP8"}}, "give the config.json beside it"),
    ],
)
def test_the_reason_that_helps_comes_first(
    config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        catalog.model(str(path))
