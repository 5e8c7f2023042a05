"""Exported configurations parse and match the plan."""

import json
import tomllib
from dataclasses import replace

import pytest
from export_plans import (
    DRAFT,
    PLAIN,
    RATES,
    SCHEDULE,
    SELF,
    SERVERS,
    STANDALONE,
    command,
    comment_command,
    flag,
    plan_of,
    with_scenario,
    with_schedule,
)

from perfmodel.acceptance.tokens import tokens_per_round
from perfmodel.errors import ConfigError
from perfmodel.reports.engine_config import ENGINES, export_notes, export_plan, exportability
from perfmodel.reports.export import ExportPlan
from perfmodel.speculation.evidence import evidence
from perfmodel.speculation.gain import gain_value
from perfmodel.speculation.service import service
from perfmodel.units import format_seconds


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


def test_the_longest_request_is_the_users_or_what_the_cache_holds() -> None:
    small = plan_of(batch=1, prompt_tokens=100_000, tp=2, gpu="h200")
    assert small.scenario.target.max_context_tokens == small.served_tokens == 131_072
    tight = plan_of(batch=1, prompt_tokens=20_000, tp=2)  # 70B on two H100
    assert tight.memory_share == 0.91 and 20_256 < tight.served_tokens < 30_000
    given = replace(STANDALONE, longest_tokens=50_000)
    assert flag(command(export_plan(engine="vllm", plan=given)), "--max-model-len") == "50000"
    for tokens in (32_255, 131_073):
        with pytest.raises(ConfigError, match="longest request"):
            replace(STANDALONE, longest_tokens=tokens)


def test_the_users_hub_id_is_exported_as_published() -> None:
    plan = plan_of(target="META-llama/llama-3.1-70B-instruct", **DRAFT)
    assert command(export_plan(engine="vllm", plan=plan))[2] == "meta-llama/Llama-3.1-70B-Instruct"
    stated = tomllib.loads(export_plan(engine="specroof", plan=plan))
    assert stated["target"] == "meta-llama/Llama-3.1-70B-Instruct"
    assert stated["draft"] == "llama-3.1-8b"


def test_a_profile_selects_the_version() -> None:
    older = replace(STANDALONE.scenario.engine, name="vllm-0.23")
    plan = with_scenario(STANDALONE, engine=older)
    text = export_plan(engine="vllm", plan=plan)
    assert text.startswith("# vLLM 0.23, ") and "without CUDA graphs" in text
    assert "varies gamma" in str(exportability(with_schedule(plan))["vllm"])
    assert export_plan(engine="sglang", plan=plan).startswith("# SGLang 0.5, ")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_export_says_if_its_times_are_those_of_another_engine(engine: str) -> None:
    other = replace(STANDALONE.scenario.engine, name="vllm-0.26")
    plan = replace(STANDALONE, scenario=replace(STANDALONE.scenario, engine=other))
    says = "# The predicted times are those of vLLM 0.26, not of SGLang 0.5.\n"
    assert (says in export_plan(engine=engine, plan=plan)) == (engine == "sglang")


def test_a_draft_with_a_shorter_context_is_noted() -> None:
    plan = plan_of(
        target="llama-2-7b-32k",
        draft="llama-68m",
        draft_policy="full",
        tp=1,
        gamma=2,
        batch=1,
        prompt_tokens=16_000,
    )
    text = export_plan(engine="vllm", plan=plan)
    assert "# llama-68m supports 2,048 tokens: beyond them, few of its drafts are accepted" in text
    assert flag(command(text), "--max-model-len") == "16256"
    assert any("2,048 that llama-68m supports" in note for note in plan.scenario.notes)


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
        "max_batch_size": 16,
        "max_num_tokens": 8192,
        "max_seq_len": 131072,
        "dtype": "bfloat16",
        "cuda_graph_config": {"max_batch_size": 16, "enable_padding": "true"},
        "kv_cache_config": {"dtype": "auto", "free_gpu_memory_fraction": 0.9},
        "disable_overlap_scheduler": "true",
        "speculative_config": {
            "decoding_type": "Draft_Target",
            "max_draft_len": 4,
            "speculative_model": "meta-llama/Llama-3.1-8B",
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
        "batch": 16,
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
    assert "# gamma schedule: batch 9 to 12: gamma = 1" in scheduled


@pytest.mark.parametrize("engine", SERVERS)
def test_draft_none_and_gamma_zero_give_the_plain_command(engine: str) -> None:
    plain = export_plan(engine=engine, plan=PLAIN)
    assert "speculative-" not in plain and "speculative_config" not in plain
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


@pytest.mark.parametrize("engine", SERVERS)
def test_an_export_states_what_its_plan_is_based_on(engine: str) -> None:
    lines = export_plan(engine=engine, plan=STANDALONE).splitlines()
    assert f"# {evidence(STANDALONE.scenario).sentence}" in lines


@pytest.mark.parametrize(
    ("engine", "flag"),
    [
        ("vllm", "--kv-transfer-config"),
        ("sglang", "--disaggregation-mode decode"),
        ("tensorrt-llm", "cache_transceiver_config"),
    ],
)
def test_a_decode_pool_says_so_and_what_it_would_do_with_its_own_prompts(
    engine: str, flag: str
) -> None:
    shared = replace(plan_of(draft="eagle3", **RATES), draft_checkpoint="me/eagle3-head")
    pool = replace(plan_of(draft="eagle3", prefill="disaggregated", **RATES), draft_checkpoint="me")
    assert export_notes(engine=engine, plan=shared) == []
    assert "decode pool" not in export_plan(engine=engine, plan=shared)
    what, own = export_notes(engine=engine, plan=pool)
    assert flag in what
    assert format_seconds(float(service(shared.scenario).tpot_s)) in own
    assert f"{gain_value(shared.scenario):.2f}x" in own
    text = export_plan(engine=engine, plan=pool)
    assert {f"# {what}", f"# {own}"} <= set(text.splitlines())


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
    assert tree["speculative_config"]["speculative_model"] == hostile  # type: ignore[index]
    with pytest.raises(ConfigError, match="control characters"):
        with_scenario(STANDALONE, target=replace(spec, hub_id="a\nb"))
