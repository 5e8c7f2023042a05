"""Choose the best plan of a search and explain the choice as a `Recommendation`.

A draft is recommended only if its gain over plain decoding is clear, that is, if the whole 90 %
interval is above 1, or if only speculation meets the limits. Among such plans, one is clearly worse
if the whole interval of another's gain *over it* is above 1 (`relative_gain`). This interval is
narrower than that of a gain over plain decoding, since most errors change the times of both drafts
alike. Of the plans that are not clearly worse than any other, the simplest is chosen: a look-up or
a self-draft with StreamingLLM, one with SnapKV, MTP layers of the target's checkpoint, another
built-in draft with weights, then a draft model; of equally simple ones, the fastest. A search over
more plans therefore never chooses a plan that is clearly worse.

If a version of a serving engine is given, or named by the engine profile, only plans that it runs
are recommended, and the plan that would be best without this restriction is stated as `EngineGap`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np

from perfmodel.errors import NoFeasiblePlan
from perfmodel.planning.candidate import Candidate, simplest
from perfmodel.planning.capacity import capacity, fewest, fleets
from perfmodel.planning.recommendation import (
    Binding,
    EngineGap,
    Faster,
    Recommendation,
    Verdict,
)
from perfmodel.planning.relief import miss, nearest_miss
from perfmodel.planning.search import Search, evaluated
from perfmodel.scenario import Scenario
from perfmodel.specs.engine_support import EngineVersion, profile_version
from perfmodel.specs.workload import SLO
from perfmodel.speculation import (
    Evidence,
    Gain,
    Interval,
    Rule,
    best_gamma,
    break_even_alpha,
    break_even_batch,
    break_even_context,
    evidence,
    gain_value,
    gamma_schedule,
    interval_probability,
    least_width,
    relative_gain,
    sensitivities,
    service_gain,
    service_tpot,
    speedup_interval,
    without_speculation,
)

ROUNDING = 1e-9  # the high end of a gain that cannot exceed 1


def recommend(
    result: Search, *, rate: float | None = None, price_per_hour: float | None = None
) -> Recommendation:
    """Choose the best candidate of a search and explain the choice.

    With a `rate`, in requests/s, the fewest GPUs are found; the price of a GPU hour is in any
    currency. Raises `NoFeasiblePlan` if no candidate meets the limits.
    """
    ranked = result.ranked()
    if not ranked:
        raise NoFeasiblePlan(nearest_miss(result))
    drafts, plain = _split(ranked)
    best = _choose(result, drafts, plain)
    # If no plain plan meets the limits, the same one without its draft.
    reference = plain or evaluated(without_speculation(best.scenario), result.objective)
    studied = best if best.parts else _nearest_to_clear(result, drafts, reference)
    sized = fleets(result, rate) if rate else []
    fleet = fewest(sized, result.slo)
    rule = Rule(objective=result.objective, limits=result.slo)
    gain_of = partial(gain_value, objective=result.objective)
    at, advantage, interval, gammas = None, None, None, None
    if studied is not None:
        at = studied.scenario
        gammas = best_gamma(at, rule)
        interval = gain_interval(studied, result.objective)
        advantage = _advantage(result, studied, reference)
    return Recommendation(
        rule=rule,
        saturated_verdict=_verdict(best, advantage),
        saturated=best,
        for_rate=None if fleet is None else evaluated(fleet.capacity.scenario, result.objective),
        plain=reference,
        plain_meets_limits=plain is not None,
        faster=_faster(result, best, ranked[0], reference),
        runners_up=_one_per_choice(ranked, skip=best),
        unmeasured=result.unmeasured,
        beyond_limits=None if drafts else _nearest_draft(result),
        drafts=result.drafts,
        not_run=_reasons(result),
        tpot=service_tpot(best.scenario),
        plain_tpot=service_tpot(without_speculation(best.scenario)),
        studied=studied,
        advantage=advantage,
        interval=interval,
        decode_interval=speedup_interval(at) if at else None,
        gain_probability=interval_probability(interval, at) if interval and at else None,
        alpha_to_break_even=break_even_alpha(at, objective=result.objective) if at else None,
        batch=break_even_batch(at, rule) if at else None,
        context=break_even_context(at, rule) if at else None,
        schedule=gamma_schedule(at, rule) if at else None,
        fastest_gamma=gammas[2] if gammas else None,
        plateau_gamma=gammas[1] if gammas else None,
        sensitivities=tuple(sensitivities(at, gain_of)) if at else (),
        evidence=_evidence(at or best.scenario, result.version),
        binding=_binding(result, ranked[0]),
        runs_on=result.version,
        engine_gap=_engine_gap(result, best),
        capacity=capacity(best, result.slo),
        fleet=fleet,
        plain_fleet=next((f for f in sized if f.capacity.candidate.parts == 0), None),
        price_per_hour=price_per_hour,
    )


def _evidence(scenario: Scenario, version: EngineVersion | None) -> Evidence:
    """The evidence, which says so if the times are not those of the version that runs the plan."""
    found = evidence(scenario)
    if version is None or version == profile_version(scenario.engine.name):
        return found
    return replace(found, engine=f"{found.engine}, whose times are not those of {version.label}")


@lru_cache(maxsize=64)  # each is needed up to three times
def gain_interval(candidate: Candidate, objective: str) -> Interval:
    """The gain of a candidate over plain decoding at the same TP, with its 90 % interval."""
    gain = service_gain(candidate.scenario, objective=objective)
    return Interval(low=float(gain.low), value=float(gain.value), high=float(gain.high))


def _advantage(result: Search, candidate: Candidate, plain: Candidate) -> Interval:
    """The gain over a plain plan at any TP; its relative error is that of the gain at one TP."""
    interval = gain_interval(candidate, result.objective)
    ratio = result.cost(plain) / result.cost(candidate)
    low, high = ratio * interval.low / interval.value, ratio * interval.high / interval.value
    return Interval(low=low, value=ratio, high=high)


def _split(ranked: list[Candidate]) -> tuple[list[Candidate], Candidate | None]:
    """The plans that speculate, and the best one that does not."""
    drafts = [c for c in ranked if c.scenario.plan.speculates]
    return drafts, next((c for c in ranked if not c.scenario.plan.speculates), None)


def _engine_gap(result: Search, best: Candidate) -> EngineGap | None:
    """The gap between the best plan and the one chosen if the engine could run all plans."""
    if not result.not_runnable:
        return None
    every = replace(result, candidates=result.candidates + result.not_runnable)
    ideal = _choose(every, *_split(every.ranked()))
    if result.cost(ideal) >= result.cost(best):
        return None
    cost = 100.0 * (result.cost(best) / result.cost(ideal) - 1.0)
    obstacle = ideal.scenario.obstacle_on(result.version)
    return EngineGap(ideal=ideal, obstacle=obstacle or "", cost_percent=cost)


def _choose(result: Search, drafts: list[Candidate], plain: Candidate | None) -> Candidate:
    """The simplest plan that is not clearly worse than another one; see the module docstring.

    Of each draft and policy, the fastest plan that clearly gains is considered, if necessary with a
    smaller γ.
    """
    clear: dict[tuple[str, str], Candidate] = {}
    surer: dict[tuple[str, str], Candidate] = {}
    for candidate in drafts:
        choice = (candidate.scenario.plan.draft, candidate.scenario.plan.policy)
        if choice in clear:
            continue
        if choice in surer and result.cost(surer[choice]) <= result.cost(candidate):
            clear[choice] = surer[choice]
        elif plain is None or _is_clear(result, candidate, plain):
            clear[choice] = candidate
        elif (other := _surer(result, candidate)) and _is_clear(result, other, plain):
            surer[choice] = min(surer.get(choice, other), other, key=result.cost)
    clear = surer | clear
    best = simplest(
        sorted(clear.values(), key=result.cost),
        plain,
        parts=lambda c: c.parts,
        cost=result.cost,
        beats=lambda rival, c: _lead(result, rival, c).low > 1.0,
    )
    assert best is not None  # without plain decoding, it is a draft
    return best


def _nearest_to_clear(
    result: Search, drafts: list[Candidate], plain: Candidate
) -> Candidate | None:
    """Of drafts without a clear gain, the fastest, or the MTP layers that it does not clearly beat.

    The layers come with the target's checkpoint, and another head may not exist for this target.
    """
    shipped = next((c for c in drafts if c.ships_draft), None)
    if (
        shipped
        and drafts[0].parts == shipped.parts + 1
        and result.cost(shipped) < result.cost(plain)
    ):
        return drafts[0] if _lead(result, drafts[0], shipped).low > 1.0 else shipped
    return drafts[0] if drafts else None


def _surer(result: Search, candidate: Candidate) -> Candidate | None:
    """The same plan with the smaller γ that `best_gain` chooses, if the gain is not clear."""
    rule, scenario = Rule(objective=result.objective, limits=result.slo), candidate.scenario
    smaller = np.arange(1.0, scenario.plan.gamma)
    if candidate.gain <= 1.0 or not smaller.size:
        return None
    if not np.any(service_gain(scenario, objective=result.objective, gamma=smaller).is_clear):
        return None
    gamma = best_gamma(scenario, rule)[0]
    if not 0 < gamma < scenario.plan.gamma:
        return None
    plan = replace(scenario.plan, gamma=gamma)
    return evaluated(replace(scenario, plan=plan), result.objective)


def _faster(result: Search, best: Candidate, fastest: Candidate, plain: Candidate) -> Faster | None:
    if result.cost(fastest) >= result.cost(best):
        return None
    advantage = _advantage(result, fastest, plain)
    lead = _lead(result, fastest, best) if best.parts else advantage
    least = break_even_alpha(fastest.scenario, objective=result.objective)
    return Faster(candidate=fastest, lead=lead, advantage=advantage, alpha_to_break_even=least)


def _is_clear(result: Search, candidate: Candidate, plain: Candidate) -> bool:
    """Whether the whole interval of the gain over a plain plan is above 1."""
    least = math.exp(least_width(candidate.scenario))  # spares most intervals
    return result.cost(candidate) * least < result.cost(plain) and (
        _advantage(result, candidate, plain).low > 1.0
    )


def _lead(result: Search, candidate: Candidate, other: Candidate) -> Interval:
    """The gain of a candidate over a slower one, with its 90 % interval."""
    ratio = result.cost(other) / result.cost(candidate)
    if ratio <= 1.0:
        return Interval(low=ratio, value=ratio, high=ratio)
    gain = _relative_gain(candidate, other, result.objective)
    return Interval(low=float(gain.low), value=float(gain.value), high=float(gain.high))


@lru_cache(maxsize=256)
def _relative_gain(candidate: Candidate, other: Candidate, objective: str) -> Gain:
    return relative_gain(candidate.scenario, other.scenario, objective=objective)


def _verdict(best: Candidate, advantage: Interval | None) -> Verdict:
    if best.scenario.plan.speculates:
        return Verdict.SPECULATE
    if advantage is not None and advantage.high > 1.0 + ROUNDING:
        return Verdict.NO_CLEAR_GAIN
    return Verdict.DO_NOT_SPECULATE


def _one_per_choice(ranked: list[Candidate], *, skip: Candidate) -> tuple[Candidate, ...]:
    """The best candidate of each draft choice other than that of `skip`."""

    def choice(candidate: Candidate) -> tuple[str, str]:
        plan = candidate.scenario.plan
        return (plan.draft, plan.policy) if plan.speculates else ("none", "full")

    best: dict[tuple[str, str], Candidate] = {}
    for candidate in ranked:
        if choice(candidate) != choice(skip):
            best.setdefault(choice(candidate), candidate)
    return tuple(best.values())


def _binding(result: Search, best: Candidate) -> Binding | None:
    """The limit whose removal would improve the best cost the most."""
    slo, options = result.slo, []
    relaxed = {
        "ttft": replace(slo, ttft_s=None),
        "tpot": replace(slo, tpot_s=None),
        "memory": replace(slo, memory_fraction=float("inf")),
    }
    for name, limits in relaxed.items():
        without = _ranked_without(result, limits, ignore_memory=name == "memory")
        if without and result.cost(without[0]) < result.cost(best):
            cost = 100.0 * (result.cost(best) / result.cost(without[0]) - 1.0)
            options.append(Binding(name=name, cost_percent=cost, without=without[0]))
    return max(options, key=lambda b: b.cost_percent, default=None)


def _ranked_without(result: Search, limits: SLO, *, ignore_memory: bool) -> list[Candidate]:
    def allowed(candidate: Candidate) -> bool:
        broken = set(candidate.violation(limits))
        return not broken or (ignore_memory and broken == {"memory"})

    return sorted(filter(allowed, result.candidates), key=result.cost)


def _reasons(result: Search) -> tuple[str, ...]:
    """Why the engine does not run plans with a known acceptance, each reason once."""
    version = result.version
    if version is None:
        return ()
    start = f"{version.label} cannot run this plan: "
    reasons = (one.scenario.obstacle_on(version) or "" for one in result.not_runnable if one.parts)
    return tuple(dict.fromkeys(reason.removeprefix(start) for reason in reasons))


def _nearest_draft(result: Search) -> Candidate | None:
    """The draft with a known acceptance that misses the limits by least."""
    drafts = [c for c in result.candidates if c.parts]
    return min(drafts, key=lambda c: miss(result, c), default=None)
