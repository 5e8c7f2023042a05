"""Simulate a scenario with given traffic: plain decoding, a fixed γ, or a γ schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.display import html_table, one_line
from perfmodel.errors import ConfigError
from perfmodel.scenario import Scenario
from perfmodel.serving.acceptance import AcceptanceProcess
from perfmodel.serving.batch import Policy
from perfmodel.serving.round_times import RoundTimes
from perfmodel.serving.scheduler import RequestLoop, Simulation
from perfmodel.serving.stats import ServingStats
from perfmodel.speculation.round import without_speculation
from perfmodel.units import format_seconds

# The choices of a schedule and of `recommend --traffic`.
SCHEDULE_GAMMAS = (0, 1, 2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True, eq=False, slots=True)
class ServingRun:
    """The result of a simulation; `gamma` is None if a schedule chose it round by round."""

    label: str
    gamma: int | None
    capacity_tokens: int
    stats: ServingStats

    def __repr__(self) -> str:
        return one_line("ServingRun", dict(self._figures()))

    def _repr_html_(self) -> str:
        return html_table(self._figures())

    def _figures(self) -> list[tuple[str, str]]:
        stats = self.stats
        return [
            ("gamma", "schedule" if self.gamma is None else str(self.gamma)),
            ("requests", f"{stats.requests:,}"),
            ("throughput", f"{self.throughput:.0f} tokens/s"),
            ("ttft_p50", format_seconds(stats.ttft.quantile_s(0.5))),
            ("ttft_p99", format_seconds(stats.ttft.quantile_s(0.99))),
            ("tpot_mean", format_seconds(stats.tpot.mean_s)),
            ("latency_mean", format_seconds(stats.latency.mean_s)),
            ("busy", f"{self.busy_share:.0%}"),
        ]

    @property
    def throughput(self) -> float:
        """Output tokens per second from the first arrival to the last finish."""
        return self.stats.output_tokens / self.stats.makespan_s if self.stats.makespan_s else 0.0

    @property
    def goodput_rps(self) -> float:
        """Requests per second that met the SLO."""
        return self.stats.good / self.stats.makespan_s if self.stats.makespan_s else 0.0

    @property
    def busy_share(self) -> float:
        """Share of the time in which the machine was busy."""
        return self.stats.busy_s / self.stats.makespan_s if self.stats.makespan_s else 0.0


def simulate_requests(
    scenario: Scenario,
    simulation: Simulation,
    *,
    gammas: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
    times: RoundTimes | None = None,
) -> ServingRun:
    """Simulate a deployment with given traffic.

    Raises `ConfigError` if the traffic cannot be read, or verification would use up the token
    budget. Raises `DoesNotFit` if no memory is left for the KV cache.

    Parameters
    ----------
    scenario : Scenario
        Machine, models, engine and draft; its workload is not used.
    simulation : Simulation
        Traffic, scheduling, acceptance, limits and seed.
    gammas : sequence of int, optional
        One γ is fixed. Of several, each round uses the γ with the least time per token at its batch
        and mean context. By default the scenario's γ.
    progress : callable, optional
        Called from time to time with the number of finished requests.
    times : RoundTimes, optional
        Tables for this scenario and batch limit, if they exist already.
    """
    chosen = tuple(sorted(set(gammas if gammas is not None else (scenario.plan.gamma,))))
    if max(chosen) == 0:
        scenario, times = without_speculation(scenario), None
    if times is None:
        times = RoundTimes(scenario, max_batch=simulation.serving.max_batch)
    policy = _fixed(chosen[0]) if len(chosen) == 1 else schedule(times, simulation.process, chosen)
    loop = RequestLoop(times, simulation, policy=policy, gammas=chosen)
    loop.run(progress)
    stats = loop.stats
    if not stats.requests:
        raise ConfigError(
            f"all {stats.refused} requests exceed the longest possible sequence of "
            f"{loop.longest:,} tokens; use more GPUs, a smaller batch or shorter requests"
        )
    fixed = chosen[0] if len(chosen) == 1 else None
    label = "schedule" if fixed is None else "no speculation" if fixed == 0 else f"gamma {fixed}"
    return ServingRun(label, fixed, loop.capacity, stats)


def compared_gammas(scenario: Scenario, *, schedule: bool) -> list[tuple[int, ...]]:
    """The choices of γ to compare: none, the scenario's, and if asked those of a schedule."""
    choices: list[tuple[int, ...]] = [(0,)]
    if scenario.plan.speculates:
        choices.append((scenario.plan.gamma,))
    return [*choices, SCHEDULE_GAMMAS] if schedule else choices


def schedule(times: RoundTimes, process: AcceptanceProcess, gammas: Sequence[int]) -> Policy:
    """The policy with the least time per token at every batch and tabulated context."""
    choice = best_gammas(times, process, gammas).tolist()
    contexts = times.contexts
    scale, last = (contexts.size - 1) / contexts[-1] ** 0.5, contexts.size - 1

    def gamma(batch: int, context: float) -> int:
        return int(choice[batch - 1][min(int(context**0.5 * scale + 0.5), last)])

    return gamma


def best_gammas(
    times: RoundTimes, process: AcceptanceProcess, gammas: Sequence[int]
) -> NDArray[np.int64]:
    """The γ of the schedule, of shape (batch from 1, tabulated contexts)."""
    tokens = np.array([process.mean_tokens(gamma) for gamma in gammas])
    per_token = times.seconds_by_gamma(np.array(gammas)) / tokens[:, None, None]
    return np.asarray(np.asarray(gammas)[np.argmin(per_token, axis=0)], np.int64)


def _fixed(gamma: int) -> Policy:
    return lambda batch, context: gamma
