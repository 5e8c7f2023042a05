"""Standard errors of a fitted profile, of GPU times and of host times, by maximum likelihood.

ln(predicted / measured) of a step or round is taken as normal, with the variance that
`perfmodel.speculation.step_error` predicts for a GPU that was timed:

    σ² = σ_gpu² + d²,    d = ln(step if the host takes e^σ_host times as long / step)

In a speedup, the step and the round each have their own d. The host's error is resolved only where
the host delays a step; elsewhere it stays near that of another machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.engines.fit import Group, grouped
from calibration.engines.records import EngineRecords, PointRecord
from calibration.engines.undisturbed import DISTURBED, disturbed_note
from perfmodel import EngineProfile
from perfmodel.speculation import OTHER_HOST_ERROR

Array = NDArray[np.float64]

LEAST, MOST = 0.02, 1.0  # bounds of both errors
SLOW_HOST = 2.0  # factor on host times, for which a point that waits for the host is delayed
PRIOR_WIDTH = 1.0  # of ln(error of host times), around that of another machine


def fit_errors(
    records: Sequence[PointRecord], profile: EngineProfile, gpu: str
) -> tuple[float, float]:
    """The standard errors (σ_gpu, σ_host) of a profile's steps, rounds and speedups.

    The records are those of a GPU of the catalog that the profile is judged by.
    """
    from scipy.optimize import minimize

    groups = grouped(records, gpu)
    passes = [group.passes_s(profile) for group in groups]

    def seconds(slowdown: float) -> Array:
        pairs = zip(groups, passes, strict=True)
        return np.concatenate([s + group.waits(profile, s, slowdown) for group, s in pairs])

    expected = seconds(1.0)
    missed = np.log(expected / np.concatenate([group.measured_s for group in groups]))
    steps, rounds = _speedups(groups)
    errors = np.concatenate([missed, missed[steps] - missed[rounds]])

    def cost(logs: Array) -> float:
        late = np.log(seconds(math.exp(math.exp(logs[1]))) / expected) ** 2
        variance = math.exp(2.0 * logs[0]) + np.concatenate([late, late[steps] + late[rounds]])
        prior = ((logs[1] - math.log(OTHER_HOST_ERROR)) / PRIOR_WIDTH) ** 2
        return float(0.5 * (np.sum(np.log(variance) + errors**2 / variance) + prior))

    bounds = [(math.log(LEAST), math.log(MOST))] * 2
    start = np.log([0.1, OTHER_HOST_ERROR])
    of_gpu, of_host = minimize(cost, start, method="Nelder-Mead", bounds=bounds).x
    return math.exp(of_gpu), math.exp(of_host)


def shared_host_note(records: EngineRecords, profile: EngineProfile) -> str:
    """A line on points that wait for the host, if other machines disturbed it; else "".

    These are the points that, by the profile, a host half as fast would visibly delay.
    """
    of_host = []
    for group in grouped([r for r in records.points if r.windows_s], records.gpu):
        passes_s = group.passes_s(profile)
        usual_s, slow_s = (passes_s + group.waits(profile, passes_s, k) for k in (1.0, SLOW_HOST))
        delayed = slow_s > DISTURBED * usual_s
        rows = zip(group.records, delayed, strict=True)
        of_host += [record.windows_s for record, is_delayed in rows if is_delayed]
    return disturbed_note(of_host)


def _speedups(groups: Sequence[Group]) -> tuple[list[int], list[int]]:
    """The places of the plain step and of the round of each speedup that was measured."""
    points = [record.point for group in groups for record in group.records]
    plain = {p.workload: place for place, p in enumerate(points) if not p.setup.gamma}
    rounds = [i for i, p in enumerate(points) if p.setup.gamma and p.workload in plain]
    return [plain[points[i].workload] for i in rounds], rounds
