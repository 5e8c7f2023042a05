"""The request simulator's door: one scenario under one traffic, plain, at one γ, by schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.errors import ConfigError
from perfmodel.scenario import Scenario
from perfmodel.serving.acceptance import AcceptanceProcess
from perfmodel.serving.batch import Policy
from perfmodel.serving.round_times import StepTable
from perfmodel.serving.scheduler import RequestLoop, Serving
from perfmodel.serving.stats import ServingStats, Sink
from perfmodel.serving.traffic import Traffic
from perfmodel.specs.workload import SLO
from perfmodel.speculation.round import without_speculation

# What a schedule chooses from, and what `recommend --traffic` tries.
SCHEDULE_GAMMAS = (0, 1, 2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True, eq=False, slots=True)
class ServingRun:
    """One simulation: `gamma` is None where a schedule chose it round by round."""

    label: str
    gamma: int | None
    max_batch: int
    capacity_tokens: int
    stats: ServingStats

    @property
    def throughput(self) -> float:
        """Output tokens per second from the first moment to the last finish."""
        return self.stats.output_tokens / self.stats.makespan_s if self.stats.makespan_s else 0.0

    @property
    def goodput_rps(self) -> float:
        """Requests per second that met the SLO."""
        return self.stats.good / self.stats.makespan_s if self.stats.makespan_s else 0.0

    @property
    def busy_share(self) -> float:
        """Share of the time in which the machine worked."""
        return self.stats.busy_s / self.stats.makespan_s if self.stats.makespan_s else 0.0


def simulate_requests(
    scenario: Scenario,
    traffic: Traffic,
    serving: Serving,
    process: AcceptanceProcess,
    *,
    gammas: Sequence[int] | None = None,
    slo: SLO | None = None,
    seed: int = 0,
    exact: bool = False,
    sink: Sink | None = None,
    progress: Callable[[int], None] | None = None,
    table: StepTable | None = None,
) -> ServingRun:
    """Play a traffic through one deployment.

    Parameters
    ----------
    scenario : Scenario
        Machine, models, engine and draft; its batch and lengths are not used.
    traffic : Traffic
        Arrivals and lengths; the same seed gives every run the same requests.
    serving : Serving
        Batch limit and token budget.
    process : AcceptanceProcess
        Accepted drafts; not used at γ = 0.
    gammas : sequence of int, optional
        One γ: fixed. Several: the γ of least time per token at the round's batch and mean context.
        None: the scenario's own.
    seed : int
        Of arrivals, lengths and acceptance.
    exact : bool
        Draw every round of every sequence; else advance rounds between events at once
        (`serving_batch` says what that approximates).
    sink, progress : callable, optional
        Receives finished requests in blocks; is told their number.
    table : StepTable, optional
        Of this scenario and batch limit, where it exists already.

    Raises
    ------
    ConfigError
        For traffic that cannot be read, or a token budget that verification would use up.
    DoesNotFit
        If no KV cache fits beside the weights.
    """
    chosen = tuple(sorted(set(gammas if gammas is not None else (scenario.plan.gamma,))))
    if max(chosen) == 0:
        scenario, table = without_speculation(scenario), None
    if table is None:
        table = StepTable(scenario, max_batch=serving.max_batch)
    policy = _fixed(chosen[0]) if len(chosen) == 1 else schedule(table, process, chosen)
    stats = ServingStats(slo or SLO(), sink=sink)
    loop = RequestLoop(
        table, traffic, process, serving, stats,
        policy=policy, gammas=chosen, seed=seed, exact=exact,
    )  # fmt: skip
    loop.run(progress)
    if not stats.requests:
        raise ConfigError(
            f"all {stats.refused} requests are longer than the {loop.longest:,} tokens that a "
            f"sequence may hold here; use more GPUs, a smaller batch or shorter requests"
        )
    fixed = chosen[0] if len(chosen) == 1 else None
    label = "schedule" if fixed is None else "no speculation" if fixed == 0 else f"gamma {fixed}"
    return ServingRun(label, fixed, serving.max_batch, loop.capacity, stats)


def schedule(table: StepTable, process: AcceptanceProcess, gammas: Sequence[int]) -> Policy:
    """γ of least seconds per token at every batch, and at every tabulated context."""
    choice = best_gammas(table, process, gammas).tolist()
    contexts = table.contexts
    scale, last = (contexts.size - 1) / contexts[-1] ** 0.5, contexts.size - 1

    def gamma(batch: int, context: float) -> int:
        return int(choice[batch - 1][min(int(context**0.5 * scale + 0.5), last)])

    return gamma


def best_gammas(
    table: StepTable, process: AcceptanceProcess, gammas: Sequence[int]
) -> NDArray[np.int64]:
    """The schedule as an array of shape (batch from 1, tabulated contexts)."""
    tokens = np.array([process.mean_tokens(gamma) for gamma in gammas])
    per_token = table.seconds_by_gamma(np.array(gammas)) / tokens[:, None, None]
    return np.asarray(np.asarray(gammas)[np.argmin(per_token, axis=0)], np.int64)


def _fixed(gamma: int) -> Policy:
    return lambda batch, context: gamma
