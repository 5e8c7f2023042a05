"""Choose γ for given traffic by simulation: 0, the best fixed γ, or a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from perfmodel.scenario import Scenario
from perfmodel.serving.round_times import RoundTimes
from perfmodel.serving.scheduler import Simulation
from perfmodel.serving.simulate import SCHEDULE_GAMMAS, ServingRun, simulate_requests
from perfmodel.speculation.gain import plateau

LEAST_GOOD = 0.99  # share of requests within the limits at which traffic is said to meet them


@dataclass(frozen=True, eq=False, slots=True)
class TrafficChoice:
    """All runs with the same traffic and seed, and the best of them by `objective`."""

    objective: str  # "goodput" if there are limits, otherwise "latency"
    plain: ServingRun
    fixed: tuple[ServingRun, ...]  # one per γ above 0
    scheduled: ServingRun
    # Ends of the 90 % interval of the draft's gain, over the gain.
    error: tuple[float, float] = (1.0, 1.0)

    def __repr__(self) -> str:
        return f"TrafficChoice({self.sentence!r})"

    @property
    def best_fixed(self) -> ServingRun:
        """The smallest fixed γ above 0 with the fewest misses and within 1 % of their latency."""
        missed = min(self.cost(run)[0] for run in self.fixed)
        equal = [run for run in self.fixed if self.cost(run)[0] == missed]
        return equal[int(plateau(np.array([self.cost(run)[1] for run in equal])))]

    @property
    def best(self) -> ServingRun:
        """The simplest run that no other one clearly beats: plain, a fixed γ, then the schedule.

        A run clearly beats a simpler one if more requests meet the limits with it, or if as many do
        and its mean latency is lower: a schedule's than a fixed γ's by more than the standard
        error, and that of a draft than plain decoding's even at the low end of the draft's gain.
        """
        draft = self.best_fixed
        if self._leads(self.scheduled, draft):
            draft = self.scheduled
        fewer = self._fewer_missed(draft, self.plain)
        is_faster = fewer == 0 and self._gain(draft) * self.error[0] > 1.0
        return draft if fewer > 0 or is_faster else self.plain

    def _leads(self, run: ServingRun, simpler: ServingRun) -> bool:
        """Whether a run with the draft is better than a simpler one beyond the standard errors."""
        if fewer := self._fewer_missed(run, simpler):
            return fewer > 0
        error_s = simpler.stats.latency.standard_error_s
        lead_s = simpler.stats.latency.mean_s - run.stats.latency.mean_s
        return lead_s > (error_s if math.isfinite(error_s) else 0.0)

    def _fewer_missed(self, run: ServingRun, simpler: ServingRun) -> float:
        """How many fewer requests a run misses than a simpler one; 0 within the standard error."""
        missed, other = self.cost(run)[0], self.cost(simpler)[0]
        share = other / (simpler.stats.requests + simpler.stats.refused)
        is_chance = abs(other - missed) <= math.sqrt(other * max(1.0 - share, 0.0))
        return 0.0 if is_chance else other - missed

    def _gain(self, run: ServingRun) -> float:
        """Mean latency of plain decoding over that of a run."""
        return self.plain.stats.latency.mean_s / run.stats.latency.mean_s

    def cost(self, run: ServingRun) -> tuple[float, float]:
        """The quantity to minimise: requests that miss the limits, then mean latency in seconds."""
        missed = run.stats.requests - run.stats.good if self.objective == "goodput" else 0
        return (missed + run.stats.refused, run.stats.latency.mean_s)

    @property
    def verdict(self) -> str:
        """ "speculate", "no clear gain" or "do not speculate", as of a recommendation."""
        if self.best.gamma != 0:
            return "speculate"
        drafting = (self.best_fixed, self.scheduled)
        differing = [run for run in drafting if self.cost(run) != self.cost(self.plain)]
        loses = all(self._gain(run) * self.error[1] < 1.0 for run in differing)
        return "do not speculate" if loses else "no clear gain"

    @property
    def meets_limits(self) -> bool | None:
        """Whether 99 % of the requests meet the limits with the best run; None without limits."""
        if self.objective != "goodput":
            return None
        stats = self.best.stats
        return stats.good >= LEAST_GOOD * (stats.requests + stats.refused)

    @property
    def sentence(self) -> str:
        """The answer in one sentence."""
        best, plain = self.best, self.plain
        loses = self.verdict == "do not speculate"
        plainly = "Do not speculate" if loses else "No clear gain, so decode plainly"
        what = {None: "Follow the schedule", 0: plainly}.get(
            best.gamma, f"Use gamma {best.gamma} throughout"
        )
        others = [run for run in (plain, self.best_fixed, self.scheduled) if run is not best]
        against = ", ".join(self._against(run) for run in others)
        mean = f"{best.stats.latency.mean_s:.3g} s per request on average with {best.label}"
        if self.objective == "goodput":
            share = best.stats.good / best.stats.requests
            mean = f"{share:.1%} of requests meet the limits, {mean}"
        return f"{what}: {mean}, compared with {against}."

    def _against(self, run: ServingRun) -> str:
        """The latency of a run that was not chosen, and whether it is less only by chance."""
        text = f"{run.stats.latency.mean_s:.3g} s with {run.label}"
        best = self.best
        is_less = best is self.best_fixed and self.cost(run) < self.cost(best)
        if is_less and run is self.scheduled:
            text += " (within the standard error)"
        return text


def choose_for_traffic(
    scenario: Scenario,
    simulation: Simulation,
    *,
    gammas: Sequence[int] = SCHEDULE_GAMMAS,
    error: tuple[float, float] = (1.0, 1.0),
    progress: Callable[[int], None] | None = None,
) -> TrafficChoice:
    """Simulate traffic without speculation, at each fixed γ, and with a schedule.

    The schedule chooses among `gammas`; those above 0 are also simulated as fixed γ. `error` has
    the ends of the 90 % interval of the draft's gain, over the gain. `progress` is called with the
    number of finished requests over all runs.
    """
    times = RoundTimes(scenario, max_batch=simulation.serving.max_batch)
    finished = 0

    def report(count: int) -> None:
        if progress is not None:
            progress(finished + count)

    def run(chosen: Sequence[int]) -> ServingRun:
        nonlocal finished
        result = simulate_requests(
            scenario, simulation, gammas=chosen, times=times, progress=report
        )
        finished += result.stats.requests
        return result

    return TrafficChoice(
        "goodput" if simulation.slo.limits_times else "latency",
        run([0]),
        tuple(run([gamma]) for gamma in gammas if gamma > 0),
        run(gammas),
        error,
    )
