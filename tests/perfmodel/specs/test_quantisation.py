"""How quantised checkpoints state their storage types, in the forms that tools write."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from meta_modules import module_of

from perfmodel import ConfigError, catalog, estimate, parse_scenario
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


def write(folder: Path, config: dict[str, Any], **files: Any) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


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
    ("module", "kept"),
    [
        ("re:.*attn.*", True),
        ("self_attn", True),
        ("model.layers.*.self_attn", True),
        ("*self_attn*", True),
        ("model.layers.3.self_attn.q_proj", False),  # one of 92 layers
        ("re:.*linear_attn.*", False),
        ("model.layers.92.self_attn.q_proj", False),  # of the MTP head
        ("re:.*self_attn.q_norm", False),
        ("vision_tower.encoder.layers.3.self_attn.q_proj", False),
        ("re:vision_tower.*", False),
        ("lm_head", False),
    ],
)
def test_attention_is_kept_if_the_modules_that_are_left_out_are_those_of_the_decoder(
    module: str, kept: bool
) -> None:
    stated = compressed(8, "float", inputs=True) | {"ignore": ["lm_head", module]}
    found = stored_types(LLAMA | {"num_hidden_layers": 92}, stated)
    if kept:
        assert found == Stored("", "fp8", parts=(("mlp", "fp8"),))
    else:
        assert found == Stored("fp8", "fp8")


@pytest.mark.parametrize(
    ("module", "meant"),
    [
        ("lm_haed", "lm_head"),
        ("model.layers.0.self_attn.q_porj", "q_proj"),
        ("re:.*self_atn.*", "self_attn"),
        (r"re:model\.layers\.\d+\.mlp\.experst\..*", "experts"),
        ("*self_atn*", "self_attn"),
    ],
)
def test_a_misspelt_module_that_is_left_out_is_refused(module: str, meant: str) -> None:
    stated = compressed(8, "float", inputs=True) | {"ignore": [module]}
    with pytest.raises(ConfigError, match=f"matches no module; did you mean {meant}"):
        stored_types(LLAMA, stated)


@pytest.mark.parametrize("module", ["re:.*self_att.*", "re:.*router_.*", r"re:.*mlp\.gate$"])
def test_a_pattern_of_part_of_a_name_or_of_modules_that_are_not_modelled_is_read(
    module: str,
) -> None:
    stored_types(LLAMA, compressed(8, "float", inputs=True) | {"ignore": [module]})


@pytest.mark.parametrize("prefix", ["", "model.", "language_model.model.", "model.language_model."])
def test_modules_are_named_with_or_without_the_prefix_of_a_wrapper(prefix: str) -> None:
    names = [f"{prefix}layers.{i}.mlp.{m}_proj" for i in range(16) for m in ("gate", "up", "down")]
    expected = Stored("int4", "int4", parts=(("mlp", "bf16"),))
    stated = {"quant_method": "awq", "bits": 4}
    assert stored_types(LLAMA, stated | {"modules_to_not_convert": names}) == expected
    globs = [f"{prefix}layers.{i}.mlp*" for i in range(16)]
    assert stored_types(LLAMA, stated | {"modules_to_not_convert": globs}) == expected


def test_groups_name_the_modules_of_parts() -> None:
    def found(config: dict[str, Any], **groups: list[str]) -> Stored:
        stated = compressed(4, "int", group_size=128)
        (group,) = stated["config_groups"].values()
        stated["config_groups"] = {n: group | {"targets": targets} for n, targets in groups.items()}
        eight = compressed(8, "float")["config_groups"]["group_0"]
        if "fp8" in groups:
            stated["config_groups"]["fp8"] = eight | {"targets": groups["fp8"]}
        return stored_types(config, stated)

    experts = [r"re:.*mlp\.experts\..*"]
    mixture = catalog.model_config("qwen3-30b-a3b")
    assert found(QWEN, all=["Linear"]) == Stored("int4", "int4")
    assert found(mixture, all=experts) == Stored("", "int4")
    assert found(mixture, all=experts, fp8=["Linear"]) == Stored("fp8", "int4")
    with pytest.raises(ConfigError, match="67% of the weights of mlp"):
        found(QWEN, all=["re:.*down_proj"])
    with pytest.raises(ConfigError, match="targets='QwenMLP'"):
        found(QWEN, all=["QwenMLP"])


def test_a_head_is_quantised_if_a_checkpoint_says_so() -> None:
    gptq = {"quant_method": "gptq", "bits": 4}
    assert stored_types(QWEN, gptq | {"lm_head": True}).parts == (("head", "int4"),)
    assert stored_types(LLAMA, gptq | {"lm_head": True}).parts == ()  # tied to the embedding
    assert stored_types(QWEN, gptq).parts == ()


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


def test_types_that_differ_between_layers_are_refused() -> None:
    stated = {"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down.*": {"bits": 8}}}
    with pytest.raises(ConfigError, match="dynamic="):
        stored_types(LLAMA, stated)
    without = {"quant_method": "gptq", "bits": 4, "dynamic": {"lm_head": {}, "-:.*attn.*": {}}}
    assert stored_types(LLAMA, without) == Stored("", "int4", parts=(("mlp", "int4"),))


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


def test_only_the_experts_of_gpt_oss_are_quantised() -> None:
    scenario = parse_scenario({"target": "gpt-oss-120b"}).scenario()
    assert scenario.target_types == ("bf16", "mxfp4", "bf16", ())


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


# ---- bytes of checkpoints -----------------------------------------------------------------------


def left_out(stated: dict[str, Any], *names: str) -> dict[str, Any]:
    return stated | {"ignore": ["lm_head", *names]}


NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128]}
INT4 = compressed(4, "int", group_size=128)
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True}


def stored_bytes(layout: str, group: int, *shape: int) -> float:
    """Bytes of the tensors that a format stores for one matrix of (..., outputs, inputs)."""
    *matrices, outputs, inputs = shape
    count, cells = math.prod(matrices), outputs * inputs
    packed, groups = cells / 8 * 4, outputs * inputs / group
    zeros = inputs / group * outputs / 8 * 4
    of_one = {
        "bf16": 2 * cells,
        "awq": packed + zeros + 2 * groups,  # qweight, qzeros (int32), scales (fp16)
        "gptq": packed + zeros + 2 * groups,  # engines drop g_idx without act-order
        "int4": packed + 2 * groups + 16,  # weight_packed, weight_scale (bf16), weight_shape
        "asymmetric": packed + zeros + 2 * groups + 16,  # and weight_zero_point
        "nvfp4": cells / 2 + groups + 8,  # weight, weight_scale (fp8), weight_scale_2, input_scale
        "mxfp4": cells / 2 + groups,  # blocks, scales
        "fp8": cells + 4 * outputs,  # weight, weight_scale
        "fp8_block": cells + 4 * -(-outputs // 128) * -(-inputs // 128),  # and weight_scale_inv
    }[layout]
    return count * of_one


R1_INPUTS = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
# (model, its quantisation, the layout and the weights of a group of the modules that this pattern
# finds in transformers' module)
CHECKPOINTS: dict[str, tuple[str, dict[str, Any], str, int, str]] = {
    "Llama-3.1-8B in AWQ": ("llama-3.1-8b", AWQ, "awq", 128, r"_proj"),
    "Llama-3.1-8B in GPTQ": ("llama-3.1-8b", GPTQ, "gptq", 64, r"_proj"),
    "Qwen3-30B-A3B in GPTQ": (
        "qwen3-30b-a3b",
        GPTQ | {"group_size": 128, "modules_to_not_convert": ["mlp.gate"]},
        "gptq",
        128,
        r"_proj",
    ),
    "Llama-3.1-8B with zero points": (
        "llama-3.1-8b",
        compressed(4, "int", group_size=128, symmetric=False),
        "asymmetric",
        128,
        r"_proj",
    ),
    "DeepSeek-R1 by NVIDIA": (
        "deepseek-v3",
        left_out(NVFP4, "model.layers.61*", *(f"model.layers.{i}.self_attn*" for i in range(61))),
        "nvfp4",
        16,
        r"mlp\..*(gate|up|down)_proj",
    ),
    "DeepSeek-R1 by NVIDIA, second version": (
        "deepseek-v3",
        left_out(NVFP4, *(f"model.layers.{i}.self_attn.{m}" for i in range(61) for m in R1_INPUTS)),
        "nvfp4",
        16,
        r"mlp\..*(gate|up|down)_proj|o_proj",
    ),
    "Kimi-K2-Thinking": (
        "kimi-k2",
        left_out(
            compressed(4, "int", group_size=32),
            "re:.*self_attn.*",
            "re:.*shared_experts.*",
            r"re:.*mlp\.(gate|up|down)_proj.*",
        ),
        "int4",
        32,
        r"\.experts\.",
    ),
    "Qwen3-Next by LLM Compressor": (
        "qwen3-next-80b-a3b",
        left_out(INT4, "re:.*mlp.gate$", "re:.*mlp.shared_expert_gate$", "re:.*linear_attn.*"),
        "int4",
        128,
        r"self_attn\..*_proj|experts?\..*proj",
    ),
    "Qwen3-Next by Qwen": (
        "qwen3-next-80b-a3b",
        left_out(
            BLOCK,
            *(
                f"model.layers.{i}.{m}"
                for i in range(48)
                for m in ("linear_attn.conv1d", "linear_attn.in_proj_ba", "mlp.gate")
            ),
        ),
        "fp8_block",
        1,
        r"self_attn\..*_proj|experts?\..*proj|linear_attn\.(in_proj_qkvz|out_proj)",
    ),
    "Llama-3.1-405B by Meta": (
        "llama-3.1-405b",
        {
            "quant_method": "fbgemm_fp8",
            "modules_to_not_convert": [
                *(f"model.layers.{i}.self_attn" for i in range(126)),
                *(f"model.layers.{i}.mlp" for i in (0, 125)),
            ],
        },
        "fp8",
        1,
        r"layers\.([1-9]|[1-9]\d|1[01]\d|12[0-4])\.mlp\.",
    ),
    "gpt-oss": (
        "gpt-oss-120b",
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]},
        "mxfp4",
        32,
        r"experts\.(gate_up|down)_proj$",
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_bytes_of_a_checkpoint_are_those_of_its_modules(name: str, tmp_path: Path) -> None:
    target, stated, layout, group, pattern = CHECKPOINTS[name]
    config = catalog.model_config(target)
    path = write(tmp_path, config | {"quantization_config": stated})
    found = estimate(parse_scenario({"target": path, "gpu": "b200"}).scenario()).memory.weights
    expected = sum(
        stored_bytes(layout, group, *parameter.shape)
        if re.search(pattern, module)
        else 2 * parameter.numel()
        for module, parameter in module_of(config).named_parameters()
    )
    # Routers, norms and 2 of 126 layers have the type of the others here.
    assert float(found) == pytest.approx(expected, rel=0.015 if "405B" in name else 0.003)


def weights_of(**values: Any) -> Any:
    return estimate(parse_scenario({"gpu": "b200"} | values).scenario()).memory


@pytest.mark.parametrize(("name", "gib"), [("gpt-oss-120b", 60.8), ("gpt-oss-20b", 12.8)])
def test_checkpoints_of_gpt_oss_have_the_published_size(name: str, gib: float) -> None:
    """OpenAI, arXiv 2508.10925, table 1; the biases of experts are in mxfp4 here."""
    assert float(weights_of(target=name).weights) / 2**30 == pytest.approx(gib, rel=0.002)


@pytest.mark.parametrize(
    ("name", "gigabytes"), [("Kimi-K2-Thinking", 594), ("Llama-3.1-8B in AWQ", 5.73)]
)
def test_int4_checkpoints_have_the_size_that_the_hub_shows(
    name: str, gigabytes: float, tmp_path: Path
) -> None:
    """moonshotai/Kimi-K2-Thinking and hugging-quants' AWQ of Llama-3.1-8B, from memory."""
    target, stated, *_ = CHECKPOINTS[name]
    path = write(tmp_path, catalog.model_config(target) | {"quantization_config": stated})
    assert float(weights_of(target=path).weights) / 1e9 == pytest.approx(gigabytes, rel=0.003)


