"""Exported configurations parse and match the plan; plans that an engine cannot run are refused."""

from __future__ import annotations

import json
import shlex
import tomllib
from dataclasses import replace
from itertools import pairwise, product, takewhile

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from perfmodel.acceptance.tokens import tokens_per_round
from perfmodel.catalog.method_acceptance import published_head
from perfmodel.errors import ConfigError
from perfmodel.reports.engine_config import ENGINES, export_notes, export_plan, exportability
from perfmodel.reports.engine_limits import obstacle
from perfmodel.reports.export import ExportPlan
from perfmodel.scenario_input import parse_scenario
from perfmodel.specs.engine_support import engine_version
from perfmodel.specs.model import ModelSpec
from perfmodel.speculation.evidence import evidence
from perfmodel.speculation.gain import gain_value
from perfmodel.speculation.service import service
from perfmodel.units import format_seconds

BASE = {
    "target": "llama-3.1-70b",
    "gpu": "h100-sxm",
    "tp": 8,
    "batch": 16,
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
EAGLE3 = replace(plan_of(draft="eagle3", **RATES), draft_checkpoint="me/eagle3-head")
SCHEDULE = ((1, 8, 3), (9, 12, 1), (13, 512, 0))
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
    assert flag(words, "--max-model-len") == "131072"  # the models' limit, not the mean of 32,256
    assert json.loads(flag(words, "--speculative-config")) == {
        "method": "draft_model",
        "model": "meta-llama/Llama-3.1-8B",
        "num_speculative_tokens": 4,
        "draft_tensor_parallel_size": 8,
    }


def scheduled_command(text: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if "per_batch_size" in line]
    return shlex.split(line.removeprefix("# "))


def test_vllm_gets_the_gamma_of_the_plan_and_its_schedule_as_an_alternative() -> None:
    one = plan_of(draft="llama-3.1-8b", draft_policy="full", **(RATES | {"gamma": 2}))
    plan = replace(one, gamma_schedule=SCHEDULE)
    text = export_plan(engine="vllm", plan=plan)
    assert command(text) == command(export_plan(engine="vllm", plan=one))
    config = json.loads(flag(scheduled_command(text), "--speculative-config"))
    assert config["num_speculative_tokens_per_batch_size"] == [
        [1, 8, 3],
        [9, 12, 1],
        [13, 16, 0],
    ]
    assert config["num_speculative_tokens"] == 3
    assert "γ by batch has a cost in vLLM 0.26" in text
    head = replace(plan_of(draft="dflash", **RATES), draft_checkpoint="me/head")
    text = export_plan(engine="vllm", plan=replace(head, gamma_schedule=SCHEDULE))
    assert "with CUDA graphs for every batch" in text
    same = replace(one, gamma_schedule=((1, 32, 3), (33, 64, 1)))  # beyond the batch
    assert "per_batch_size" not in export_plan(engine="vllm", plan=same)


def test_a_schedule_that_vllm_cannot_start_with_is_left_out() -> None:
    mtp = plan_of(target="deepseek-v3", draft="mtp", gpu="h200", **RATES)
    heads = [EAGLE3, replace(mtp, draft_checkpoint="me/mtp")]
    for plan, rows in product(heads, [((1, 5, 4), (6, 16, 3)), ((1, 5, 4), (6, 16, 1))]):
        text = export_plan(engine="vllm", plan=replace(plan, gamma_schedule=rows))
        assert "per_batch_size" not in text and "γ by batch is left out" in text
        assert command(text) == command(export_plan(engine="vllm", plan=plan))


def test_vllms_synthetic_rates_are_unconditional_one_per_draft() -> None:
    words = comment_command(export_plan(engine="vllm", plan=STANDALONE))
    config = json.loads(flag(words, "--speculative-config"))
    assert config["rejection_sample_method"] == "synthetic"
    rates = config["synthetic_acceptance_rates"]
    np.testing.assert_allclose(rates, [0.9, 0.72, 0.576, 0.4608])
    assert 1 + sum(rates) == pytest.approx(float(tokens_per_round((0.9, 0.8), 4)))


def graph_sizes(words: list[str]) -> list[int]:
    """The sizes of CUDA graphs that a command sets, in tokens."""
    if "--cudagraph-capture-sizes" not in words:
        return [int(flag(words, "--max-cudagraph-capture-size"))]
    after = words[words.index("--cudagraph-capture-sizes") + 1 :]
    return [int(word) for word in takewhile(str.isdecimal, after)]


@pytest.mark.parametrize("gamma", [0, 1, 2, 3, 4, 5, 6, 7, 10, 16])
@pytest.mark.parametrize("batch", [1, 3, 17, 64, 102, 128, 300])
def test_every_round_up_to_the_batch_replays_a_full_graph(batch: int, gamma: int) -> None:
    draft = {"draft": "llama-3.1-8b", "draft_policy": "full", "gamma": gamma} if gamma else {}
    plan = plan_of(**draft, batch=batch, prompt_tokens=100, output_tokens=28)
    words = command(export_plan(engine="vllm", plan=plan))
    assert int(flag(words, "--max-num-seqs")) == batch
    sizes = graph_sizes(words)
    assert sizes == sorted(set(sizes)) and sizes[-1] <= int(flag(words, "--max-num-batched-tokens"))
    assert misses(sizes, [(1, batch, gamma)]) == []
    assert misses(sizes, [(1, batch, 0)]) == []  # a draft step


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(1, 200), st.integers(0, 10), min_size=2, max_size=5))
def test_every_round_of_a_schedule_replays_a_full_graph(gammas: dict[int, int]) -> None:
    assume(len(set(gammas.values())) > 1)
    ends = sorted(gammas)
    rows = [(low + 1, high, gammas[high]) for low, high in pairwise([0, *ends])]
    plan = plan_of(draft="dflash", **RATES, batch=ends[-1], prompt_tokens=100, output_tokens=28)
    plan = replace(plan, draft_checkpoint="me/head", gamma_schedule=tuple(rows))
    sizes = graph_sizes(scheduled_command(export_plan(engine="vllm", plan=plan)))
    drafts = (1, ends[-1], max(gammas.values()))  # DFlash's own pass
    assert misses(sizes, [*rows, drafts]) == []


