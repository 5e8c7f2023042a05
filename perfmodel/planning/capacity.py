"""The largest concurrency of a plan within the limits, and the fewest GPUs for a request rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from perfmodel._typing import Floats
from perfmodel.passes.memory import largest_batch
from perfmodel.planning.candidate import Candidate, simplest
from perfmodel.planning.search import Search, evaluated
from perfmodel.scenario import Scenario
from perfmodel.specs.workload import SLO
from perfmodel.speculation.break_even import Rule, best_gamma, service_within
from perfmodel.speculation.gain import plateau, relative_gain, service_gain
from perfmodel.speculation.service import ServiceEstimate

MOST_REQUESTS = 4096
SATURATED = 0.95  # of the highest request rate
BATCH_STEP = 2 ** (1 / 3)  # between the concurrencies of a search


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The largest concurrency of a plan on one replica that meets the limits.

    `saturation` is the smallest one with 95 % of the highest request rate within the limits.
    """

    candidate: Candidate
    concurrency: int
    saturation: int
    requests_per_s: float
    tpot_s: float
    ttft_s: float

    @property
    def scenario(self) -> Scenario:
        """The plan at this concurrency."""
        scenario = self.candidate.scenario
        return replace(scenario, workload=replace(scenario.workload, batch=self.concurrency))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The fewest GPUs that serve a rate of requests within the limits."""

    rate: float
    replicas: int
    capacity: Capacity
    most_requests: int  # at once per replica

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        return self.replicas * self.capacity.candidate.scenario.tp

    def runs(self, scenario: Scenario) -> bool:
        """Whether each replica runs the scenario's plan, at any concurrency."""
        own = self.capacity.scenario
        return (own.plan, own.tp, own.ep) == (scenario.plan, scenario.tp, scenario.ep)

    @property
    def load(self) -> float:
        """The request rate over the capacity of the replicas."""
        return self.rate / (self.replicas * self.capacity.requests_per_s)

    @property
    def sentence(self) -> str:
        """The GPUs for the rate, and what runs on them."""
        plan = self.capacity.candidate
        count = "1 GPU" if self.gpus == 1 else f"{self.gpus:,} GPUs"
        what = "without speculation, as no draft clearly needs fewer"
        if plan.parts:
            what = f"with {plan.label}"
        size = f"{count} ({self.replicas:,} x TP {plan.scenario.tp})"
        return f"{self.rate:g} requests/s need {size} {what}."

    def cost_per_million_tokens(self, price_per_hour: float) -> float:
        """Price of a million output tokens at the rate, in the currency of a GPU hour's price."""
        tokens_per_s = self.rate * self.capacity.candidate.scenario.workload.output_tokens
        return self.gpus * price_per_hour / 3600.0 / tokens_per_s * 1e6


def capacity(
    candidate: Candidate, limits: SLO, most_requests: int = MOST_REQUESTS
) -> Capacity | None:
    """The largest concurrency up to `most_requests` at which a plan meets the limits, or None."""
    scenario = candidate.scenario
    most = min(largest_batch(scenario), most_requests)
    if most < 1:
        return None
    steps = np.geomspace(1, most, 256).round()
    batches = np.unique(np.append(steps, min(scenario.workload.batch, most)))
    _, allowed = _allowed(scenario, limits, batches)
    if not allowed.size:
        return None
    if allowed[-1] + 1 < len(batches):  # every batch up to the first larger one that is not allowed
        first, last = batches[allowed[-1]], batches[allowed[-1] + 1]
        batches = np.unique(np.append(batches, np.arange(first, last)))
    result, allowed = _allowed(scenario, limits, batches)
    index = int(allowed[-1])
    rates = np.broadcast_to(result.requests_per_s, batches.shape)[allowed]
    enough = allowed[int(np.argmax(rates >= SATURATED * np.max(rates)))]

    def at(values: Floats) -> float:
        return float(np.broadcast_to(values, batches.shape)[index])

    return Capacity(
        candidate=candidate,
        concurrency=int(batches[index]),
        saturation=int(batches[enough]),
        requests_per_s=at(result.requests_per_s),
        tpot_s=at(result.tpot_s),
        ttft_s=at(result.ttft_s),
    )


def _allowed(
    scenario: Scenario, limits: SLO, batches: Floats
) -> tuple[ServiceEstimate, NDArray[np.intp]]:
    """The service, and the indices of the batches at which it meets the limits.

    With a limit on the time per token, only those up to a gap after the scenario's batch.
    """
    result, meets = service_within(scenario, limits, batch=batches)
    meets = np.broadcast_to(meets, batches.shape)
    allowed = np.flatnonzero(meets)
    if allowed.size and limits.tpot_s is not None:
        asked = int(np.searchsorted(batches, scenario.workload.batch))
        first = asked if asked < len(batches) and meets[asked] else allowed[0]
        gaps = np.flatnonzero(~meets[first:])
        allowed = allowed[allowed < first + gaps[0]] if gaps.size else allowed
    return result, allowed


