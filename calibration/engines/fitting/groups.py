"""Measured points by setup, as arrays, and the seconds that a profile predicts for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.engines.fitting.terms import COMMON_HOST
from calibration.engines.plan import point_scenario
from calibration.engines.records import PointRecord, Setup
from perfmodel import EngineProfile, Scenario
from perfmodel.speculation import host_wait_s, round_seconds

Array = NDArray[np.float64]
MEASUREMENT_ERROR = 0.02  # relative, of one point, at least
SPREAD_ERROR = 0.4  # standard error of the median of three repeats over their range
UNKNOWN_HOST_ERROR = 0.45  # of ln(host time) where others may have slowed down the host's cores


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Group:
    """The records of one setup as arrays, and the scenario that predicts them."""

    scenario: Scenario
    records: tuple[PointRecord, ...]
    batch: Array
    context_tokens: Array
    host_errors: Array  # standard errors of ln(host time) while a record was timed
    hosts: NDArray[np.intp]  # number of the host on which a record was timed
    slowdowns: Array  # of that host, on all times of the host

    @classmethod
    def of(
        cls,
        setup: Setup,
        records: Sequence[PointRecord],
        gpu: str,
        host_error: float = 0.0,
        hosts: Mapping[str, int] | None = None,
    ) -> Group:
        """The group of a setup's records on a catalog GPU, on hosts by the ids of points.

        `host_error` is that of host times of records without windows.
        """
        first = records[0].point
        return cls(
            scenario=point_scenario(
                setup, gpu=gpu, engine="kernels", batch=first.batch, prompt=first.prompt_tokens
            ),
            records=tuple(records),
            batch=np.array([float(r.point.batch) for r in records]),
            context_tokens=np.array([float(round(r.context_tokens)) for r in records]),
            host_errors=np.array([0.0 if r.windows_s else host_error for r in records]),
            hosts=np.array([(hosts or {}).get(r.point.id, 0) for r in records]),
            slowdowns=np.ones(len(records)),
        )

    def on(self, slowdowns: Array) -> Group:
        """The group with the slowdown of each host, by its number."""
        return replace(self, slowdowns=slowdowns[self.hosts])

    @property
    def method(self) -> str:
        """The decoding method of the setup."""
        return self.records[0].point.setup.method

    def errors(self, profile: EngineProfile) -> Array:
        """Relative standard errors of the measurements.

        From the range of their repeats, and from the host's time as far as it delays a step.
        """
        spread = [max(MEASUREMENT_ERROR, SPREAD_ERROR * r.spread) for r in self.records]
        return np.hypot(spread, self.host_delays(profile, np.exp(self.host_errors)))

    def host_delays(self, profile: EngineProfile, slowdown: ArrayLike) -> Array:
        """ln(delay) by a slower host while a record was timed; 0 of records whose host is known."""
        passes_s = self.passes_s(profile)
        slowdowns = np.where(self.host_errors > 0.0, slowdown, 1.0)
        expected = passes_s + self.waits(profile, passes_s)
        return np.log((passes_s + self.waits(profile, passes_s, slowdowns)) / expected)

    @property
    def measured_s(self) -> Array:
        """Measured seconds of a step or round, per record."""
        return np.array([r.seconds for r in self.records])

    def waits(self, profile: EngineProfile, passes_s: Array, slowdown: ArrayLike = 1.0) -> Array:
        """Predicted seconds in addition to the passes, per record, with a slower host."""
        scenario = replace(self.scenario, engine=self._started(profile))
        gamma, context = np.asarray(float(scenario.plan.gamma)), self.context_tokens
        method, batch = self.method, self.batch
        slowdowns = np.asarray(slowdown, float) * self.slowdowns
        return host_wait_s(scenario, method, batch, context, gamma, passes_s, slowdown=slowdowns)

    def passes_s(self, profile: EngineProfile) -> Array:
        """Predicted seconds of the passes alone, per record; the same for any host time."""
        bare = replace(profile, host=(), **dict.fromkeys(COMMON_HOST, 0.0))  # type: ignore[arg-type]
        return round_seconds(
            replace(self.scenario, engine=bare),
            batch=self.batch,
            prompt_tokens=self.context_tokens,
            gamma=np.asarray(float(self.scenario.plan.gamma)),
            kv_budget_tokens=np.zeros(()),  # drafts read the whole cache
        )

    def seconds(self, profile: EngineProfile) -> Array:
        """Predicted seconds of a step or round, per record."""
        passes_s = self.passes_s(profile)
        return passes_s + self.waits(profile, passes_s)

    def scenario_of(self, record: PointRecord, profile: EngineProfile) -> Scenario:
        """The scenario of one record with a profile and the CUDA graphs of the setup."""
        batch, context = record.point.batch, round(record.context_tokens)
        work = replace(self.scenario.workload, batch=batch, prompt_tokens=context)
        return replace(self.scenario, engine=self._started(profile), workload=work)

    def _started(self, profile: EngineProfile) -> EngineProfile:
        """The profile with the CUDA graphs of the setup."""
        if self.records[0].point.setup.exported_graphs:
            return replace(profile, default_graphs=False)
        return profile


def seen_hosts(groups: Sequence[Group], profile: EngineProfile) -> list[int]:
    """Numbers of the hosts that would visibly delay one of their points if half as fast."""
    found: set[int] = set()
    for group in groups:
        passes_s = group.passes_s(profile)
        usual_s, slow_s = (passes_s + group.waits(profile, passes_s, k) for k in (1.0, 2.0))
        found.update(map(int, group.hosts[np.log(slow_s / usual_s) > MEASUREMENT_ERROR]))
    return sorted(found)


def predicted(profile: EngineProfile, groups: Sequence[Group]) -> Array:
    """Predicted seconds of a step or round per record, in the order of the groups."""
    return np.concatenate([group.seconds(profile) for group in groups])


def grouped(
    records: Sequence[PointRecord], gpu: str, hosts: Mapping[str, int] | None = None
) -> list[Group]:
    """The records grouped by setup; each group is predicted in one call.

    `hosts` are the numbers of the hosts of points, by their ids; by default, all are of one. Where
    some records are of undisturbed steps (`PointRecord.windows_s`), those of others say less of
    host times.
    """
    host_error = UNKNOWN_HOST_ERROR if any(r.windows_s for r in records) else 0.0
    by_setup: dict[Setup, list[PointRecord]] = {}
    for record in records:
        by_setup.setdefault(record.point.setup, []).append(record)
    return [Group.of(setup, rows, gpu, host_error, hosts) for setup, rows in by_setup.items()]
