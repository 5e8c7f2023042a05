"""Exported configurations parse and match the plan; plans that an engine cannot run are refused."""

from __future__ import annotations

import json
import shlex
import tomllib
from dataclasses import replace

import numpy as np
import pytest

from perfmodel.acceptance.tokens import tokens_per_round
from perfmodel.errors import ConfigError
from perfmodel.reports.engine_config import ENGINES, export_plan, exportability
from perfmodel.reports.export import ExportPlan
from perfmodel.scenario_input import parse_scenario
from perfmodel.specs.model import ModelSpec

BASE = {
    "target": "llama-3.1-70b",
    "gpu": "h100-sxm",
    "tp": 8,
    "batch": 64,
    "prompt_tokens": 32_000,
    "output_tokens": 256,
}
RATES = {"gamma": 4, "acceptance_per_position": (0.9, 0.8)}


def plan_of(**values: object) -> ExportPlan:
    scenario = parse_scenario(BASE | values).scenario()
    return ExportPlan.of_scenario(scenario, engine="specroof")


STANDALONE = plan_of(draft="llama-3.1-8b", draft_policy="full", **RATES)
SELF = plan_of(draft="self", draft_policy="snapkv", kv_budget=2049, **RATES)
PLAIN = plan_of()
SCHEDULE = ((1, 64, 3), (65, 128, 1), (129, 512, 0))
SERVERS = ("vllm", "sglang", "tensorrt-llm")


def command(text: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if not line.startswith("#")]
    return shlex.split(line)


def comment_command(text: str) -> list[str]:
    return shlex.split(text.splitlines()[-1].removeprefix("# "))


