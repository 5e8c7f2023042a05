"""Published GEMM times as arrays: drop cells read from L2, level noise in m, and fill gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.records.jsonl import RecordError

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

SMALLEST_SIDE = 128  # no decoder layer is narrower at any TP degree
DECODE_ROWS = 64.0  # up to this m every decoder layer is limited by reading its weights
WARM_MARGIN = 0.03  # relative noise of a cell at the cold floor


@dataclass(frozen=True, eq=False, kw_only=True)
class GemmTable:
    """Measured times of `(m, k) x (k, n)` products; NaN for cells without a time.

    The weights take `element_bytes` each, and the peak is `peak_ratio` times that of bf16.
    """

    m: FloatArray  # (M,)
    n: FloatArray  # (N,)
    k: FloatArray  # (K,)
    seconds: FloatArray  # (M, N, K)
    device: str
    kernel_library: str
    kernel_version: str
    dtype: str = "bfloat16"
    element_bytes: float = 2.0
    peak_ratio: float = 1.0

    @property
    def weight_bytes(self) -> FloatArray:
        """Size of each weight matrix, (1, N, K). [bytes]"""
        return np.asarray(self.element_bytes * self.n[None, :, None] * self.k[None, None, :])

    def without(self, cells: BoolArray) -> GemmTable:
        """The table with NaN in these cells; `cells` broadcasts to (M, N, K)."""
        return replace(self, seconds=np.where(cells, np.nan, self.seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdFloor:
    """The shortest possible time of a product with cold weights: launch, then reading from HBM."""

    launch_s: float
    memory_efficiency: float

    def seconds(self, weight_bytes: FloatArray, hbm_bandwidth: float) -> FloatArray:
        """The floor for matrices of these sizes, in the shape of `weight_bytes`. [s]"""
        return self.launch_s + weight_bytes / (self.memory_efficiency * hbm_bandwidth)


def gemm_table(
    rows: pd.DataFrame,
    dtype: str = "bfloat16",
    *,
    element_bytes: float = 2.0,
    peak_ratio: float = 1.0,
) -> GemmTable:
    """The rows of one type in aiconfigurator's table "gemm", for matrices with n and k from 128."""
    rows = rows[rows["gemm_dtype"] == dtype]
    rows = rows[(rows["n"] >= SMALLEST_SIDE) & (rows["k"] >= SMALLEST_SIDE)]
    if rows.empty:
        raise RecordError(f"GEMMs: the table has no bfloat16 rows of n and k from {SMALLEST_SIDE}")
    m, n, k = (np.unique(rows[axis].to_numpy()) for axis in ("m", "n", "k"))
    seconds = np.full((m.size, n.size, k.size), np.nan)
    place = tuple(
        np.searchsorted(knots, rows[axis].to_numpy())
        for knots, axis in ((m, "m"), (n, "n"), (k, "k"))
    )
    seconds[place] = rows["latency"].to_numpy() * 1e-3  # the column is in ms
    return GemmTable(
        m=m.astype(np.float64),
        n=n.astype(np.float64),
        k=k.astype(np.float64),
        seconds=seconds,
        device=str(rows["device"].iloc[0]),
        kernel_library=f"{rows['framework'].iloc[0]}, {rows['kernel_source'].iloc[0]}",
        kernel_version=str(rows["version"].iloc[0]),
        dtype=dtype,
        element_bytes=element_bytes,
        peak_ratio=peak_ratio,
    )


def cold_floor(table: GemmTable, *, hbm_bandwidth: float, l2_bytes: float) -> ColdFloor:
    """The cold floor, from matrices more than four times as large as L2.

    The launch time is the shortest time in the table. The memory efficiency is the 95th percentile
    of weight bytes over time after the launch, for m up to `DECODE_ROWS`; 0 if no matrix is large
    enough.
    """
    launch = float(np.nanmin(table.seconds))
    large = (table.m <= DECODE_ROWS)[:, None, None] & (table.weight_bytes > 4.0 * l2_bytes)
    large = large & (table.seconds > launch)  # False for NaN
    sizes = np.broadcast_to(table.weight_bytes, table.seconds.shape)[large]
    rate = np.append(sizes / (table.seconds[large] - launch), [] if large.any() else [0.0])
    return ColdFloor(
        launch_s=launch, memory_efficiency=float(np.percentile(rate, 95)) / hbm_bandwidth
    )


def warm_cells(table: GemmTable, floor: ColdFloor, hbm_bandwidth: float) -> BoolArray:
    """Cells faster than HBM allows, (M, N, K), since their weights came from L2.

    In a pass over a whole model weights are never in L2, since each layer evicts the previous one.
    """
    least = floor.seconds(table.weight_bytes, hbm_bandwidth)
    return np.asarray(table.seconds < (1.0 - WARM_MARGIN) * least)


