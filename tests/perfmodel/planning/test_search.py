"""The search: the best of an exhaustive loop, each choice with an acceptance of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from strategies import a_scenario

from perfmodel import SLO, ConfigError, RoundEstimate, Scenario, estimate, parse_scenario
from perfmodel.planning import Candidate, draft_choices, plan_label
from perfmodel.planning.search import Search, search

CHOICES = (("self", "streamingllm"), ("self", "snapkv"), ("llama-3.2-1b", "streamingllm"))
BUDGETS = (128, 512, 2048)
TPS = (2, 8)
PLAIN: dict[str, Any] = {"gpu": "a100-sxm-80gb", "batch": 64, "prompt_tokens": 16_000}


def every_plan(values: dict[str, Any]) -> Iterator[RoundEstimate]:
    """Each plan of the small grid predicted alone, by the vocabulary a user has."""
    for tp in TPS:
        yield estimate(a_scenario(**values, tp=tp))
        for draft, policy in CHOICES:
            for draft_tp in (None,) if draft == "self" else (1, 2, 4, 8):
                if draft_tp is not None and draft_tp > tp:
                    continue
                for budget in BUDGETS:
                    for gamma in range(1, 17):
                        yield estimate(
                            a_scenario(
                                **values, tp=tp, draft=draft, draft_policy=policy,
                                kv_budget=budget, gamma=gamma, draft_tp=draft_tp,
                            )
                        )  # fmt: skip


def per_token(point: RoundEstimate, objective: str) -> float:
    ranks = 1 if objective == "latency" else point.scenario.tp
    return float(point.tpot_s) * ranks / (1 if objective == "latency" else 64)


def small_search(values: dict[str, Any], **options: Any) -> Search:
    return search(a_scenario(**values), choices=CHOICES, tps=TPS, budgets=BUDGETS, **options)


def key(scenario: Scenario) -> tuple[object, ...]:
    plan = scenario.plan
    return (
        plan.draft,
        plan.policy,
        plan.gamma,
        plan.kv_budget_tokens,
        scenario.draft_tp,
        scenario.tp,
    )


@pytest.fixture(scope="module")
def loop() -> list[RoundEstimate]:
    return list(every_plan(PLAIN))


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_the_best_is_the_best_of_an_exhaustive_loop(
    loop: list[RoundEstimate], objective: str
) -> None:
    fitting = [point for point in loop if point.feasible]
    expected = min(fitting, key=lambda point: per_token(point, objective))
    best = small_search(PLAIN, objective=objective).ranked()[0]
    assert key(best.scenario) == key(expected.scenario)
    assert best.tpot_s == pytest.approx(float(expected.tpot_s), rel=1e-12)
    assert best.speedup == pytest.approx(float(expected.speedup), rel=1e-12)


def test_limits_agree_with_an_exhaustive_loop(loop: list[RoundEstimate]) -> None:
    """Also a memory limit that a smaller γ meets and the best γ does not."""
    free = small_search(PLAIN).ranked()[0]
    gamma = free.scenario.plan.gamma
    plan = replace(free.scenario.plan, gamma=gamma - 1)
    one_less = float(estimate(replace(free.scenario, plan=plan)).memory.fraction)
    assert one_less < free.memory_fraction
    limits = [
        SLO(memory_fraction=(one_less + free.memory_fraction) / 2),
        SLO(tpot_s=0.9 * free.tpot_s),
        SLO(ttft_s=0.99 * free.ttft_s, memory_fraction=0.8),
    ]
    for slo in limits:
        allowed = [
            point
            for point in loop
            if point.feasible
            and float(point.memory.fraction) <= (slo.memory_fraction or 1.0)
            and float(point.tpot_s) <= (slo.tpot_s or np.inf)
            and float(point.ttft_s) <= (slo.ttft_s or np.inf)
        ]
        expected = min(allowed, key=lambda point: per_token(point, "throughput"))
        best = small_search(PLAIN, slo=slo).ranked()[0]
        assert key(best.scenario) == key(expected.scenario), slo


def test_every_candidate_agrees_with_predict() -> None:
    for candidate in small_search(PLAIN).candidates:
        point = estimate(candidate.scenario)
        assert candidate.tpot_s == pytest.approx(float(point.tpot_s), rel=1e-12)
        assert candidate.ttft_s == pytest.approx(float(point.ttft_s), rel=1e-12)
        assert candidate.memory_fraction == pytest.approx(float(point.memory.fraction), rel=1e-12)
        assert candidate.fits == bool(point.memory.fits)
        assert candidate.throughput_per_gpu == pytest.approx(
            64 / float(point.tpot_s) / candidate.scenario.tp, rel=1e-12
        )


# ---- acceptance -------------------------------------------------------------------------------


def speedups(result: Search) -> dict[tuple[object, ...], float]:
    return {key(c.scenario): c.speedup for c in result.candidates}


def test_a_given_acceptance_applies_to_its_draft_choice_only() -> None:
    own = {"draft": "self", "draft_policy": "snapkv", "kv_budget": 512}
    before = speedups(small_search(PLAIN))
    result = small_search(PLAIN | own | {"acceptance": 0.999})
    after = speedups(result)
    for candidate in result.candidates:
        plan, given = candidate.scenario.plan, candidate.scenario.acceptance
        if (plan.draft, plan.policy) == ("self", "snapkv"):
            assert given is not None and given.alpha == 0.999
        else:
            assert given is None
            name = key(candidate.scenario)
            assert after[name] == before[name]


def test_an_unmeasured_choice_states_the_acceptance_that_it_needs() -> None:
    values = {"target": "llama-3.1-70b", "tp": 8, "batch": 32}
    result = search(
        a_scenario(**values),
        choices=[("llama-3.1-8b", "streamingllm"), ("llama-3.1-8b", "full")],
        budgets=(512,),
    )
    assert [c.label for c in result.candidates] == ["No speculation"]
    assert {u.candidate.scenario.plan.policy for u in result.unmeasured} == {"streamingllm", "full"}
    for unmeasured in result.unmeasured:
        scenario = unmeasured.candidate.scenario
        assert np.isnan(unmeasured.candidate.speedup)
        lowest = min(
            float(
                estimate(replace(scenario, plan=replace(scenario.plan, gamma=g))).break_even_alpha
            )
            for g in range(1, 17)
        )
        assert unmeasured.alpha_to_break_even == pytest.approx(lowest, rel=1e-12)


@pytest.mark.parametrize(
    "alias, label",
    [
        ("meta-llama/Llama-3.2-1B", "Draft llama-3.2-1b, StreamingLLM 512"),
        ("meta-llama/Llama-3.1-8B", "Self-speculation, StreamingLLM 512"),
        ("llama-3.1-8b", "Self-speculation, StreamingLLM 512"),
    ],
)
def test_a_choice_by_hub_id_is_the_catalogs_model(alias: str, label: str) -> None:
    result = search(a_scenario(**PLAIN, tp=8), choices=[(alias, "streamingllm")], budgets=(512,))
    assert not result.unmeasured
    labels = {c.label.rpartition(",")[0] for c in result.candidates if c.label != "No speculation"}
    assert labels == {label}


# ---- what is searched -------------------------------------------------------------------------


def test_drafts_are_self_and_every_smaller_model_with_the_same_tokenizer() -> None:
    result = draft_choices(a_scenario(target="llama-3.1-70b", tp=8))
    assert ("self", "streamingllm") in result and ("self", "snapkv") in result
    models = {draft for draft, _ in result} - {"self"}
    assert {"llama-3.1-8b", "llama-3.2-1b"} <= models
    assert "llama-3.1-70b" not in models
    assert not models & {"tinyllama-1.1b", "qwen2.5-7b", "llama-68m"}


def test_budgets_that_exceed_the_context_are_skipped() -> None:
    result = search(a_scenario(prompt_tokens=1000, batch=1), choices=[("self", "snapkv")])
    budgets = {c.scenario.plan.kv_budget_tokens for c in result.candidates}
    assert budgets == {None, 64, 128, 256, 512}


def test_plain_decoding_is_always_a_candidate_at_every_tp() -> None:
    plain = [c for c in small_search(PLAIN).candidates if not c.scenario.plan.speculates]
    assert [c.scenario.tp for c in plain] == list(TPS)
    assert {c.speedup for c in plain} == {1.0}


def test_a_violation_is_the_value_over_its_limit() -> None:
    candidate: Candidate = search(a_scenario(**PLAIN, tp=8), choices=[]).candidates[0]
    broken = candidate.violation(SLO(tpot_s=candidate.tpot_s / 2, ttft_s=1e9, memory_fraction=0.01))
    assert broken["tpot"] == pytest.approx(2.0)
    assert broken["memory"] == pytest.approx(candidate.memory_fraction / 0.01)
    assert "ttft" not in broken


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown objective 'cost'; use throughput"):
        search(a_scenario(), objective="cost")


def test_a_tp_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="tp=3 does not fit"):
        search(a_scenario(), tps=[1, 3])


@pytest.mark.parametrize(
    "values, label",
    [
        ({}, "No speculation"),
        ({"draft": "self", "gamma": 0}, "No speculation"),
        ({"draft": "self"}, "Self-speculation, StreamingLLM 512, γ=4"),
        ({"draft": "llama-3.2-1b", "draft_policy": "full", "gamma": 2},
         "Draft llama-3.2-1b, full cache, γ=2"),
    ],
)  # fmt: skip
def test_a_plan_has_a_label_in_words(values: dict[str, Any], label: str) -> None:
    assert plan_label(parse_scenario(values).plan()) == label
