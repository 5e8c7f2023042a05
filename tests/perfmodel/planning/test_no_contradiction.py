"""Sentence, table, schedule and JSON of a recommendation do not contradict one another."""

import math
import os
import random
import re
from typing import Any

import numpy as np
import pytest

from perfmodel import ConfigError, NoFeasiblePlan, Recommendation, find_plan, recommendation_dict
from perfmodel.passes.memory import largest_batch
from perfmodel.planning.capacity import MOST_REQUESTS
from perfmodel.specs import parse_slo
from perfmodel.speculation import Rule, best_gain, gamma_ranges, service_gain
from perfmodel.speculation.paying_ranges import widest

GPUS = ("a100-sxm-80gb", "h100-sxm", "h200", "l40s", "l40", "b200")
TARGETS = ("llama-3.1-8b", "llama-3.1-70b", "qwen3-32b", "llama-2-7b-32k", "mistral-7b-v0.3")


def drawn(rng: random.Random) -> tuple[dict[str, Any], str]:
    """Values and objective of a random search that takes a fraction of a second."""
    batch = rng.choice([1, 2, 4, 8, 16, 32, 64, 128, 256, round(2 ** rng.uniform(0, 8))])
    prompt = rng.choice([1024, 4096, 32_768, 512, round(2 ** rng.uniform(8, 16.5))])
    values: dict[str, Any] = {
        "target": rng.choice(TARGETS), "gpu": rng.choice(GPUS), "tp": rng.choice(["4", "8", "2,8"]),
        "batch": batch, "prompt_tokens": prompt, "output_tokens": rng.choice([64, 256, 2000]),
        "draft": rng.choice(["self", "self:snapkv", "self:streamingllm", "self,eagle3"]),
        "kv_budget": rng.choice(["64,512,2048", "256", "1024,4096"]),
        "engine": rng.choice(["specroof", "magicdec", "ideal"]),
        "prefill": rng.choice(["shared", "disaggregated"]),
        "prefix_hit_rate": rng.choice([0.0, 0.5, 0.95]),
    }  # fmt: skip
    if rng.random() < 0.3:
        values["slo"] = rng.choice(["tpot<30ms", "tpot<100ms; ttft<20s", "memory<80%"])
    return values, rng.choice(["throughput", "throughput", "latency"])


def answers(count: int, seed: int) -> list[tuple[dict[str, Any], Recommendation]]:
    rng, rates, found = random.Random(seed), random.Random(seed + 1), []
    while len(found) < count:
        values, objective = drawn(rng)
        rate = round(2 ** rates.uniform(-2, 8), 3)
        try:
            found.append((values, find_plan(values, objective=objective, rate=rate)))
        except (ConfigError, NoFeasiblePlan):
            continue
    return found


