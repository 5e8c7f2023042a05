"""Fit what timed steps and prompts show beyond single kernels.

These are what all-reduces take longer in a step, attention at sustained clocks, and the launches
of prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from calibration.records.steps import (
    Case,
    StepRecord,
    at_full_clock,
    case_scenario,
    prompt_chunks,
)
from perfmodel import GPU, RoundEstimate, Scenario, estimate
from perfmodel.kernels import Efficiency
from perfmodel.units import US

HUBER = 0.02  # relative error of a pass beyond which it has less weight
SHARES = np.linspace(0.8, 1.0, 21)  # of the peak FLOP/s in prompts
LAUNCHES = US * np.geomspace(50.0, 5000.0, 231)  # host time per layer
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


def prompts(
    steps: Sequence[StepRecord], curves: Efficiency, values: Mapping[str, float], gpu: GPU
) -> dict[str, float]:
    """`prefill_compute_factor`, `eager_layer_s` and, of several ranks, `rank_eager_layer_s`.

    Least absolute error of ln(time). A chunk takes the time of its kernels, or that of the host to
    launch its layers. Empty without prompts.
    """
    timed = [step for step in steps if step.prefill_tokens]
    best: dict[str, float] = {}
    least = np.inf
    for share in SHARES if timed else ():
        sustained = _scenario(timed[0].case, curves, values, gpu).engine.compute_factor
        faster = float(share) / sustained
        found, loss = {"prefill_compute_factor": faster}, 0.0
        for name, of_ranks in (("eager_layer_s", False), ("rank_eager_layer_s", True)):
            some = [step for step in timed if (step.case.tp > 1) == of_ranks]
            if some:
                changed = {**values, "prefill_compute_factor": faster}
                errors = sum(_launch_errors(step, curves, changed, gpu) for step in some)
                found[name] = float(LAUNCHES[np.argmin(errors)])
                loss += float(np.min(errors))
        if loss < least:
            best, least = found, loss
    return best


def _launch_errors(
    step: StepRecord, curves: Efficiency, values: Mapping[str, float], gpu: GPU
) -> NDArray[np.float64]:
    """|ln(predicted / measured)| of a prompt for each of `LAUNCHES`."""
    scenario = _scenario(step.case, curves, values, gpu)
    kernels, launches = (
        prompt_chunks(scenario, step.prefill_tokens),
        scenario.target.layers * LAUNCHES,
    )
    seconds = np.sum([np.maximum(launches, each) for each in kernels], axis=0)
    return np.asarray(np.abs(np.log(seconds / step.prefill_s)))


def _point(case: Case, curves: Efficiency, values: Mapping[str, float], gpu: GPU) -> RoundEstimate:
    return estimate(_scenario(case, curves, values, gpu))


def _scenario(case: Case, curves: Efficiency, values: Mapping[str, float], gpu: GPU) -> Scenario:
    """A case with these curves and values of the profile."""
    found = case_scenario(case, gpu=gpu.name)
    given = {entry.name: getattr(found, entry.name) for entry in fields(found)}
    given["engine"] = found.engine.changed(**{"sustained_attention_factor": 1.0, **values})
    return _OnCurves(**given, curves=curves)


def _passes(point: RoundEstimate) -> dict[str, float]:
    """Seconds of T_T, T_V and T_D."""
    return {
        "target_step_s": float(point.target_step.total_s),
        "verify_s": float(point.verify.total_s),
        "draft_step_s": float(point.draft_step_s),
    }