def test_the_checkpoint_of_deepseek_v3_has_its_published_size() -> None:
    """`total_size` in the safetensors index of deepseek-ai/DeepSeek-V3, from memory.

    Its MTP layer also has an embedding. Routers are in fp8 here.
    """
    memory, spec = weights_of(target="deepseek-v3", draft="mtp"), catalog.model("deepseek-v3")
    embedding = 2.0 * spec.vocab * spec.hidden
    found = float(memory.weights + memory.draft_weights) + embedding
    assert found == pytest.approx(688_586_727_753, rel=0.001)


def test_each_part_takes_the_time_of_its_type(tmp_path: Path) -> None:
    target, stated, *_ = CHECKPOINTS["DeepSeek-R1 by NVIDIA, second version"]
    path = write(tmp_path, catalog.model_config(target) | {"quantization_config": stated})
    values = {"gpu": "b200", "tp": 8, "batch": 8, "prompt_tokens": 4000}
    mixed, bf16, nvfp4 = (
        {
            part.name: float(part.seconds)
            for part in estimate(parse_scenario(values | one).scenario()).target_step.parts
        }
        for one in (
            {"target": path},
            {"target": target, "weight_dtype": "bf16"},
            {"target": target, "weight_dtype": "nvfp4"},
        )
    )
    quantised = {name for name in mixed if mixed[name] != bf16[name]}
    assert all(mixed[name] == nvfp4[name] for name in quantised)
    assert quantised == {
        "o_proj", "gate_up_proj", "down_proj", "shared_gate_up_proj", "shared_down_proj", "experts"
    }  # fmt: skip