def flag(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def yaml_tree(text: str) -> dict[str, object]:
    """The YAML subset that is written: one level of nesting, scalars, comments."""
    tree: dict[str, object] = {}
    inner: dict[str, object] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        key, value = line.strip().split(":", 1)
        scalar = value.strip()
        if line.startswith("  "):
            inner[key] = json.loads(scalar) if scalar[0] in '"0123456789' else scalar
        elif scalar:
            tree[key] = json.loads(scalar) if scalar[0] in '"0123456789' else scalar
        else:
            inner = {}
            tree[key] = inner
    return tree


def test_vllm_gets_a_command_with_a_json_config() -> None:
    words = command(export_plan(engine="vllm", plan=STANDALONE))
    assert words[:3] == ["vllm", "serve", "meta-llama/Llama-3.1-70B"]
    assert flag(words, "--tensor-parallel-size") == "8"
    assert flag(words, "--max-model-len") == "32256"
    assert json.loads(flag(words, "--speculative-config")) == {
        "method": "draft_model",
        "model": "meta-llama/Llama-3.1-8B",
        "num_speculative_tokens": 4,
        "draft_tensor_parallel_size": 8,
    }


def test_vllm_takes_the_gamma_schedule_and_enough_tokens_for_it() -> None:
    one = plan_of(draft="llama-3.1-8b", draft_policy="full", **(RATES | {"gamma": 1}))
    plan = replace(one, gamma_schedule=SCHEDULE)
    config = json.loads(
        flag(command(export_plan(engine="vllm", plan=plan)), "--speculative-config")
    )
    assert config["num_speculative_tokens_per_batch_size"] == [
        [1, 64, 3],
        [65, 128, 1],
        [129, 512, 0],
    ]
    assert config["num_speculative_tokens"] == 3


def test_vllms_synthetic_rates_are_unconditional_one_per_draft() -> None:
    words = comment_command(export_plan(engine="vllm", plan=STANDALONE))
    config = json.loads(flag(words, "--speculative-config"))
    assert config["rejection_sample_method"] == "synthetic"
    rates = config["synthetic_acceptance_rates"]
    np.testing.assert_allclose(rates, [0.9, 0.72, 0.576, 0.4608])
    assert 1 + sum(rates) == pytest.approx(float(tokens_per_round((0.9, 0.8), 4)))


def test_sglang_gets_the_standalone_algorithm() -> None:
    text = export_plan(engine="sglang", plan=STANDALONE)
    words = command(text)
    assert flag(words, "--speculative-algorithm") == "STANDALONE"
    assert flag(words, "--speculative-draft-model-path") == "meta-llama/Llama-3.1-8B"
    assert flag(words, "--speculative-num-steps") == "4"
    assert flag(words, "--speculative-num-draft-tokens") == "5"
    simulated = comment_command(text)
    name, value = simulated[0].split("=")
    assert name == "SGLANG_SIMULATE_ACC_LEN"
    assert float(value) == pytest.approx(float(tokens_per_round((0.9, 0.8), 4)), abs=1e-4)
    assert simulated[2:] == words


def test_tensorrt_llm_gets_yaml() -> None:
    text = export_plan(engine="tensorrt-llm", plan=STANDALONE)
    assert yaml_tree(text) == {
        "tensor_parallel_size": 8,
        "max_batch_size": 64,
        "max_seq_len": 32256,
        "dtype": "bfloat16",
        "kv_cache_config": {"dtype": "auto"},
        "speculative_config": {
            "decoding_type": "DraftTarget",
            "max_draft_len": 4,
            "speculative_model_dir": "meta-llama/Llama-3.1-8B",
        },
    }
    assert "TLLM_SPEC_DECODE_FORCE_NUM_ACCEPTED_TOKENS=3" in text  # mean 2.657


def test_a_specroof_scenario_states_the_plan_in_the_keys_of_the_command_line() -> None:
    assert tomllib.loads(export_plan(engine="specroof", plan=SELF)) == {
        "target": "llama-3.1-70b",
        "draft": "self",
        "draft_policy": "snapkv",
        "kv_budget": 2049,
        "gamma": 4,
        "gpu": "h100-sxm",
        "machine": "hgx-h100",
        "tp": 8,
        "draft_tp": 8,
        "batch": 64,
        "prompt_tokens": 32000,
        "output_tokens": 256,
        "prefill": "shared",
        "prefix_hit_rate": 0.0,
        "acceptance_per_position": [0.9, 0.8],
        "weight_dtype": "bf16",
        "kv_dtype": "bf16",
        "engine": "specroof",
    }
    one = plan_of(draft="self", gamma=4, acceptance=0.8)
    assert tomllib.loads(export_plan(engine="specroof", plan=one))["acceptance"] == 0.8
    scheduled = export_plan(engine="specroof", plan=replace(SELF, gamma_schedule=SCHEDULE))
    assert tomllib.loads(scheduled)["gamma"] == 4
    assert "# gamma schedule: batch 65 to 128: gamma = 1" in scheduled


@pytest.mark.parametrize("engine", SERVERS)
def test_draft_none_and_gamma_zero_give_the_plain_command(engine: str) -> None:
    plain = export_plan(engine=engine, plan=PLAIN)
    assert "speculative-" not in plain and "DraftTarget" not in plain
    without_drafts = plan_of(draft="self", gamma=0)
    assert export_plan(engine=engine, plan=without_drafts) == plain


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("plan", [STANDALONE, PLAIN])
def test_every_text_starts_with_the_engine_and_the_date_of_the_check(
    engine: str, plan: ExportPlan
) -> None:
    first = export_plan(engine=engine, plan=plan).splitlines()[0]
    assert first.startswith(f"# {ENGINES[engine]}")
    assert engine == "specroof" or "checked November 2026" in first


def without_id(spec: ModelSpec) -> ModelSpec:
    return replace(spec, hub_id="", source="")


def with_schedule(plan: ExportPlan) -> ExportPlan:
    return replace(plan, gamma_schedule=SCHEDULE)


def with_scenario(plan: ExportPlan, **changes: object) -> ExportPlan:
    return replace(plan, scenario=replace(plan.scenario, **changes))  # type: ignore[arg-type]


DRAFT = {"draft": "llama-3.1-8b", "draft_policy": "full", **RATES}
WINDOW = {"draft_policy": "streamingllm", "kv_budget": 512}
NO_DRAFT_ID = with_scenario(STANDALONE, draft=without_id(STANDALONE.scenario.draft))
NO_TARGET_ID = with_scenario(STANDALONE, target=without_id(STANDALONE.scenario.target))


@pytest.mark.parametrize(
    ("plan", "refusing", "reason"),
    [
        (SELF, SERVERS, "self-speculation"),
        (plan_of(**(DRAFT | WINDOW)), SERVERS, "without a KV budget"),
        (plan_of(**DRAFT, draft_tp=4), SERVERS, "draft_tp=4 differs from tp=8"),
        (with_schedule(STANDALONE), ("sglang", "tensorrt-llm"), "varies gamma with the batch"),
        (NO_DRAFT_ID, SERVERS, "the hub id of llama-3.1-8b is not known"),
        (NO_TARGET_ID, SERVERS, "the hub id of llama-3.1-70b is not known"),
        (plan_of(**DRAFT, weight_dtype="int4"), SERVERS, "from a quantised checkpoint"),
        (plan_of(**DRAFT, weight_dtype="fp8"), ("tensorrt-llm",), "from a quantised checkpoint"),
        (plan_of(**DRAFT, kv_dtype="int4"), SERVERS, "no int4 KV cache"),
        (STANDALONE, (), ""),
    ],
)
def test_what_an_engine_cannot_run_is_refused_with_the_reason(
    plan: ExportPlan, refusing: tuple[str, ...], reason: str
) -> None:
    matrix = exportability(plan)
    assert {engine for engine, why in matrix.items() if why} == set(refusing)
    for engine in ENGINES:
        if engine in refusing:
            with pytest.raises(ConfigError, match=reason) as refused:
                export_plan(engine=engine, plan=plan)
            assert "\n" not in str(refused.value)
        else:
            assert export_plan(engine=engine, plan=plan).endswith("\n")


def test_fp8_weights_and_cache_are_written_as_each_engine_names_them() -> None:
    plan = plan_of(**DRAFT, weight_dtype="fp8", kv_dtype="fp8")
    assert flag(command(export_plan(engine="vllm", plan=plan)), "--kv-cache-dtype") == "fp8"
    words = command(export_plan(engine="sglang", plan=plan))
    assert flag(words, "--kv-cache-dtype") == "fp8_e4m3"
    assert flag(words, "--quantization") == "fp8"
    kept = plan_of(**DRAFT, weight_dtype="fp8")
    assert flag(command(export_plan(engine="vllm", plan=kept)), "--kv-cache-dtype") == "auto"


def test_hostile_names_are_quoted() -> None:
    hostile = 'a b\'; rm -rf "$HOME" #\\'
    spec = replace(STANDALONE.scenario.target, name=hostile, hub_id=hostile)
    plan = with_scenario(STANDALONE, target=spec, draft=spec)
    assert command(export_plan(engine="vllm", plan=plan))[2] == hostile
    assert flag(command(export_plan(engine="sglang", plan=plan)), "--model-path") == hostile
    assert tomllib.loads(export_plan(engine="specroof", plan=plan))["target"] == hostile
    tree = yaml_tree(export_plan(engine="tensorrt-llm", plan=plan))
    assert tree["speculative_config"]["speculative_model_dir"] == hostile  # type: ignore[index]
    with pytest.raises(ConfigError, match="control characters"):
        with_scenario(STANDALONE, target=replace(spec, hub_id="a\nb"))


@pytest.mark.parametrize(
    "schedule", [((2, 8, 3),), ((1, 8, 3), (8, 16, 1)), ((1, 8, -3),), ((1, 0, 3),)]
)
def test_schedule_rows_must_follow_one_another(schedule: tuple[tuple[int, int, int], ...]) -> None:
    with pytest.raises(ConfigError, match="gamma_schedule row"):
        replace(STANDALONE, gamma_schedule=schedule)


def test_an_unknown_engine_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="vllm"):
        export_plan(engine="vlllm", plan=STANDALONE)


def test_expert_parallelism_is_exported_to_specroof_only() -> None:
    plan = plan_of(target="qwen3-30b-a3b", tp=4, ep=2, batch=8)
    reasons = exportability(plan)
    assert reasons.pop("specroof") is None
    assert all(reason and "ep=1" in reason for reason in reasons.values())
    assert tomllib.loads(export_plan(engine="specroof", plan=plan))["ep"] == 2
