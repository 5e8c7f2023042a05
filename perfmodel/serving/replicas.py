"""How many replicas keep recorded requests within the limits, by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from perfmodel.errors import NoFeasiblePlan
from perfmodel.planning.capacity import Fleet
from perfmodel.planning.recommendation import Recommendation
from perfmodel.planning.search import evaluated
from perfmodel.scenario import Scenario
from perfmodel.serving.choose_gamma import LEAST_GOOD
from perfmodel.serving.round_times import RoundTimes
from perfmodel.serving.scheduler import Simulation
from perfmodel.serving.simulate import simulate_requests

MOST_TIMES = 4  # the replicas of a saturated service, up to which more are tried


def good_shares(scenario: Scenario, simulation: Simulation, replicas: int) -> dict[int, float]:
    """Share of the requests that meet the limits by number of replicas, with the scenario's γ.

    It has `replicas`, and last the fewest from there on with which 99 % of the requests meet the
    limits, or four times as many if those do not suffice. The traffic's rate is that of all
    replicas, each of which gets its share.
    """
    times = RoundTimes(scenario, max_batch=simulation.serving.max_batch)
    traffic, shares = simulation.traffic, dict[int, float]()

    def is_enough(count: int) -> bool:
        one = replace(simulation, traffic=replace(traffic, rate=traffic.rate / count))
        stats = simulate_requests(scenario, one, times=times).stats
        shares[count] = stats.good / (stats.requests + stats.refused)
        return shares[count] >= LEAST_GOOD

    low, high, most = replicas - 1, replicas, MOST_TIMES * replicas
    while not is_enough(high) and high < most:
        low, high = high, min(math.ceil(1.25 * high), most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return {replicas: shares[replicas], high: shares[high]}


def enough_in_simulation(
    answer: Recommendation, simulation: Callable[[Scenario, float], Simulation]
) -> tuple[Recommendation, str, float]:
    """The answer with fleets that meet the limits in simulation, what it shows if others do, and
    the share of the requests that meet them with the answer's fleet.

    Replicas are added until 99 % of the requests meet the limits. A draft is left out if plain
    decoding then needs no more GPUs. Raises `NoFeasiblePlan` if four times the replicas of a
    saturated service do not suffice.

    Parameters
    ----------
    answer : Recommendation
        For a rate and limits on times.
    simulation : callable
        The simulation of a plan at a rate in requests/s.
    """
    missed: list[str] = []

    def sized(fleet: Fleet | None) -> tuple[Fleet | None, str, float]:
        if fleet is None:
            return None, "", 0.0
        scenario = fleet.capacity.scenario
        shares = good_shares(scenario, simulation(scenario, fleet.rate), fleet.replicas)
        first, count = min(shares), max(shares)
        if shares[count] < LEAST_GOOD:
            missed.append(f"{count} x TP {scenario.tp} keeps {shares[count]:.1%}")
            return None, "", 0.0
        shown = (
            f"In simulation, {shares[count]:.1%} of the requests then meet the limits, and "
            f"{shares[first]:.1%} with the {first} x TP {scenario.tp} that requests of equal "
            f"lengths would need."
        )
        return replace(fleet, replicas=count), shown if count > first else "", shares[count]

    of_plain = sized(answer.plain_fleet)
    drafts = answer.fleet is not None and answer.fleet.capacity.candidate.parts > 0
    plain, found = of_plain[0], sized(answer.fleet) if drafts else of_plain
    if found[0] is None or (plain is not None and plain.gpus <= found[0].gpus):
        found = of_plain
    fleet, shown, share = found
    if fleet is None:
        raise NoFeasiblePlan(
            f"no plan keeps {LEAST_GOOD:.0%} of the requests within the limits in simulation: "
            f"{' and '.join(missed)}; relax --slo, or use a larger TP or faster GPUs"
        )
    best = evaluated(fleet.capacity.scenario, answer.rule.objective)
    changed = replace(answer, fleet=fleet, plain_fleet=plain, for_rate=best)
    return changed, shown, share
