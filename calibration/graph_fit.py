"""Fit the `plain-graph` profile to whole steps of plain kernels in a CUDA graph on one H200.

`python -m calibration.graph_fit` prints the coefficients and what they leave. The `specroof`
profile takes the same values where the runtime's own kernels were not measured.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from calibration.published import PHASES, PublishedRow, h200_rows, predict_row, row_error
from perfmodel import EngineProfile

MEASUREMENT_ERROR = 0.015
# Start, prior width and bounds. What a step is made of is in the kernel tables already.
COEFFICIENTS = {
    "compute_factor": (1.0, 0.15, 0.3, 1.0),
    "activation_factor": (1.5, 0.3, 1.0, 5.0),
    "attention_factor": (1.0, 0.05, 0.5, 2.0),
    "kernel_gap_s": (1e-6, 1e-6, 0.0, 1e-5),
}


def fit_profile(rows: list[PublishedRow]) -> dict[str, float]:
    """Coefficients that explain T_T, T_V and T_D of these rows best, near their priors."""
    start, width, low, high = np.array(list(COEFFICIENTS.values())).T

    def residuals(x: NDArray[np.float64]) -> NDArray[np.float64]:
        misses = errors(rows, _values(x))
        return np.concatenate([misses.ravel() / MEASUREMENT_ERROR, (x - start) / width])

    answer = least_squares(residuals, start, x_scale=width, bounds=(low, high)).x
    return _values(answer)


def _values(x: NDArray[np.float64]) -> dict[str, float]:
    """Profile fields; one kernel reads the whole cache and a draft's, so one factor serves both."""
    values = dict(zip(COEFFICIENTS, (float(v) for v in x), strict=True))
    return values | {"draft_attention_factor": values["attention_factor"]}


def errors(rows: list[PublishedRow], values: dict[str, float]) -> NDArray[np.float64]:
    """Signed relative errors with these coefficients, (rows, phases)."""

    def change(profile: EngineProfile) -> EngineProfile:
        return profile.changed(**values)

    found = [row_error(row, predict_row(row, change)).errors for row in rows]
    return np.array([[row[phase] for phase in PHASES] for row in found])


def main() -> None:
    """Fit and print."""
    rows = h200_rows()
    values = fit_profile(rows)
    misses = 100.0 * errors(rows, values)
    for name, value in values.items():
        print(f"{name} = {value:.4g}")
    for phase, column in zip(PHASES, misses.T, strict=True):
        worst = column[np.argmax(np.abs(column))]
        print(f"{phase}: mean |error| {np.abs(column).mean():.1f} %, worst {worst:+.1f} %")


if __name__ == "__main__":
    main()
