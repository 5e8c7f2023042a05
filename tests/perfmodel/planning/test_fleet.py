"""GPUs and concurrency for a rate of requests, and limits while requests wait."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from perfmodel import NoFeasiblePlan, find_plan, recommendation_dict
from perfmodel.planning import with_memory_share
from perfmodel.planning.search import search
from perfmodel.scenario_input import parse_scenario
from perfmodel.specs import parse_slo
from perfmodel.speculation import Rule, best_gain, service, within


def test_a_rate_finds_the_fewest_gpus_and_their_concurrency() -> None:
    values = {"gpu": "h100-sxm", "prompt_tokens": 8000, "output_tokens": 500, "slo": "tpot<50ms"}
    values |= {"draft": "self"}
    small, large = (find_plan(values, rate=rate, price_per_hour=2.0) for rate in (1.0, 20.0))
    for answer, rate in ((small, 1.0), (large, 20.0)):
        fleet = answer.fleet
        assert fleet is not None and fleet.rate == rate
        assert fleet.gpus == fleet.replicas * fleet.capacity.candidate.scenario.tp
        assert 0.0 < fleet.load <= 1.0
        assert fleet.capacity.tpot_s <= 0.05
        assert rate > (fleet.replicas - 1) * fleet.capacity.requests_per_s
        assert answer.plain_fleet is None or fleet.gpus <= answer.plain_fleet.gpus
        cost = answer.cost_per_million_tokens(fleet.capacity.candidate)
        assert cost is not None
        assert cost == pytest.approx(fleet.gpus * 2.0 / 3600 / (rate * 500) * 1e6)
        assert answer.answer.startswith(f"{rate:g} requests/s need {fleet.gpus} GPU")
        saturated = 2.0 / 3600 / fleet.capacity.candidate.throughput_per_gpu * 1e6
        assert cost > 0.99 * saturated  # as idle GPUs are paid for
    assert large.fleet is not None and small.fleet is not None
    assert large.fleet.gpus > small.fleet.gpus


@pytest.mark.parametrize("batch", [8, 16])
def test_a_stated_batch_is_the_most_requests_at_once_of_a_replica(batch: int) -> None:
    values: dict[str, Any] = {"gpu": "h200", "engine": "vllm", "target": "llama-3.1-8b", "tp": 1}
    values |= {"prompt_tokens": 8000, "output_tokens": 500, "draft": "eagle3"}
    answer = find_plan(values | {"batch": batch}, rate=50.0, price_per_hour=2.0)
    fleet, plain, best = answer.fleet, answer.plain_fleet, answer.saturated
    assert fleet is not None and plain is not None and best.parts
    for one, candidate in ((fleet, best), (plain, answer.plain)):
        assert one.capacity.concurrency == batch == candidate.scenario.workload.batch
        assert one.replicas == math.ceil(50.0 / candidate.requests_per_s)
        assert one.capacity.tpot_s == pytest.approx(candidate.tpot_s)
        cost = answer.cost_per_million_tokens(candidate)
        assert cost == pytest.approx(one.cost_per_million_tokens(2.0))
    result = recommendation_dict(answer)
    assert result["fleet"]["replica"]["concurrency"] == batch
    assert result["fleet"]["replica"]["tpot_s"] == pytest.approx(result["best"]["tpot_s"])
    assert result["full_load"]["best"]["scenario"] == result["best"]["scenario"]
    smaller = with_memory_share(fleet, answer.rule.limits, 0.98)
    assert smaller == fleet
    free = find_plan(values, rate=50.0).fleet
    assert free is not None and free.capacity.concurrency > batch and free.gpus < fleet.gpus


@pytest.mark.parametrize("batch", [None, 32])
def test_the_gain_over_plain_decoding_is_the_ratio_of_the_rows(batch: int | None) -> None:
    """At a searched batch, each plan has its own, and plain decoding's is that of its fleet."""
    values: dict[str, Any] = {"gpu": "h200", "engine": "vllm", "target": "llama-3.1-8b", "tp": 1}
    values |= {"prompt_tokens": 4000, "output_tokens": 1000, "slo": "tpot<20ms", "batch": batch}
    answer = find_plan(values | {"draft": "eagle3"}, rate=6.0)
    assert answer.advantage is not None and answer.saturated.parts
    ratio = answer.saturated.throughput_per_gpu / answer.plain.throughput_per_gpu
    assert answer.advantage.value == pytest.approx(ratio)
    assert recommendation_dict(answer)["advantage"] == pytest.approx(ratio)
    best, plain = (c.scenario.workload.batch for c in (answer.saturated, answer.plain))
    if batch is None:
        assert answer.plain_fleet is not None and answer.capacity is not None
        assert best != plain == answer.plain_fleet.capacity.concurrency
        assert best == answer.capacity.concurrency
        assert f"{ratio:.2f}x" in answer.answer and f"batch of {plain}" in answer.answer
    else:
        assert best == plain == batch and ratio == pytest.approx(answer.saturated.gain)


