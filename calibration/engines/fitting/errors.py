"""Standard errors of a fitted profile, of GPU times and of host times, by maximum likelihood.

ln(predicted / measured) of a step or round is taken as normal, with the variance

    σ² = σ_gpu² + d²,    d = ln(step if the host takes e^σ_host times as long / step)

A speedup has the variances of its step and its round, so the profile states √2 σ_gpu. The error of
the host is resolved only where it delays a step; elsewhere, it stays near another machine's.

Predictions are for an undisturbed host, but the errors come from all points that are given, also
from those timed while other machines may have delayed the host, because an interval must hold for
hosts of unknown speed. A note says if other machines disturbed the measured host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.engines.fitting.groups import MEASUREMENT_ERROR, grouped
from calibration.engines.records import EngineRecords, PointRecord
from calibration.engines.undisturbed import DISTURBED, disturbed_note
from perfmodel import EngineProfile
from perfmodel.speculation import OTHER_HOST_ERROR

Array = NDArray[np.float64]

MOST = 1.0  # upper bound of both errors; the lower one is that of a measurement
SLOW_HOST = 2.0  # factor on host times, for which a point that waits for the host is delayed
PRIOR_WIDTH = 1.0  # of ln(error of host times), around that of another machine


def fit_errors(
    records: Sequence[PointRecord], profile: EngineProfile, gpu: str
) -> tuple[float, float]:
    """The `speedup_error`, √2 σ_gpu, and the `host_error`, σ_host, of a profile.

    The records are those of a GPU of the catalog by which the profile is judged.
    """
    from scipy.optimize import minimize

    groups = grouped(records, gpu)
    passes = [group.passes_s(profile) for group in groups]

    def seconds(slowdown: float) -> Array:
        pairs = zip(groups, passes, strict=True)
        return np.concatenate([s + group.waits(profile, s, slowdown) for group, s in pairs])

    expected = seconds(1.0)
    errors = np.log(expected / np.concatenate([group.measured_s for group in groups]))

    def cost(logs: Array) -> float:
        late = np.log(seconds(math.exp(math.exp(logs[1]))) / expected)
        variance = math.exp(2.0 * logs[0]) + late**2
        prior = ((logs[1] - math.log(OTHER_HOST_ERROR)) / PRIOR_WIDTH) ** 2
        return float(0.5 * (np.sum(np.log(variance) + errors**2 / variance) + prior))

    bounds = [(math.log(MEASUREMENT_ERROR), math.log(MOST))] * 2
    start = np.log([0.1, OTHER_HOST_ERROR])
    of_gpu, of_host = minimize(cost, start, method="Powell", bounds=bounds).x
    return math.sqrt(2.0) * math.exp(of_gpu), math.exp(of_host)


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
