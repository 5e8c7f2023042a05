"""Exported configurations parse, say what the plan says, and refuse what an engine cannot run."""

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

STANDALONE = ExportPlan(
    target="llama-3.1-70b",
    target_hub_id="meta-llama/Llama-3.1-70B",
    draft="llama-3.1-8b",
    draft_hub_id="meta-llama/Llama-3.1-8B",
    draft_policy="full",
    kv_budget_tokens=None,
    sink_tokens=0,
    gamma=4,
    tp=8,
    draft_tp=8,
    batch=64,
    prompt_tokens=32_000,
    output_tokens=256,
    gpu="h100-sxm",
    acceptance_per_position=(0.9, 0.8),
)
SELF = replace(
    STANDALONE, draft="self", draft_hub_id=None, draft_policy="snapkv", kv_budget_tokens=2049
)
PLAIN = replace(STANDALONE, draft="none", draft_hub_id=None, gamma=0, acceptance_per_position=None)
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
    plan = replace(STANDALONE, gamma=1, gamma_schedule=SCHEDULE)
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


def test_specroofs_own_scenario_says_the_plan_in_the_command_lines_words() -> None:
    assert tomllib.loads(export_plan(engine="specroof", plan=SELF)) == {
        "target": "llama-3.1-70b",
        "draft": "self",
        "draft_policy": "snapkv",
        "kv_budget": 2049,
        "gamma": 4,
        "gpu": "h100-sxm",
        "tp": 8,
        "draft_tp": 8,
        "batch": 64,
        "prompt_tokens": 32000,
        "output_tokens": 256,
        "acceptance_per_position": [0.9, 0.8],
        "weight_dtype": "bf16",
        "kv_dtype": "bf16",
        "engine": "specroof",
    }
    one = tomllib.loads(
        export_plan(engine="specroof", plan=replace(SELF, acceptance_per_position=(0.8,)))
    )
    assert one["acceptance"] == 0.8
    scheduled = export_plan(engine="specroof", plan=replace(SELF, gamma_schedule=SCHEDULE))
    assert tomllib.loads(scheduled)["gamma"] == 4
    assert "# gamma schedule: batch 65 to 128: gamma = 1" in scheduled


@pytest.mark.parametrize("engine", SERVERS)
def test_no_draft_and_gamma_zero_are_the_plain_command(engine: str) -> None:
    plain = export_plan(engine=engine, plan=PLAIN)
    assert "speculative-" not in plain and "DraftTarget" not in plain
    without_drafts = replace(SELF, gamma=0)
    assert export_plan(engine=engine, plan=without_drafts) == plain


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("plan", [STANDALONE, PLAIN])
def test_every_text_names_the_engine_and_servers_the_date_of_the_check(
    engine: str, plan: ExportPlan
) -> None:
    first = export_plan(engine=engine, plan=plan).splitlines()[0]
    assert first.startswith(f"# {ENGINES[engine]}")
    assert engine == "specroof" or "checked November 2026" in first


@pytest.mark.parametrize(
    ("change", "refusing", "reason"),
    [
        ({"draft": "self"}, SERVERS, "self-speculation"),
        (
            {"draft_policy": "streamingllm", "kv_budget_tokens": 512},
            SERVERS,
            "no budget is kept",
        ),
        ({"draft_tp": 4}, SERVERS, "draft_tp=4 differs from tp=8"),
        ({"gamma_schedule": SCHEDULE}, ("sglang", "tensorrt-llm"), "schedule of gamma"),
        ({"draft_hub_id": None}, SERVERS, "no hub id or path is known for llama-3.1-8b"),
        ({"target_hub_id": ""}, SERVERS, "no hub id or path is known for llama-3.1-70b"),
        ({"weight_dtype": "int4"}, SERVERS, "quantised beforehand"),
        ({"weight_dtype": "fp8"}, ("tensorrt-llm",), "quantised beforehand"),
        ({"kv_dtype": "int4"}, SERVERS, "no int4 KV cache"),
        ({}, (), ""),
    ],
)
def test_what_an_engine_cannot_run_is_refused_with_the_reason(
    change: dict[str, object], refusing: tuple[str, ...], reason: str
) -> None:
    plan = replace(STANDALONE, **change)  # type: ignore[arg-type]
    matrix = exportability(plan)
    assert {engine for engine, why in matrix.items() if why} == set(refusing)
    for engine in ENGINES:
        if engine in refusing:
            with pytest.raises(ConfigError, match=reason) as refused:
                export_plan(engine=engine, plan=plan)
            assert "\n" not in str(refused.value)
        else:
            assert export_plan(engine=engine, plan=plan).endswith("\n")


def test_fp8_weights_and_cache_become_the_engines_words() -> None:
    plan = replace(STANDALONE, weight_dtype="fp8", kv_dtype="fp8")
    assert flag(command(export_plan(engine="vllm", plan=plan)), "--kv-cache-dtype") == "fp8"
    words = command(export_plan(engine="sglang", plan=plan))
    assert flag(words, "--kv-cache-dtype") == "fp8_e4m3"
    assert flag(words, "--quantization") == "fp8"
    kept = replace(STANDALONE, weight_dtype="fp8")
    assert flag(command(export_plan(engine="vllm", plan=kept)), "--kv-cache-dtype") == "auto"


def test_hostile_names_stay_inside_their_quotes() -> None:
    hostile = 'a b\'; rm -rf "$HOME" #\\'
    plan = replace(STANDALONE, target=hostile, target_hub_id=hostile, draft_hub_id=hostile)
    assert command(export_plan(engine="vllm", plan=plan))[2] == hostile
    assert flag(command(export_plan(engine="sglang", plan=plan)), "--model-path") == hostile
    assert tomllib.loads(export_plan(engine="specroof", plan=plan))["target"] == hostile
    tree = yaml_tree(export_plan(engine="tensorrt-llm", plan=plan))
    assert tree["speculative_config"]["speculative_model_dir"] == hostile  # type: ignore[index]
    with pytest.raises(ConfigError, match="control characters"):
        replace(STANDALONE, target_hub_id="a\nb")


@pytest.mark.parametrize(
    "change",
    [
        {"gamma": -1},
        {"gamma": 1.5},
        {"tp": 0},
        {"batch": True},
        {"draft": "none"},
        {"draft_policy": "window"},
        {"draft_policy": "snapkv", "kv_budget_tokens": None},
        {"acceptance_per_position": (0.9, 1.2)},
        {"acceptance_per_position": ()},
        {"gamma_schedule": ((2, 8, 3),)},
        {"gamma_schedule": ((1, 8, 3), (8, 16, 1))},
        {"gamma_schedule": ((1, 8, -3),)},
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replace(STANDALONE, **change)  # type: ignore[arg-type]


def test_an_unknown_engine_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="vllm"):
        export_plan(engine="vlllm", plan=STANDALONE)