def misses(sizes: list[int], rows: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """The batches, with their γ, of which γ + 1 tokens per sequence miss a full graph.

    The rule of vLLM 0.26's `CudaGraphManager`.
    """
    batch, lengths = rows[-1][1], {gamma + 1 for _, _, gamma in rows}
    graphs = {(-(-size // length) * length, length) for size in sizes for length in lengths}
    graphs = {(size, n) for size, n in graphs if size <= min(batch * n, sizes[-1])}
    captured = sorted({size for size, _ in graphs} | {*sizes})
    missed = []
    for low, high, gamma in rows:
        for running in range(low, high + 1):
            smallest = next(size for size in captured if size >= running * (gamma + 1))
            if (smallest, gamma + 1) not in graphs:
                missed.append((running, gamma))
    return missed


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


def test_a_prediction_notes_what_the_version_of_its_profile_cannot_run() -> None:
    engine = replace(SELF.scenario.engine, name="vllm-0.26")
    own = replace(SELF.scenario, engine=engine)
    assert own.engine_obstacle in own.notes
    assert own.engine_obstacle == (
        "vLLM 0.26 cannot run this plan: it has no self-speculation with a KV budget"
    )
    for runnable in (STANDALONE, EAGLE3, PLAIN):
        assert replace(runnable.scenario, engine=engine).engine_obstacle is None
    assert SELF.scenario.engine_obstacle is None  # engine specroof


@pytest.mark.parametrize(
    "target, draft, engine, runs",
    [
        ("gemma-3-27b", "eagle3", "vllm-0.26", False),
        ("gemma-3-27b", "eagle3", "vllm-0.23", False),
        ("mixtral-8x7b", "dflash", "vllm-0.26", False),
        ("mixtral-8x7b", "ngram", "vllm-0.26", True),
        ("qwen3-30b-a3b", "eagle3", "vllm-0.26", True),
    ],
)
def test_heads_need_a_target_that_gives_hidden_states(
    target: str, draft: str, engine: str, runs: bool
) -> None:
    values = {"target": target, "draft": draft, "gamma": 2, "gpu": "h200", "engine": engine}
    reason = parse_scenario(values).scenario().engine_obstacle
    assert (reason is None) == runs and ("hidden states" in (reason or "") or runs)


@pytest.mark.parametrize(
    "engine, flag", [("vllm", '"model": "{}"'), ("sglang", "--speculative-draft-model-path {}")]
)
def test_the_checkpoint_of_mtp_layers_is_that_of_the_target_that_has_them(
    engine: str, flag: str
) -> None:
    own = plan_of(target="deepseek-v3", gpu="h200", draft="mtp", gamma=1)
    assert flag.format("deepseek-ai/DeepSeek-V3") in export_plan(engine=engine, plan=own)
    other = replace(own, draft_checkpoint="me/mtp")
    assert flag.format("me/mtp") in export_plan(engine=engine, plan=other)
    without = plan_of(draft="mtp", gamma=1)
    with pytest.raises(ConfigError, match="checkpoint of the MTP draft is not known"):
        export_plan(engine=engine, plan=without)


HEADS = {"vllm": "eagle3", "sglang": "EAGLE3", "tensorrt-llm": "Eagle3"}


@pytest.mark.parametrize("engine", SERVERS)
def test_a_head_needs_a_checkpoint(engine: str) -> None:
    assert HEADS[engine] in (text := export_plan(engine=engine, plan=EAGLE3))
    assert "me/eagle3-head" in text
    with pytest.raises(ConfigError, match="checkpoint of the EAGLE-3 draft is not known"):
        export_plan(engine=engine, plan=replace(EAGLE3, draft_checkpoint=""))


def test_a_checkpoint_replaces_the_draft_models_id_and_is_unused_by_lookups() -> None:
    plan = replace(STANDALONE, draft_checkpoint="me/draft")
    assert '"model": "me/draft"' in export_plan(engine="vllm", plan=plan)
    lookup = replace(plan_of(draft="ngram", gamma=2), draft_checkpoint="me/draft")
    assert "me/draft" not in export_plan(engine="vllm", plan=lookup)


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


def without_id(spec: ModelSpec) -> ModelSpec:
    return replace(spec, hub_id="", source="")


def with_schedule(plan: ExportPlan) -> ExportPlan:
    return replace(plan, gamma_schedule=SCHEDULE)


def with_scenario(plan: ExportPlan, **changes: object) -> ExportPlan:
    return replace(plan, scenario=replace(plan.scenario, **changes))  # type: ignore[arg-type]


DRAFT = {"draft": "llama-3.1-8b", "draft_policy": "full", **RATES}
WINDOW = {"draft_policy": "streamingllm", "kv_budget": 512}
NO_DRAFT_ID = with_scenario(STANDALONE, draft=without_id(STANDALONE.scenario.draft))
OTHER_VOCABULARY = plan_of(
    draft="llama-68m",
    draft_policy="full",
    gamma=2,
    tp=1,
    gpu="h200",
    target="llama-3.1-8b",
    batch=2,
)
CONFIG_ONLY = with_scenario(
    STANDALONE, draft=replace(STANDALONE.scenario.draft, hub_id="", source="some/my.json")
)
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
        (OTHER_VOCABULARY, SERVERS, "32,000 tokens instead of 128,256"),
        (CONFIG_ONLY, SERVERS, "my.json only describes the draft"),
        (plan_of(prompt_tokens=131_000), SERVERS, "exceed the 131,072"),
        (plan_of(batch=64), SERVERS, "98% of the memory|at most 98%"),
        (plan_of(draft="suffix", gamma=2), ("sglang", "tensorrt-llm", "specroof"), "built-in"),
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
    assert tree["speculative_config"]["speculative_model"] == hostile  # type: ignore[index]
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


def test_expert_parallelism_is_exported_as_engines_divide_experts() -> None:
    """vLLM divides them among all ranks or none, SGLang among any number of groups."""
    groups, ranks = (plan_of(target="qwen3-30b-a3b", tp=4, ep=ep, batch=8) for ep in (2, 4))
    reasons = exportability(groups)
    assert reasons["specroof"] is None and reasons["sglang"] is None
    assert "ep=1 or ep=4" in str(reasons["vllm"]) and "ep=1" in str(reasons["tensorrt-llm"])
    assert tomllib.loads(export_plan(engine="specroof", plan=groups))["ep"] == 2
    assert "--tp-size 4 --ep-size 2 " in export_plan(engine="sglang", plan=groups)
    vllm = export_plan(engine="vllm", plan=ranks)
    assert "--tensor-parallel-size 4 --enable-expert-parallel " in vllm
    assert "where the prediction has one and two all-to-alls" in vllm
    whole = plan_of(target="qwen3-30b-a3b", tp=4, batch=8)
    assert "expert-parallel" not in export_plan(engine="vllm", plan=whole)
    divided = plan_of(target="qwen3-30b-a3b", tp=4, ep=4, dp=2, prefill="disaggregated", batch=8)
    reasons = exportability(divided)
    assert all("dp=1" in str(reasons[engine]) for engine in reasons if engine != "specroof")


def test_a_missing_checkpoint_is_suggested_where_its_acceptance_is_published() -> None:
    for target in ("llama-3.1-8b", "qwen2.5-7b"):
        values = {"target": target, "draft": "eagle3", "gamma": 3, "engine": "vllm", "gpu": "h200"}
        scenario = parse_scenario({**values, "batch": 1}).scenario()
        reason = obstacle(engine_version("vllm"), ExportPlan(scenario=scenario)) or ""
        head = published_head(target, "eagle3")
        assert "--draft-checkpoint" in reason and head in reason
        assert bool(head) == ("such as" in reason) == (target == "llama-3.1-8b")
