"""Errors of an engine profile on measured points, and the decisions that follow from them.

Besides times, decisions are validated for a few values of α: whether a draft method is faster than
plain decoding, and how much slower the method with the best prediction is than the method with
the best measurement (regret). Both use the workloads that were timed under several setups.

Where other machines share the host's cores, they slow down the steps that wait for it. If some
records are of undisturbed steps (`PointRecord.windows_s`), a profile is judged by these, and by
those of others that a host of another speed would hardly change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from calibration.engines.fitting.groups import grouped
from calibration.engines.records import Point, PointRecord
from perfmodel.acceptance import tokens_per_round_iid
from perfmodel.scenario_input import parse_scenario
from perfmodel.specs import EngineProfile, ModelSpec

ALPHAS = (0.6, 0.7, 0.8, 0.9)  # for which decisions are validated
NEAR_TIE = 0.03  # speedups this close to 1 do not count as a decision
TOLERANCES = {"plain": 3.0, "rounds": 5.0, "worst": 15.0, "regret": 2.0}  # percent
SLOWEST_HOST = 1.82  # host times of the slowest timed machine over those of the fastest
HOST_DELAY = 0.02  # most ln(delay) by such a host, for its speed not to matter


@dataclass(frozen=True, slots=True, kw_only=True)
class PointError:
    """A record, and the profile's prediction of it.

    `host_known` is whether no slowdown of the host could have changed its time noticeably.
    """

    record: PointRecord
    predicted_s: float
    host_known: bool = True

    @property
    def percent(self) -> float:
        """The signed error in percent of the measured time."""
        return 100.0 * (self.predicted_s / self.record.seconds - 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Measured and predicted speedup of one setup under one workload and α."""

    record: PointRecord
    alpha: float
    measured: float
    predicted: float

    @property
    def is_near_tie(self) -> bool:
        """Whether the measured speedup is too close to 1 for its sign to count."""
        return abs(self.measured - 1.0) < NEAR_TIE

    @property
    def sign_right(self) -> bool:
        """Whether both speedups are on the same side of 1."""
        return (self.measured > 1.0) == (self.predicted > 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """Errors of some points, and the decisions and regrets of their workloads."""

    errors: tuple[PointError, ...]
    decisions: tuple[Decision, ...]
    regrets: tuple[float, ...]  # per workload and α; 0 if the best setup was chosen

    @property
    def figures(self) -> dict[str, float]:
        """The percentages that have tolerances, without those that have no point."""
        plain = [abs(e.percent) for e in self.errors if e.record.point.setup.gamma == 0]
        rounds = [abs(e.percent) for e in self.errors if e.record.point.setup.gamma > 0]
        figures = {
            "plain": float(np.median(plain)) if plain else None,
            "rounds": float(np.median(rounds)) if rounds else None,
            "worst": max([*plain, *rounds], default=None),
            "regret": 100.0 * max(self.regrets) if self.regrets else None,
        }
        return {name: value for name, value in figures.items() if value is not None}

    @property
    def signs(self) -> int:
        """The decisions that are not near-ties."""
        return sum(not d.is_near_tie for d in self.decisions)

    @property
    def signs_right(self) -> int:
        """Those of them that are predicted on the right side of 1."""
        return sum(d.sign_right for d in self.decisions if not d.is_near_tie)


def misses_graph(point: Point, profile: EngineProfile) -> bool:
    """Whether the host launches each layer of the target, for want of a default CUDA graph."""
    setup = point.setup
    launch_s = profile.default_launch_s(
        setup.method, point.batch, setup.gamma, tp=setup.tp, target=_target(setup.target)
    )
    return not setup.exported_graphs and float(launch_s) > 0.0


@cache
def _target(name: str) -> ModelSpec:
    return parse_scenario({"target": name}).scenario().target


def point_errors(
    records: Sequence[PointRecord],
    profile: EngineProfile,
    gpu: str,
    hosts: Mapping[str, int] | None = None,
    slowdowns: Mapping[int, float] | None = None,
) -> list[PointError]:
    """The errors of a profile on records of a catalog GPU, grouped by setup.

    With `slowdowns`, host times are those of each host, by its number in `hosts`.
    """
    found, numbers = [], range(max((hosts or {}).values(), default=0) + 1)
    of_hosts = np.array([(slowdowns or {}).get(number, 1.0) for number in numbers])
    groups = grouped(records, gpu, hosts if slowdowns else None)
    for group in (each.on(of_hosts) for each in groups):
        known = group.host_delays(profile, SLOWEST_HOST) < HOST_DELAY
        for record, seconds, of_gpu in zip(
            group.records, group.seconds(profile), known, strict=True
        ):
            error = PointError(record=record, predicted_s=float(seconds), host_known=bool(of_gpu))
            found.append(error)
    return found


def judged(errors: Sequence[PointError]) -> Judged:
    """Decisions and regrets of every workload that was timed with and without drafts."""
    by_workload: dict[tuple[str, int, int, int], list[PointError]] = {}
    for error in errors:
        by_workload.setdefault(error.record.point.workload, []).append(error)
    decisions, regrets = [], []
    for rows in by_workload.values():
        plain = next((e for e in rows if e.record.point.setup.gamma == 0), None)
        drafts = [e for e in rows if e.record.point.setup.gamma > 0]
        if plain is None or not drafts:
            continue
        for alpha in ALPHAS:
            decisions += [
                Decision(
                    record=e.record,
                    alpha=alpha,
                    measured=plain.record.seconds / _tpot(e.record.seconds, e, alpha),
                    predicted=plain.predicted_s / _tpot(e.predicted_s, e, alpha),
                )
                for e in drafts
            ]
            plans = _by_plan(rows)
            seconds = [float(np.mean([e.record.seconds for e in same])) for same in plans]
            measured = [_tpot(s, same[0], alpha) for s, same in zip(seconds, plans, strict=True)]
            expected = [_tpot(same[0].predicted_s, same[0], alpha) for same in plans]
            regrets.append(measured[int(np.argmin(expected))] / min(measured) - 1.0)
    return Judged(errors=tuple(errors), decisions=tuple(decisions), regrets=tuple(regrets))


def _by_plan(errors: Sequence[PointError]) -> list[list[PointError]]:
    """The points of each method and γ; apart if graphs of other sizes change the prediction."""
    groups: dict[str, list[PointError]] = {}
    for error in errors:
        setup = error.record.point.setup
        name = f"{setup.method} {setup.draft} {setup.gamma} {error.predicted_s:.6g}"
        groups.setdefault(name, []).append(error)
    return list(groups.values())


def _tpot(seconds: float, error: PointError, alpha: float) -> float:
    """Seconds per token of a step or round at α."""
    gamma = error.record.point.setup.gamma
    return seconds / float(tokens_per_round_iid(alpha, gamma))
