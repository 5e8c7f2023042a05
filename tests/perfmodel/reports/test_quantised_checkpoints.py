"""Quantised checkpoints are exported in the types that they state, and in no others."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perfmodel import catalog, parse_scenario
from perfmodel.errors import ConfigError
from perfmodel.planning.find_plan import find_plan
from perfmodel.reports import ExportPlan, export_plan

SERVERS = ("vllm", "sglang", "tensorrt-llm")
LLAMA = catalog.model_config("llama-3.1-8b")
STORED: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8"},
    "fp8_block": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "int4": {"quant_method": "awq", "bits": 4},
    "nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
}


def plan_of(**values: Any) -> ExportPlan:
    stated = {"gpu": "h200", "tp": 8, "batch": 4, "prompt_tokens": 8000} | values
    return ExportPlan.of_scenario(parse_scenario(stated).scenario(), engine="vllm")


def words(engine: str, plan: ExportPlan) -> list[str]:
    lines = export_plan(engine=engine, plan=plan).splitlines()
    return shlex.split(next(line for line in lines if not line.startswith("#")))


def folder(path: Path, dtype: str) -> str:
    (path / "config.json").write_text(json.dumps(LLAMA | {"quantization_config": STORED[dtype]}))
    return str(path)


@pytest.mark.parametrize("engine", SERVERS)
@pytest.mark.parametrize("target", ["deepseek-v3", "deepseek-ai/DeepSeek-V3", "gpt-oss-120b"])
def test_a_catalog_checkpoint_runs_in_its_own_types(engine: str, target: str) -> None:
    text = export_plan(engine=engine, plan=plan_of(target=target))
    assert catalog.model(target).hub_id in text and "quantization" not in text


@pytest.mark.parametrize("engine", SERVERS)
@pytest.mark.parametrize("dtype", STORED)
def test_a_folder_runs_in_its_own_type_and_no_other(
    engine: str, dtype: str, tmp_path: Path
) -> None:
    path = folder(tmp_path, dtype)
    text = export_plan(engine=engine, plan=plan_of(target=path))
    assert path in text and "quantization" not in text
    with pytest.raises(ConfigError, match=f"quantised checkpoint in {dtype}"):
        export_plan(engine=engine, plan=plan_of(target=path, weight_dtype="bf16"))


# The experts of this model are 1,536 wide, and its KV heads 128; vLLM's recipe uses expert
# parallelism on 8 GPUs, because 1,536 / 8 is not a multiple of 128.
@pytest.mark.parametrize(("tp", "runs"), [(2, True), (4, True), (8, False)])
def test_blocks_of_weights_are_not_divided_among_ranks(tp: int, runs: bool, tmp_path: Path) -> None:
    stated = catalog.model_config("qwen3-235b-a22b") | {"quantization_config": STORED["fp8_block"]}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    plan = plan_of(target=str(tmp_path), tp=tp, gpu="b200")
    notes = "".join(plan.scenario.notes)
    assert ("use tp=1, 2 or 4" in notes) is not runs
    for engine in ("vllm", "sglang"):
        if runs:
            assert str(tmp_path) in export_plan(engine=engine, plan=plan)
        else:
            with pytest.raises(ConfigError, match="192 wide on each of 8 ranks; use tp=1, 2 or 4"):
                export_plan(engine=engine, plan=plan)
    groups = plan_of(target=str(tmp_path), gpu="b200", tp=tp, ep=tp)
    assert "blocks of" not in "".join(groups.scenario.notes)
    assert "--enable-expert-parallel" in export_plan(engine="vllm", plan=groups)


def test_no_plan_that_divides_blocks_is_recommended_for_an_engine(tmp_path: Path) -> None:
    stated = catalog.model_config("qwen3-235b-a22b") | {"quantization_config": STORED["fp8_block"]}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    values = {"target": str(tmp_path), "gpu": "b200", "batch": 8, "prompt_tokens": 8000}
    answer = find_plan(values | {"tp": [4, 8]}, runs_on="vllm")
    assert answer.best.scenario.tp == 4
    with pytest.raises(ConfigError, match="use tp=1, 2 or 4"):
        find_plan(values | {"tp": [8]}, runs_on="vllm")


def test_only_an_unquantised_checkpoint_is_turned_into_fp8(tmp_path: Path) -> None:
    draft = {"draft": "llama-3.2-1b", "draft_policy": "full", "gamma": 2}
    online = words("sglang", plan_of(target="llama-3.1-8b", weight_dtype="fp8", **draft))
    stored = words("sglang", plan_of(target=folder(tmp_path, "fp8"), **draft))
    flags = {"--quantization", "--speculative-draft-model-quantization"}
    assert flags <= set(online) and not flags & set(stored)


def test_a_head_states_its_type_unless_it_is_part_of_the_checkpoint() -> None:
    def head(**values: Any) -> ExportPlan:
        return replace(plan_of(target="deepseek-v3", gamma=2, **values), draft_checkpoint="me/head")

    assert "me/head" in export_plan(engine="vllm", plan=head(draft="mtp"))
    assert "me/head" in export_plan(engine="vllm", plan=head(draft="eagle3", draft_dtype="bf16"))
    inherits = head(draft="eagle3")  # a published head is in bf16
    assert inherits.scenario.draft_types.weights == "bf16"
    assert "me/head" in export_plan(engine="vllm", plan=inherits)


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
def test_a_checkpoint_in_float16_runs_in_fp16_unless_another_type_is_stated(
    field: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {field: "float16"}))
    target = str(tmp_path)
    plan = plan_of(target=target, draft="llama-3.2-1b", draft_policy="full")
    types, draft = plan.scenario.target_types, plan.scenario.draft_types
    assert {types.weights, types.kv, draft.weights, draft.kv} == {"fp16"}
    assert "--dtype float16" in " ".join(words("vllm", plan))
    for stated, weights, kv in (("bf16", "bf16", "bf16"), ("fp8", "fp8", "bf16")):
        plan = plan_of(target=target, weight_dtype=stated)
        assert (plan.scenario.weight_dtype, plan.scenario.kv_dtype) == (weights, kv)
        assert "--dtype bfloat16" in " ".join(words("vllm", plan))


def test_a_checkpoint_in_float32_is_assumed_to_be_cast(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"torch_dtype": "float32"}))
    scenario = plan_of(target=str(tmp_path)).scenario
    assert scenario.weight_dtype == "bf16"
    assert any("in float32" in note for note in scenario.notes)
    assert not any("in float32" in note for note in plan_of(target="llama-3.1-8b").scenario.notes)
