"""Only plans that the engine's version runs are recommended, with a better one in principle."""

from dataclasses import replace
from typing import Any

import pytest
from strategies import a_scenario

from perfmodel import Acceptance, ConfigError, NoFeasiblePlan, Scenario, find_plan
from perfmodel.catalog.engines import engine_names
from perfmodel.planning.recommend import recommend
from perfmodel.planning.search import search
from perfmodel.specs import named_version, parse_slo
from perfmodel.specs.engine_support import VERSIONS

CHOICES = [("self", "streamingllm"), ("llama-3.2-1b", "full"), ("llama-3.2-1b", "streamingllm")]
WORK: dict[str, Any] = {"gpu": "h100-sxm", "batch": 64, "prefill": "disaggregated"}
CAPPED = {"budgets": (512,), "draft_tps": (1, 8)}


def on_vllm(**values: Any) -> Scenario:
    """A scenario with the overheads of engine ideal, under the name of a version of vLLM."""
    scenario = a_scenario(**WORK, **values, engine="kernels")
    return replace(scenario, engine=replace(scenario.engine, name="vllm-0.26"))


def without_limits(scenario: Scenario) -> Scenario:
    """The same scenario with a profile that names no known version."""
    return replace(scenario, engine=replace(scenario.engine, name="vllm-99"))


@pytest.fixture(scope="module")
def standalone() -> Scenario:
    values = {"draft": "llama-3.2-1b", "draft_policy": "full", "tp": 8}
    return replace(on_vllm(**values), acceptance=Acceptance.from_alpha(0.8))


def test_only_runnable_plans_are_candidates_and_none_is_lost(standalone: Scenario) -> None:
    options: dict[str, Any] = {"choices": CHOICES, "tps": [4, 8], **CAPPED}
    limited, free = search(standalone, **options), search(without_limits(standalone), **options)
    assert limited.not_runnable and not free.not_runnable
    assert all(c.scenario.engine_obstacle is None for c in limited.candidates)
    assert all(u.candidate.scenario.engine_obstacle is None for u in limited.unmeasured)
    assert all(c.scenario.engine_obstacle for c in limited.not_runnable)
    every = [*limited.candidates, *limited.not_runnable]
    assert sorted(c.tpot_s for c in every) == sorted(c.tpot_s for c in free.candidates)


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_the_gap_is_that_to_the_choice_without_the_restriction(
    standalone: Scenario, objective: str
) -> None:
    options: dict[str, Any] = {"choices": CHOICES, "objective": objective, **CAPPED}
    answer = recommend(search(standalone, **options))
    free = recommend(search(without_limits(standalone), **options))
    assert answer.best.scenario.engine_obstacle is None
    gap, best = answer.engine_gap, answer.best
    assert gap is not None and free.engine_gap is None and free.in_principle == ""
    assert gap.ideal.label == free.best.label
    if objective == "latency":
        ratio = best.tpot_s / free.best.tpot_s
    else:
        ratio = free.best.throughput_per_gpu / best.throughput_per_gpu
    assert gap.cost_percent == pytest.approx(100.0 * (ratio - 1.0)) and gap.cost_percent > 0.0
    measure = "speed per token" if objective == "latency" else "throughput"
    start = f"In principle, {gap.ideal.label}, TP 8, gives {gap.cost_percent:.1f} % more {measure}"
    assert answer.in_principle.startswith(start) and answer.in_principle in answer.sentence
    assert "but vLLM 0.26 cannot run this plan: it has no self-speculation" in answer.in_principle


def test_a_draft_on_fewer_ranks_than_its_target_is_excluded(standalone: Scenario) -> None:
    options: dict[str, Any] = {"choices": [("llama-3.2-1b", "full")], "draft_tps": (1, 2, 8)}
    result = search(standalone, **options)
    drafts = [c.scenario for c in result.candidates if c.scenario.plan.speculates]
    assert drafts and {s.draft_tp for s in drafts} == {8}
    assert {c.scenario.draft_tp for c in result.not_runnable} == {1, 2}
    assert recommend(result).best.scenario.draft_tp == 8