def level_in_m(log_seconds: FloatArray, m: FloatArray) -> FloatArray:
    """The nearest sequence that never falls (weighted least squares), (M,) → (M,).

    Steps at tile edges are preserved. Dips and outliers are averaged with their neighbours, so the
    result is not biased upward like a running maximum. Where kernels get slower and then faster
    again as m grows (A100 at 2 to 16 rows, Hopper at 224), such a curve is wrong on one side;
    `batch_weight` decides on which.
    """
    from scipy.optimize import isotonic_regression

    return np.asarray(isotonic_regression(log_seconds, weights=batch_weight(m)).x)


def batch_weight(m: FloatArray) -> FloatArray:
    """Weight of each m in levelling: 3 for one row and powers of two from 16, which engines use
    most; 1 for other multiples of 8; 0.5 below 16; 0.25 for the m that mark tile edges, which
    engines avoid by padding."""
    power_of_two = (m == 1) | ((m >= 16) & (np.log2(m) % 1.0 == 0))
    return np.select([power_of_two, m < 16, m % 8 == 0], [3.0, 0.5, 1.0], 0.25)


def predict_along(
    values: FloatArray, knots: FloatArray, axis: int
) -> tuple[FloatArray, FloatArray]:
    """Predict each cell from the nearest known cells before and after it on one axis.

    Parameters
    ----------
    values : array (M, N, K)
        Log multipliers; NaN if unknown.
    knots : array
        Positions along `axis`, interpolated in logarithms. Beyond the known cells the nearest value
        is used.

    Returns
    -------
    predicted : array (M, N, K)
        NaN if there is no other known cell on the line.
    gap : array (M, N, K)
        Log distance to the nearest cell used.
    """
    lines = np.moveaxis(values, axis, 0)
    x = np.log(knots).reshape((-1,) + (1,) * (lines.ndim - 1))
    before, x_before = _nearest_before(lines, x)
    after, x_after = _nearest_before(lines[::-1], x[::-1])
    after, x_after = after[::-1], x_after[::-1]
    gap_before, gap_after = x - x_before, x_after - x
    share = gap_before / (gap_before + gap_after)
    between = before * (1.0 - share) + after * share
    predicted = np.where(np.isnan(before), after, np.where(np.isnan(after), before, between))
    gap = np.fmin(gap_before, gap_after)
    return np.moveaxis(predicted, 0, axis), np.moveaxis(gap, 0, axis)


def _nearest_before(lines: FloatArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The last known value before each cell on axis 0 and its position; NaN if there is none."""
    value, place = np.full_like(lines, np.nan), np.full_like(lines, np.nan)
    for i in range(1, len(lines)):
        known = np.isfinite(lines[i - 1])
        value[i] = np.where(known, lines[i - 1], value[i - 1])
        place[i] = np.where(known, x[i - 1], place[i - 1])
    return value, place


def line_errors(predicted: FloatArray, truth: FloatArray) -> FloatArray:
    """Median absolute error of predictions along one axis at each m, in logarithms, (M,).

    An m without known cells gets the median of the others.
    """
    errors = np.full(len(truth), np.nan)
    for i, error in enumerate(np.abs(predicted - truth)):
        if np.isfinite(error).any():
            errors[i] = np.nanmedian(error)
    return np.maximum(np.where(np.isnan(errors), np.nanmedian(errors), errors), 1e-3)


def combine(
    predictions: Sequence[FloatArray], gaps: Sequence[FloatArray], truth: FloatArray
) -> FloatArray:
    """Combine predictions along several axes, weighted by their inverse squared errors.

    The error of a prediction is the typical one for its axis and m (`line_errors`), increased with
    the log distance to the nearest neighbour. All arrays are (M, N, K).
    """
    total, weights = np.zeros_like(truth), np.zeros_like(truth)
    for predicted, gap in zip(predictions, gaps, strict=True):
        error = line_errors(predicted, truth)[:, None, None]
        weight = np.where(np.isfinite(predicted), 1.0 / (error**2 * (1.0 + gap**2)), 0.0)
        total += weight * np.nan_to_num(predicted)
        weights += weight
    return np.asarray(total / np.where(weights > 0, weights, np.nan))


def fill(log_multiplier: FloatArray, knots: tuple[FloatArray, ...]) -> FloatArray:
    """The table with every NaN predicted from the neighbours on all three axes, (M, N, K)."""
    lines = [predict_along(log_multiplier, knots[axis], axis) for axis in range(3)]
    filled = combine([line[0] for line in lines], [line[1] for line in lines], log_multiplier)
    return np.where(np.isfinite(log_multiplier), log_multiplier, filled)
