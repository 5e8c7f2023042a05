"""Bytes of quantised checkpoints, and the time that reading their scales takes."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from meta_modules import module_of
from quantised_configs import compressed, write

from perfmodel import catalog, estimate, parse_scenario


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