def test_without_a_draft_that_runs_the_answer_is_plain_decoding_with_the_gap() -> None:
    result = search(on_vllm(tp=8), choices=[("self", "streamingllm")], budgets=(512,))
    answer = recommend(result)
    assert not answer.speculates and answer.studied is None and answer.engine_gap is not None
    assert answer.answer == (
        "Do not speculate: vLLM 0.26 runs none of the draft choices: it has no self-speculation "
        "with a KV budget."
    )
    assert answer.engine_gap.ideal.scenario.plan.is_self
    assert answer.engine_gap.cost_percent == pytest.approx(
        100.0 * (answer.engine_gap.ideal.gain - 1.0)
    )


def test_a_stated_engine_restricts_any_profile_and_adds_its_drafts(standalone: Scenario) -> None:
    options: dict[str, Any] = {"choices": CHOICES, "tps": [8], **CAPPED}
    named = search(standalone, **options)
    stated = search(without_limits(standalone), runs_on=named_version("vllm"), **options)
    assert [c.tpot_s for c in stated.candidates] == [c.tpot_s for c in named.candidates]
    assert [c.tpot_s for c in stated.not_runnable] == [c.tpot_s for c in named.not_runnable]
    gaps = [recommend(result).engine_gap for result in (named, stated)]
    assert all(gap and gap.obstacle.startswith("vLLM 0.26 cannot") for gap in gaps)
    short = {"target": "llama-3.1-8b", "tp": 8, "prompt_tokens": 4000}
    answer = find_plan(WORK | short | {"engine": "specroof"}, runs_on="vllm")
    assert answer.best.scenario.plan.draft == "eagle3"
    assert "times are those of engine specroof" in answer.notes[0]
    assert "whose times are not those of vLLM 0.26" in answer.evidence.sentence
    assert named_version("vllm-0.23").version == "0.23"
    for name in ("foo", "vllm-9.9"):
        with pytest.raises(ConfigError):
            find_plan({"target": "llama-3.1-8b"}, runs_on=name)


@pytest.mark.parametrize("name", ["vllm", "vllm-0.23"])
def test_without_another_profile_the_times_are_those_of_the_stated_engine(name: str) -> None:
    values = {"target": "llama-3.1-8b", "gpu": "h200", "tp": 1, "batch": 8, "prompt_tokens": 4000}
    values |= {"draft": "llama-3.2-1b", "acceptance": 0.8}
    answer = find_plan(values, runs_on=name)
    assert answer.evidence == find_plan(values | {"engine": name}).evidence
    assert answer.answer == find_plan(values | {"engine": name}).answer


def test_every_known_version_has_a_profile() -> None:
    assert {version.profile for version in VERSIONS} <= set(engine_names())


def test_there_is_no_gap_where_plain_decoding_is_best_in_principle() -> None:
    scenario = on_vllm(tp=8, prompt_tokens=513)
    result = search(scenario, choices=[("self", "streamingllm")], budgets=(512,), batches=[1])
    assert result.not_runnable and recommend(result).engine_gap is None


def test_if_only_a_plan_that_cannot_run_meets_the_limits_the_error_names_it() -> None:
    scenario, options = on_vllm(tp=8), {"choices": [("self", "streamingllm")], "budgets": (512,)}
    free = recommend(search(scenario, **options))
    assert free.engine_gap is not None
    between = (free.best.tpot_s + free.engine_gap.ideal.tpot_s) / 2.0
    slo = parse_slo(f"tpot<{1e3 * between:.4f}ms")
    with pytest.raises(NoFeasiblePlan, match=r"in principle, Self-speculation.* meets them, but"):
        recommend(search(scenario, slo=slo, **options))
