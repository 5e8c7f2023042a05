"""Plans that an engine cannot run are refused with the reason and the mend."""

import tomllib
from dataclasses import replace

import pytest
from export_plans import (
    DRAFT,
    EAGLE3,
    PLAIN,
    SELF,
    SERVERS,
    STANDALONE,
    plan_of,
    with_scenario,
    with_schedule,
)

from perfmodel.catalog.method_acceptance import published_head
from perfmodel.errors import ConfigError
from perfmodel.reports.engine_config import ENGINES, export_plan, exportability
from perfmodel.reports.engine_limits import obstacle
from perfmodel.reports.export import ExportPlan
from perfmodel.scenario_input import parse_scenario
from perfmodel.specs.engine_support import engine_version
from perfmodel.specs.model import ModelSpec


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


def without_id(spec: ModelSpec) -> ModelSpec:
    return replace(spec, hub_id="", source="")


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