def test_without_a_plain_plan_within_the_limits_the_same_one_without_a_draft_is_compared() -> None:
    """Not one of hundreds of requests that neither fits nor is nearly as fast as asked."""
    values: dict[str, Any] = {"gpu": "h200", "engine": "vllm", "target": "llama-3.1-8b", "tp": 1}
    values |= {"prompt_tokens": 4000, "output_tokens": 500, "slo": "tpot<2ms", "draft": "eagle3"}
    answer = find_plan(values, rate=8.0)
    assert answer.speculates and not answer.plain_meets_limits
    assert answer.plain.memory_fraction < 1.0 and answer.plain.scenario.workload.batch == 1
    assert answer.advantage is not None and answer.advantage.low > 1.0


def test_the_largest_concurrency_is_the_last_that_meets_the_limits() -> None:
    answer = find_plan(
        {
            "gpu": "a100-sxm-80gb",
            "batch": 16,
            "prompt_tokens": 8000,
            "tp": 4,
            "slo": "tpot<60ms; ttft<8s",
        }
    )
    found = answer.capacity
    assert found is not None
    for batch, expected in ((found.concurrency, True), (round(1.1 * found.concurrency), False)):
        work = replace(answer.best.scenario.workload, batch=batch)
        point = service(replace(answer.best.scenario, workload=work))
        assert bool(within(point, parse_slo("tpot<60ms; ttft<8s"))) is expected


WAITING = {
    "target": "llama-3.1-8b", "gpu": "h200", "tp": 8, "draft": "self:snapkv", "kv_budget": 2048,
    "prompt_tokens": 3567, "output_tokens": 169,
}  # fmt: skip


def test_a_slower_draft_does_not_meet_a_limit_because_requests_wait() -> None:
    """With γ=16 it fills a pass at 31 running requests, and each then takes 8 ms per token."""
    draft = parse_scenario(WAITING | {"draft": "self", "draft_policy": "snapkv", "gamma": 16})
    waits = service(draft.scenario(), batch=[41, 64, 1403])
    assert np.all(waits.tpot_s < 8.1e-3) and waits.ttft_s[-1] > 50.0
    answer = find_plan(WAITING | {"slo": "tpot<8.1ms", "batch": 16})
    assert answer.capacity is not None and 41 <= answer.capacity.concurrency < 64
    most = answer.capacity.concurrency
    assert find_plan(WAITING | {"slo": "tpot<8.1ms", "batch": most}).capacity is not None
    for batch in (most + 1, 64, 241, 1403):
        found = search(
            replace(draft.scenario(), workload=replace(draft.scenario().workload, batch=batch)),
            slo=parse_slo("tpot<8.1ms"),
            choices=[("self", "snapkv")],
        )
        assert not found.ranked()


@pytest.mark.parametrize("share", [0.6, 0.8, 0.95])
@pytest.mark.parametrize("draft, tp", [("self", 2), ("self:snapkv", 8)])
def test_no_plan_is_recommended_that_is_slower_than_without_its_draft(
    draft: str, tp: int, share: float
) -> None:
    """Whatever limit plain decoding misses; only what meets it counts as the concurrency."""
    values = WAITING | {"draft": draft, "tp": tp, "batch": 64}
    plain = service(parse_scenario(values | {"draft": "none", "kv_budget": None}).scenario())
    values["slo"] = f"tpot<{1e6 * share * float(plain.tpot_s):.0f}us"
    try:
        answer = find_plan({k: v for k, v in values.items() if k != "kv_budget"})
    except NoFeasiblePlan:
        return
    assert answer.capacity is not None and answer.capacity.concurrency >= 64
    assert answer.saturated.gain >= 1.0 or not answer.speculates
    rule = Rule(limits=parse_slo(values["slo"]))
    assert answer.studied is not None and answer.batch is not None
    batches = np.arange(1.0, 257.0)
    best = best_gain(answer.studied.scenario, rule, batch=batches, prompt_tokens=np.array(3567.0))
    assert np.all(best.gain.value[best.pays] >= 1.0)
