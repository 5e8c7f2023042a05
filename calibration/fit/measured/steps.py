"""Fit what kernels take longer within a step: all-reduces, and attention at sustained clocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from calibration.records.steps import Case, StepRecord, at_full_clock, case_scenario
from perfmodel import GPU, RoundEstimate, Scenario, estimate
from perfmodel.kernels import Efficiency
from perfmodel.units import US

HUBER = 0.02  # relative error of a pass beyond which it has less weight
LEAST_SHARE = 0.5  # of attention in a pass that shows how much longer it takes


@dataclass(frozen=True, slots=True, kw_only=True)
class _OnCurves(Scenario):
    """A scenario with kernel curves that the catalog does not have yet."""

    curves: Efficiency

    @property
    def kernels(self) -> Efficiency:
        return self.curves


def sums_in_steps(
    steps: Sequence[StepRecord], curves: Efficiency, values: Mapping[str, float], gpu: GPU
) -> dict[str, float]:
    """`sum_gap_s` and `sum_wait_s` by T_T, T_V and T_D of several ranks; empty without steps.

    Both are what an all-reduce takes longer in a step than after a GEMM. The next weights that are
    loaded during it shorten it; the slowest of many rows lengthens it, as the largest of n random
    delays grows with ln(n). Robust least squares on relative errors.
    """
    from scipy.optimize import least_squares

    slopes, aims = [], []
    for step in steps:
        if step.case.tp == 1 or step.case.purpose != "scenario":
            continue
        without, gap, wait = (
            _passes(_point(step.case, curves, {**values, "sum_gap_s": g, "sum_wait_s": w}, gpu))
            for g, w in ((0.0, 0.0), (US, 0.0), (0.0, US))
        )
        for name, seconds in without.items():
            if (measured := step.times[name]) and gap[name] > seconds:
                slopes.append([(longer[name] - seconds) / measured for longer in (gap, wait)])
                aims.append(1.0 - seconds / measured)
    if not slopes:
        return {}
    matrix, start = np.array(slopes), [0.0, 0.1]
    bounds = ([-np.inf, 0.0], np.inf)
    solved = least_squares(
        lambda x: matrix @ x - aims, start, bounds=bounds, loss="soft_l1", f_scale=HUBER
    )
    return {"sum_gap_s": float(solved.x[0]) * US, "sum_wait_s": float(solved.x[1]) * US}


def sustained_attention(
    steps: Sequence[StepRecord], curves: Efficiency, values: Mapping[str, float], gpu: GPU
) -> float | None:
    """Time of attention with tall tiles at sustained clocks, over that in short runs.

    The median over verifications that attention dominates and that were timed long enough; None
    without one. Errors are relative to those of T_T, which has the same cache and short tiles.
    """
    ratios = []
    for step in steps:
        plan = step.case.plan
        if not plan.gamma or at_full_clock(step.verify_s) or step.case.purpose != "scenario":
            continue
        point = _point(step.case, curves, values, gpu)
        spec = point.scenario.target
        rows = np.asarray((plan.gamma + 1.0) * spec.query_heads / spec.kv_heads)
        whole = float(point.verify.total_s)
        attention = float(point.verify.part("attention").seconds)
        if curves.attention.has_tall_tiles(rows) and attention > LEAST_SHARE * whole:
            scale = float(point.target_step.total_s) / step.target_step_s
            ratios.append((scale * step.verify_s - whole) / attention + 1.0)
    return max(1.0, float(np.median(ratios))) if ratios else None


def _point(case: Case, curves: Efficiency, values: Mapping[str, float], gpu: GPU) -> RoundEstimate:
    """The estimate of a case by these curves and values of the profile."""
    found = case_scenario(case, gpu=gpu.name)
    given = {entry.name: getattr(found, entry.name) for entry in fields(found)}
    given["engine"] = found.engine.changed(**{"sustained_attention_factor": 1.0, **values})
    return estimate(_OnCurves(**given, curves=curves))


def _passes(point: RoundEstimate) -> dict[str, float]:
    """Seconds of T_T, T_V and T_D."""
    return {
        "target_step_s": float(point.target_step.total_s),
        "verify_s": float(point.verify.total_s),
        "draft_step_s": float(point.draft_step_s),
    }
