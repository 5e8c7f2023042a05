"""The search: the best of an exhaustive loop, each choice with an acceptance of its own."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from strategies import a_scenario, with_acceptance

from perfmodel import SLO, ConfigError, Scenario, estimate, parse_scenario
from perfmodel.planning import Candidate, draft_choices, plan_label
from perfmodel.planning.search import Search, search
from perfmodel.speculation import (
    ServiceEstimate,
    service,
    service_gain,
    within,
    without_speculation,
)

CHOICES = (("self", "streamingllm"), ("self", "snapkv"), ("llama-3.2-1b", "streamingllm"))
BUDGETS = (128, 512, 2048)
TPS = (2, 8)
PLAIN: dict[str, Any] = {"gpu": "a100-sxm-80gb", "batch": 64, "prompt_tokens": 16_000}


def every_plan(values: dict[str, Any]) -> Iterator[ServiceEstimate]:
    """Each plan of the small grid predicted alone, from the values that a user states."""
    for tp in TPS:
        yield service(a_scenario(**values, tp=tp))
        for draft, policy in CHOICES:
            for draft_tp in (None,) if draft == "self" else (1, 2, 4, 8):
                if draft_tp is not None and draft_tp > tp:
                    continue
                for budget in BUDGETS:
                    for gamma in range(1, 17):
                        yield service(
                            a_scenario(
                                **values, tp=tp, draft=draft, draft_policy=policy,
                                kv_budget=budget, gamma=gamma, draft_tp=draft_tp,
                            )
                        )  # fmt: skip


def cost(point: ServiceEstimate, objective: str) -> float:
    if objective == "latency":
        return float(point.tpot_s)
    return point.decode.scenario.tp / float(point.tokens_per_s)


def smallest_gamma_near(points: list[ServiceEstimate], objective: str) -> list[ServiceEstimate]:
    """Per plan without its γ, the smallest γ within 1 % of the best."""
    plans: dict[tuple[object, ...], list[ServiceEstimate]] = {}
    for point in points:
        name = key(point.decode.scenario)
        plans.setdefault((*name[:2], *name[3:]), []).append(point)
    near = []
    for group in plans.values():
        best = min(cost(point, objective) for point in group)
        near.append(next(p for p in group if cost(p, objective) <= 1.01 * best))
    return near


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
def loop() -> list[ServiceEstimate]:
    return list(every_plan(PLAIN))


@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_the_best_is_the_best_of_an_exhaustive_loop(
    loop: list[ServiceEstimate], objective: str
) -> None:
    fitting = smallest_gamma_near([point for point in loop if point.feasible], objective)
    expected = min(fitting, key=lambda point: cost(point, objective))
    best = small_search(PLAIN, objective=objective).ranked()[0]
    assert key(best.scenario) == key(expected.decode.scenario)
    assert best.tpot_s == pytest.approx(float(expected.tpot_s), rel=1e-12)
    plain = service(without_speculation(best.scenario))
    gain = float(expected.requests_per_s / plain.requests_per_s)
    if objective == "latency":
        gain = float(plain.tpot_s / expected.tpot_s)
    assert best.gain == pytest.approx(gain, rel=1e-12)


def test_limits_agree_with_an_exhaustive_loop(loop: list[ServiceEstimate]) -> None:
    free = small_search(PLAIN).ranked()[0]
    limits = [
        SLO(memory_fraction=0.999 * free.memory_fraction),
        SLO(tpot_s=0.9 * free.tpot_s),
        SLO(ttft_s=0.999 * free.ttft_s, memory_fraction=0.8),
    ]
    for slo in limits:
        allowed = smallest_gamma_near([p for p in loop if within(p, slo)], "throughput")
        expected = min(allowed, key=lambda point: cost(point, "throughput"))
        best = small_search(PLAIN, slo=slo).ranked()[0]
        assert key(best.scenario) == key(expected.decode.scenario), slo


def test_every_candidate_agrees_with_predict_and_with_the_service() -> None:
    for candidate in small_search(PLAIN).candidates:
        point, result = estimate(candidate.scenario), service(candidate.scenario)
        assert candidate.decode_tpot_s == pytest.approx(float(point.tpot_s), rel=1e-12)
        assert candidate.decode_speedup == pytest.approx(float(point.speedup), rel=1e-12)
        assert candidate.memory_fraction == pytest.approx(float(point.memory.fraction), rel=1e-12)
        assert candidate.fits == bool(point.memory.fits)
        assert candidate.tpot_s == pytest.approx(float(result.tpot_s), rel=1e-12)
        assert candidate.ttft_s == pytest.approx(float(result.ttft_s), rel=1e-12)
        assert candidate.throughput_per_gpu == pytest.approx(
            float(result.tokens_per_s) / candidate.scenario.tp, rel=1e-12
        )


def test_the_best_concurrency_is_the_smallest_near_the_highest_throughput() -> None:
    batches = (1, 4, 16, 64)
    result = small_search(PLAIN, batches=batches, slo=SLO(tpot_s=0.06))
    plain = next(c for c in result.ranked() if c.parts == 0)
    rates = {}
    for batch in batches:
        work = replace(plain.scenario.workload, batch=batch)
        point = service(replace(plain.scenario, workload=work))
        if within(point, result.slo):
            rates[batch] = float(point.requests_per_s)
    expected = min(b for b, rate in rates.items() if 1.01 * rate >= max(rates.values()))
    assert plain.scenario.workload.batch == expected < 64


# ---- acceptance -------------------------------------------------------------------------------


def rates(result: Search) -> dict[tuple[object, ...], float]:
    return {key(c.scenario): c.requests_per_s for c in result.candidates}


def test_a_given_acceptance_applies_to_its_draft_choice_only() -> None:
    own = {"draft": "self", "draft_policy": "snapkv", "kv_budget": 512}
    before = rates(small_search(PLAIN))
    result = small_search(PLAIN | own | {"acceptance": 0.999})
    after = rates(result)
    for candidate in result.candidates:
        plan, given = candidate.scenario.plan, candidate.scenario.acceptance
        if (plan.draft, plan.policy) == ("self", "snapkv"):
            assert given is not None and given.alpha == 0.999
        else:
            assert given is None
            name = key(candidate.scenario)
            assert after[name] == before[name]


def test_an_unmeasured_choice_states_the_acceptance_that_it_needs() -> None:
    values = {"target": "llama-3.1-70b", "tp": 8, "batch": 32, "prefill": "disaggregated"}
    result = search(
        a_scenario(**values),
        choices=[("llama-3.1-8b", "streamingllm"), ("llama-3.1-8b", "full")],
        budgets=(512,),
    )
    assert [c.label for c in result.candidates] == ["No speculation"]
    assert {u.candidate.scenario.plan.policy for u in result.unmeasured} == {"streamingllm", "full"}
    for unmeasured in result.unmeasured:
        scenario = unmeasured.candidate.scenario
        assert np.isnan(unmeasured.candidate.gain)
        alpha = unmeasured.alpha_to_break_even
        gains = [service_gain(with_acceptance(scenario, alpha + d)).value for d in (-0.01, 0.01)]
        assert gains[0] < 1.0 < gains[1]


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


@pytest.mark.parametrize(("target", "has"), [("qwen3-32b", False), ("deepseek-v3", True)])
def test_mtp_is_a_choice_only_for_a_target_with_such_a_head(target: str, has: bool) -> None:
    choices = draft_choices(a_scenario(target=target, tp=8))
    assert (("mtp", "full") in choices) == has and ("eagle3", "full") in choices


def test_budgets_that_exceed_the_context_are_skipped() -> None:
    result = search(a_scenario(prompt_tokens=1000, batch=1), choices=[("self", "snapkv")])
    budgets = {c.scenario.plan.kv_budget_tokens for c in result.candidates}
    assert budgets == {None, 64, 128, 256, 512}


@pytest.mark.parametrize("context, most", [(512, 256), (513, 512)])
def test_a_self_draft_that_reads_its_targets_whole_cache_is_not_a_plan(
    context: int, most: int
) -> None:
    result = search(
        a_scenario(prompt_tokens=context, batch=1), choices=[("self", "snapkv"), ("self", "full")]
    )
    budgets = {c.scenario.plan.kv_budget_tokens for c in result.candidates if c.parts}
    assert max(b for b in budgets if b is not None) == most and None not in budgets


def test_an_acceptance_follows_the_shape_of_the_curve_from_its_measured_budget() -> None:
    own = {"draft": "self", "draft_policy": "snapkv", "kv_budget": 512, "acceptance": 0.85}
    result = small_search(PLAIN | own, measured_budget=2048)
    alphas = {
        c.scenario.plan.kv_budget_tokens: c.scenario.acceptance
        for c in result.candidates
        if c.scenario.acceptance is not None
    }
    curve = a_scenario(**PLAIN, **own).curve
    assert curve is not None and set(alphas) == set(BUDGETS)
    at = {b: float(curve.alpha(kv_budget_tokens=b, context_tokens=16_000)) for b in BUDGETS}
    for budget, acceptance in alphas.items():
        loss = 0.15 * (1.0 - at[budget]) / (1.0 - at[2048])
        assert acceptance.alpha == pytest.approx(1.0 - loss, rel=1e-9)
        assert (acceptance.low < acceptance.alpha) == (budget != 2048)


def test_plain_decoding_is_always_a_candidate_at_every_tp() -> None:
    plain = [c for c in small_search(PLAIN).candidates if not c.scenario.plan.speculates]
    assert [c.scenario.tp for c in plain] == list(TPS)
    assert {c.gain for c in plain} == {1.0}


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
        ({"draft": "self", "draft_dtype": "int4", "draft_policy": "full"},
         "Self-speculation with int4 weights, full cache, γ=4"),
        ({"draft": "self", "draft_dtype": "int4", "draft_kv_dtype": "int8"},
         "Self-speculation with int4 weights and int8 KV, StreamingLLM 512, γ=4"),
        ({"draft": "llama-3.2-1b", "draft_policy": "full", "draft_dtype": "fp8", "gamma": 2},
         "Draft llama-3.2-1b with fp8 weights, full cache, γ=2"),
        ({"draft": "self", "weight_dtype": "int4"}, "Self-speculation, StreamingLLM 512, γ=4"),
    ],
)  # fmt: skip
def test_a_plan_has_a_label_in_words(values: dict[str, Any], label: str) -> None:
    assert plan_label(parse_scenario(values).scenario()) == label


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"draft": "none"}, 0),
        ({"draft": "self"}, 1),
        ({"draft": "self", "draft_policy": "snapkv"}, 2),
        ({"draft": "self", "draft_kv_dtype": "int8"}, 2),  # a copy of KV
        ({"draft": "self", "kv_dtype": "int8", "draft_kv_dtype": "int4"}, 1),  # its upper halves
        ({"draft": "self", "draft_dtype": "int4"}, 4),  # a second copy of the weights
        ({"draft": "ngram"}, 1),
        ({"draft": "mtp", "target": "qwen3.5-27b", "tp": 1}, 3),  # in the target's checkpoint
        ({"draft": "mtp", "target": "llama-3.1-8b"}, 4),
        ({"draft": "eagle3"}, 4),
        ({"draft": "llama-3.2-1b"}, 5),
    ],
)
def test_a_plan_has_as_many_parts_as_it_stores(values: dict[str, Any], parts: int) -> None:
    scenario = parse_scenario({"tp": 8, **values}).scenario()
    made = {
        name: 1.0 for name in Candidate.__dataclass_fields__ if name not in ("scenario", "fits")
    }
    assert Candidate(scenario=scenario, fits=True, **made).parts == parts