# ---- files as tools wrote them -------------------------------------------------------------------


def test_an_early_modelopt_states_no_method(tmp_path: Path) -> None:
    """As in nvidia's Qwen3-32B in fp8, whose KV cache is in fp8, too."""
    stated = {"quant_algo": "FP8", "kv_cache_scheme": "FP8", "ignore": ["lm_head"],
              "producer": {"name": "modelopt", "version": "0.31.0"}}  # fmt: skip
    assert stored_types(LLAMA, stated) == Stored("fp8", "fp8", "fp8")


def mixed(**kinds: Any) -> dict[str, Any]:
    """An algorithm for each module, as in nvidia's Qwen3.6 in NVFP4; `kinds` by module."""
    layers = {
        f"model.layers.{i}.{module.replace('__', '.')}": fields
        for module, fields in kinds.items()
        for i in range(LLAMA["num_hidden_layers"])
    }
    return {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}


def test_modelopt_may_state_an_algorithm_for_each_module() -> None:
    fp8, fp4 = {"quant_algo": "FP8"}, {"quant_algo": "W4A16_NVFP4", "group_size": 16}
    attention = {f"self_attn__{name}_proj": fp8 for name in "qkvo"}
    mlp = {f"mlp__{name}_proj": fp4 for name in ("gate", "up", "down")}
    stored = stored_types(LLAMA, mixed(**attention, **mlp))
    assert stored.weights == "fp8" and dict(stored.parts) == {"mlp": "nvfp4"}
    assert dict(stored_types(LLAMA, mixed(**attention)).parts) == {"mlp": "bf16"}


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        (mixed(), "quantized_layers"),
        (mixed(mlp__up_proj="FP8"), "mlp.up_proj"),
        (mixed(mlp__up_proj={"quant_algo": "ODD"}), "ODD"),
        (mixed(mlp__up_proj={"quant_algo": "NVFP4", "group_size": 32}), "group_size"),
        (mixed(mlp__odd_proj={"quant_algo": "FP8"}), "odd_proj"),
    ],
)
def test_broken_lists_of_modules_are_refused(stated: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        stored_types(LLAMA, stated)
    assert str(caught.value).isprintable()


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


# ---- scales in times ----------------------------------------------------------------------------


def step_of(stated: dict[str, Any] | None, tmp_path: Path, model: str, **values: Any) -> Any:
    """A plain step of a model whose checkpoint states this quantisation."""
    config = catalog.model_config(model) | ({"quantization_config": stated} if stated else {})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    plan = {"target": str(path), "draft": "none", "batch": 1, "prompt_tokens": 100}
    return estimate(parse_scenario(plan | values).scenario()).target_step


@pytest.mark.parametrize("fmt", ["awq", "gptq"])
def test_a_step_reads_the_scales_of_groups(fmt: str, tmp_path: Path) -> None:
    """A scale of 16 bits and a zero point of 4 for each group; smaller groups take longer."""
    seconds, limit = {}, {}
    for group in (32, 64, 128, -1):
        stated = {"quant_method": fmt, "bits": 4, "group_size": group}
        part = step_of(stated, tmp_path, "llama-3.1-8b", gpu="a100-sxm-80gb").part("down_proj")
        seconds[group], limit[group] = float(part.seconds), float(part.memory_s)
    assert seconds[32] > seconds[64] > seconds[128] > seconds[-1]
    weights, bandwidth = 32 * 4096 * 14_336, catalog.gpu("a100-sxm-80gb").hbm_bandwidth
    extra = weights * 2.5 / 32 / bandwidth
    assert limit[32] - limit[-1] == pytest.approx(extra, rel=1e-9)
    # The kernel reads them no faster than the memory delivers.
    assert extra <= seconds[32] - seconds[-1] < 2.5 * extra


@pytest.mark.parametrize("left_out", [r"re:.*mlp\.experts.*", "experts"])
def test_experts_that_are_left_out_are_read_in_bf16(left_out: str, tmp_path: Path) -> None:
    stated = compressed(4, "int", group_size=128) | {"ignore": ["lm_head", left_out]}
    step, plain = (step_of(s, tmp_path, "qwen3-30b-a3b", gpu="h200") for s in (stated, None))
    assert step.group_s("experts") == plain.group_s("experts")
    assert step.part("o_proj").memory_s < plain.part("o_proj").memory_s / 3


def test_kernels_of_experts_were_timed_with_the_scales_of_kimi_k2(tmp_path: Path) -> None:
    """Its groups of 32 are those of the measured experts in int4, so they add nothing."""

    def experts(stated: dict[str, Any] | None, **values: Any) -> float:
        step = step_of(stated, tmp_path, "qwen3-30b-a3b", gpu="h200", **values)
        return float(step.part("experts").seconds)

    of_groups = {size: experts(compressed(4, "int", group_size=size)) for size in (32, 64, 128)}
    assert of_groups[32] > of_groups[64] > of_groups[128]
    assert experts(None, weight_dtype="int4") == of_groups[32]


def test_gpt_fast_reads_as_many_bytes_in_int4_as_its_readme_says() -> None:
    """862.69 GB/s at 196.80 tokens/s: with a scale and a zero point in bf16 per 32 weights."""
    spec = catalog.model("llama-2-7b")
    matrices = spec.parameters - spec.vocab * spec.hidden  # it quantises the LM head, too
    stored = matrices * (0.5 + 4 / 32) + 2 * spec.vocab * spec.hidden
    assert stored == pytest.approx(862.69e9 / 196.80, rel=0.01)