def check(values: dict[str, Any], answer: Recommendation) -> None:
    work, studied = answer.saturated.scenario.workload, answer.studied
    result = recommendation_dict(answer)
    speculates = answer.saturated_verdict == "speculate"
    # One verdict in the flag, the best plan and the sentence, at the rate and at full load.
    for one in (result, result["full_load"]):
        drafts = one["best"]["scenario"]["draft"] != "none"
        assert one["speculate"] is drafts is (one["verdict"] == "speculate")
    assert result["full_load"]["verdict"] == answer.saturated_verdict
    assert result["best"]["scenario"] == result["fleet"]["scenario"]
    assert result["best"]["tpot_s"] == pytest.approx(result["fleet"]["replica"]["tpot_s"])
    fleet = answer.fleet
    assert fleet is not None
    stated, _, rest = answer.sentence.partition(" At full load: ")
    plan, start = answer.best, rest.split(":")[0]
    assert f"need {fleet.gpus:,} GPU" in stated and f"x TP {plan.scenario.tp}" in stated
    assert (plan.label if plan.parts else "without speculation") in stated
    assert start.startswith(answer.saturated.label) if speculates else start in (
        "No clear gain", "Do not speculate"
    )  # fmt: skip
    assert (start == "No clear gain") == (answer.saturated_verdict == "no clear gain")
    check_limit(values, answer)
    check_fleet(answer)
    if studied is None:
        return
    check_faster(answer)
    assert answer.interval is not None and answer.advantage is not None
    assert answer.batch is not None and answer.context is not None and answer.schedule is not None
    # The headline's figures are those of the table, and the interval those of the verdict.
    assert answer.interval.value == pytest.approx(studied.gain, rel=1e-9)
    assert f"{studied.gain:.2f}x" in answer.answer
    same_tp = studied.scenario.tp == answer.plain.scenario.tp
    plain_meets = not answer.plain.violation(parse_slo(values.get("slo", "")))
    if speculates:
        assert answer.advantage.low > 1.0 or not plain_meets
        assert studied.gain >= 1.0 or parse_slo(values.get("slo", "")).tpot_s is None
    else:
        assert answer.advantage.low <= 1.0 and plain_meets
        # "Do not speculate" is for plans that are clearly slower.
        assert (answer.saturated_verdict == "no clear gain") == (answer.advantage.high > 1.0 + 1e-9)
    # The ranges of the sentence and the JSON hold the asked point if and only if it pays.
    if same_tp or speculates:
        assert answer.batch.contains(work.batch) == speculates
        assert answer.context.contains(work.prompt_tokens) == speculates
        ranges = re.search(r"clearly pays (.*?)\.", answer.answer)
        assert ("no batch" in answer.answer) <= (not answer.batch.exact)
        if ranges:
            numbers = re.findall(r"[\d,]*\d", re.sub(r"γ=\d+", "", ranges[1]))
            stated = {int(number.replace(",", "")) for number in numbers}
            ends = {end for span in answer.batch.ranges for end in span}
            assert stated <= ends | {work.batch}
        if "tokens it clearly pays" in answer.answer:  # not if only speculation meets the limits
            assert ("exception" in answer.answer) == answer.batch.is_exception(work.batch)
    check_ranges(values, answer)
    check_memory(answer)
    # The map: one point at a time, and the schedule's cell if the point is one of its cells.
    rule = Rule(objective=answer.rule.objective, limits=parse_slo(values.get("slo", "")))
    at = {
        "batch": np.array(float(work.batch)),
        "prompt_tokens": np.array(float(work.prompt_tokens)),
    }
    cell = best_gain(studied.scenario, rule, **at)
    if same_tp or speculates:
        assert bool(cell.pays) == speculates
        assert float(cell.gamma) == studied.scenario.plan.gamma
    schedule = answer.schedule
    if work.batch in schedule.batches and work.prompt_tokens in schedule.contexts:
        row = schedule.batches.index(work.batch)
        gamma = schedule.gamma[row][schedule.contexts.index(work.prompt_tokens)]
        if same_tp or speculates:
            assert (gamma > 0) == speculates
    if speculates:  # and the schedule that is exported
        ranges = gamma_ranges(studied.scenario, rule)
        exported = [gamma for first, last, gamma in ranges if first <= work.batch <= last]
        assert exported == [studied.scenario.plan.gamma]
    # A gain is never almost certain on weak evidence, and a self-draft never the whole target.
    budget = studied.scenario.plan.kv_budget_tokens
    assert (budget is None) == (studied.scenario.plan.draft == "eagle3")
    assert budget is None or budget < work.prompt_tokens
    assert answer.gain_probability is not None
    if result["studied"]["acceptance_origin"] == "borrowed":
        assert answer.gain_probability <= 0.95
        assert re.search("borrowed (from|α)", answer.sentence)


def check_ranges(values: dict[str, Any], answer: Recommendation) -> None:
    """A gain is called clear in a range only if the whole interval is above 1 at all its values."""
    assert answer.studied is not None and answer.batch is not None and answer.schedule is not None
    rule = Rule(objective=answer.rule.objective, limits=parse_slo(values.get("slo", "")))
    work, exact = answer.saturated.scenario.workload, answer.batch.exact
    inside = [np.arange(first, min(last, 256) + 1.0) for first, last in exact]
    batches = np.concatenate([np.zeros(0), *inside])
    if batches.size:
        prompt = np.asarray(float(work.prompt_tokens))
        best = best_gain(answer.studied.scenario, rule, batch=batches, prompt_tokens=prompt)
        assert np.all(best.gain.is_clear | ~best.plain_allowed)
        assert not answer.batch.clear or np.all(best.gain.is_clear)
        assert ("alone meets the limits" in answer.answer) <= (not answer.batch.clear)
    assert answer.batch.clear or rule.limits.tpot_s or rule.limits.ttft_s


