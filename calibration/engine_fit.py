"""Fit an engine profile to published step times; the GPU's kernel curves stay as they are.

`python -m calibration.engine_fit --out perfmodel/catalog/engines/magicdec.toml`
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear

from calibration.published import PublishedRow, predict_row
from perfmodel import EngineProfile, StepTime

Array = NDArray[np.float64]

MEASUREMENT_ERROR = 0.02  # relative, of one published time
# Prior of each coefficient: what the kernel tables say, and how far an engine may be from it.
PRIORS = {
    "linear_factor": (1.0, 0.2),
    "attention_factor": (1.0, 0.2),
    "draft_attention_factor": (1.0, 0.3),
    "comm_factor": (1.0, 0.3),
    "layer_overhead_s": (0.0, 50e-6),
    "layer_overhead_per_sequence_s": (0.0, 1e-6),
    "step_overhead_s": (0.0, 1e-3),
    "draft_step_overhead_s": (0.0, 1e-3),
}
NAMES = tuple(PRIORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFit:
    """Fitted coefficients of one GPU architecture, and the round overhead."""

    values: dict[str, float]
    rows: int
    rms_percent: float

    def apply(self, profile: EngineProfile) -> EngineProfile:
        """The profile with the fitted values in place."""
        return replace(profile, **self.values)


def bare(profile: EngineProfile) -> EngineProfile:
    """The profile with every fitted coefficient neutral: what the fit multiplies."""
    neutral = {name: 1.0 if name.endswith("factor") else 0.0 for name in NAMES}
    return replace(
        profile, **neutral, round_overhead_s=0.0, round_overhead_per_sequence_s=0.0
    )


def fit_rows(rows: Sequence[PublishedRow]) -> EngineFit:
    """Bounded linear least squares on relative errors, with the priors as extra rows."""
    design, measured = _design(rows)
    matrix = design / measured[:, None] / MEASUREMENT_ERROR
    # What no coefficient scales (small ops) is in the design's last column.
    target = (1.0 - design[:, -1] / measured) / MEASUREMENT_ERROR
    prior, width = (np.array(values) for values in zip(*PRIORS.values(), strict=True))
    stacked = np.vstack([matrix[:, :-1], np.diag(1.0 / width)])
    answer = lsq_linear(stacked, np.concatenate([target, prior / width]), bounds=(0.0, np.inf)).x
    residual = design[:, :-1] @ answer + design[:, -1]
    rms = float(np.sqrt(np.mean((residual / measured - 1.0) ** 2)))
    values = dict(zip(NAMES, (float(v) for v in answer), strict=True))
    return EngineFit(
        values=values | _round_overhead(rows), rows=len(rows), rms_percent=100.0 * rms
    )


def _design(rows: Iterable[PublishedRow]) -> tuple[Array, Array]:
    """One line per row and phase: seconds that each coefficient multiplies, and the rest."""
    lines, measured = [], []
    for row in rows:
        point = predict_row(row, bare)
        draft = point.draft_step
        assert draft is not None and point.scenario.draft is not None
        steps = ((point.target_step, row.target_step_s), (point.verify, row.verify_s))
        for step, seconds in steps:
            lines.append(_line(step, point.scenario.target.layers, row.batch, is_draft=False))
            measured.append(seconds)
        lines.append(_line(draft, point.scenario.draft.layers, row.batch, is_draft=True))
        measured.append(row.draft_step_s)
    return np.array(lines), np.array(measured)


def _line(step: StepTime, layers: int, batch: int, *, is_draft: bool) -> list[float]:
    linear, attention = float(step.group_s("linear")), float(step.group_s("attention"))
    comm, rest = float(step.group_s("comm")), float(step.group_s("elementwise"))
    overhead = float(step.group_s("overhead"))
    mine = [0.0, attention] if is_draft else [attention, 0.0]
    host = [0.0, 1.0] if is_draft else [1.0, 0.0]
    return [linear, *mine, comm, float(layers), float(layers * batch), *host, rest + overhead]


def _round_overhead(rows: Sequence[PublishedRow]) -> dict[str, float]:
    """Round overhead as a line in the batch, neither coefficient negative."""
    batch = np.array([row.batch for row in rows], float)
    overhead = np.array([row.overhead_s for row in rows])
    matrix = np.stack([np.ones_like(batch), batch], axis=1)
    fixed, per_sequence = lsq_linear(matrix, overhead, bounds=(0.0, np.inf)).x
    return {
        "round_overhead_s": float(fixed),
        "round_overhead_per_sequence_s": float(per_sequence),
    }