def at_capacity(result: Search) -> Search:
    """The search with the best plan of each draft choice and TP at its largest concurrency.

    A much smaller concurrency on the plateau of the lowest cost is kept.
    """
    every = replace(result, candidates=result.candidates + result.not_runnable)
    larger = {one: _at_capacity(result, one) for one in _best(every.ranked())}
    return replace(
        result,
        candidates=tuple(larger.get(one, one) for one in result.candidates),
        not_runnable=tuple(larger.get(one, one) for one in result.not_runnable),
    )


def _best(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The first candidate of each draft choice and TP."""
    best: dict[tuple[str, str, int], Candidate] = {}
    for candidate in candidates:
        plan = candidate.scenario.plan
        best.setdefault((plan.draft, plan.policy, candidate.scenario.tp), candidate)
    return list(best.values())


def _at_capacity(result: Search, candidate: Candidate) -> Candidate:
    limits, rule = result.slo, Rule(objective=result.objective, limits=result.slo)
    sized = capacity(candidate, limits)
    if sized is None:
        return candidate
    scenario = sized.scenario
    if scenario.plan.speculates:
        gamma = best_gamma(scenario, rule)[1] or scenario.plan.gamma
        scenario = replace(scenario, plan=replace(scenario.plan, gamma=gamma))
    larger = evaluated(scenario, result.objective)
    costs = np.array([result.cost(candidate), result.cost(larger)])
    is_near = sized.concurrency <= BATCH_STEP * candidate.scenario.workload.batch
    is_better = costs[1] < costs[0] if is_near else plateau(costs) == 1
    return larger if is_better and not larger.violation(limits) else candidate


def fleets(result: Search, rate: float) -> list[Fleet]:
    """One fleet per draft choice and TP, with the best plan of each; fewest GPUs first.

    A choice whose plans all miss the limits at the scenario's batch may meet them at a lower one.
    """
    best = _best((*result.ranked(), *sorted(result.candidates, key=result.cost)))
    most = result.most_requests or MOST_REQUESTS
    sized = [fleet_of(candidate, result.slo, rate, most) for candidate in best]
    made = [fleet for fleet in sized if fleet is not None]
    return sorted(made, key=lambda f: (f.gpus, f.capacity.candidate.parts, f.load))


def with_memory_share(fleet: Fleet, limits: SLO, share: float) -> Fleet:
    """The fleet of the same plan if each replica uses at most this share of the memory."""
    slo = replace(limits, memory_fraction=min(limits.memory_fraction or 1.0, share))
    return fleet_of(fleet.capacity.candidate, slo, fleet.rate, fleet.most_requests) or fleet


def fewest(sized: Sequence[Fleet], limits: SLO) -> Fleet | None:
    """The simplest fleet that no other one clearly beats; None if there is none.

    A fleet clearly beats another one if it needs fewer GPUs even at the low end of the 90 %
    interval of its plan's gain, at the largest concurrency of each: over plain decoding at the same
    TP, or over the other draft.
    """
    plain = next((f for f in sized if f.capacity.candidate.parts == 0), None)
    drafts = [f for f in sized if f.capacity.candidate.parts]
    clear = [f for f in drafts if plain is None or _beats(f, plain, limits)]
    return simplest(
        clear,
        plain,
        parts=lambda f: f.capacity.candidate.parts,
        cost=lambda f: f.gpus,
        beats=lambda rival, fleet: _beats(rival, fleet, limits),
    )


def fleet_of(
    candidate: Candidate, limits: SLO, rate: float, most_requests: int, gain: float = 1.0
) -> Fleet | None:
    """The replicas of a plan that serve a rate if rounds are `gain` times as fast as predicted.

    Each has at most `most_requests` at once. None if the plan misses the limits, or if its
    acceptance is unknown.
    """
    slo = limits if limits.tpot_s is None else replace(limits, tpot_s=limits.tpot_s * gain)
    sized = capacity(candidate, slo, most_requests)
    if sized is None or math.isnan(sized.requests_per_s):
        return None
    replicas = math.ceil(rate / (sized.requests_per_s * gain))
    return Fleet(rate=rate, replicas=replicas, capacity=sized, most_requests=most_requests)


def _beats(rival: Fleet, fleet: Fleet, limits: SLO) -> bool:
    """Whether a fleet needs fewer GPUs than another one even at the low end of its gain."""
    if rival.gpus >= fleet.gpus:
        return False
    one, other = rival.capacity.scenario, fleet.capacity.scenario
    gain = relative_gain(one, other) if other.plan.speculates else service_gain(one)
    low = float(gain.low / gain.value)
    slower = fleet_of(rival.capacity.candidate, limits, rival.rate, rival.most_requests, low)
    return slower is not None and slower.gpus < fleet.gpus