def check_memory(answer: Recommendation) -> None:
    """A range ends at the largest batch that fits with the plan's γ, or names a smaller γ."""
    assert answer.studied is not None and answer.batch is not None
    most = largest_batch(answer.studied.scenario)
    if answer.batch.end == "memory":
        last, fits = widest(answer.batch.ranges)[1], answer.batch.most_gamma
        assert fits is not None
        smaller = fits < answer.studied.scenario.plan.gamma
        assert (last > most) if smaller else (last == most)
        if f"{last:,}, the most that fits in memory" in answer.answer:
            assert (f"(with γ={fits})" in answer.answer) == smaller
    if answer.capacity is not None:
        assert answer.capacity.saturation <= answer.capacity.concurrency <= MOST_REQUESTS
        if answer.saturated.parts:
            assert answer.capacity.concurrency <= most


def check_limit(values: dict[str, Any], answer: Recommendation) -> None:
    """A limit on the time per token is near if and only if an interval contains it."""
    result, limit = recommendation_dict(answer), parse_slo(values.get("slo", "")).tpot_s
    low, high = result["tpot_interval_90"]
    assert low < result["full_load"]["best"]["tpot_s"] < high
    near = result["tpot_limit"]
    assert near in answer.sentence and near.startswith("The limit of") == bool(near)
    assert ("the plan may miss it" in near) == (limit is not None and high > limit)
    if "plain decoding may meet it" in near:
        assert limit is not None and answer.saturated.parts and answer.plain_tpot.value > limit


def check_fleet(answer: Recommendation) -> None:
    """A fleet with a draft needs fewer GPUs than plain decoding even at the low end of its gain."""
    fleet, plain = answer.fleet, answer.plain_fleet
    assert fleet is not None and fleet.load <= 1.0
    if not fleet.capacity.candidate.parts:
        assert plain is not None and fleet.gpus == plain.gpus
        return
    gain = service_gain(fleet.capacity.scenario)
    replicas = math.ceil(fleet.rate / fleet.capacity.requests_per_s * float(gain.value / gain.low))
    tp = fleet.capacity.scenario.tp
    assert plain is None or fleet.gpus <= tp * replicas < plain.gpus


def check_faster(answer: Recommendation) -> None:
    """A plan with a better prediction is named, and is not clearly better."""
    result = recommendation_dict(answer)
    key, sign = ("tpot_s", 1) if answer.rule.objective == "latency" else ("throughput_per_gpu", -1)
    costs = [sign * plan[key] for plan in (result["full_load"]["best"], *result["runners_up"])]
    assert costs[1:] == sorted(costs[1:])
    faster = answer.faster
    if faster is None:
        assert result["faster"] is None and costs[0] == min(costs)
        return
    assert sign * result["faster"][key] <= min(costs) and sign * result["faster"][key] < costs[0]
    assert faster.candidate.label in answer.why_not_fastest
    if faster.advantage.low > 1.0:
        assert faster.lead.low <= 1.0 and answer.saturated.parts < faster.candidate.parts
    assert ("is not clear" in answer.why_not_fastest) == (faster.advantage.low <= 1.0)
    if not answer.saturated.parts:
        assert answer.studied is faster.candidate and answer.advantage == faster.lead


def test_drawn_recommendations_do_not_contradict_themselves() -> None:
    """With 12 scenarios, or SCENARIOS, drawn by a fixed seed or SEED: `make soak` draws 2,000."""
    verdicts, count = set(), int(os.environ.get("SCENARIOS", "12"))
    for values, answer in answers(count, seed=int(os.environ.get("SEED", "4"))):
        check(values, answer)
        verdicts.add(str(answer.saturated_verdict))
    every = {"speculate", "no clear gain", "do not speculate"}
    assert verdicts == every or (verdicts < every and "SEED" in os.environ)  # of one fixed draw
