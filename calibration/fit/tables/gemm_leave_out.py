"""Leave-one-out errors of a GEMM table: a cell, a matrix, a whole n, a whole n and k.

Functions take the table, its log multipliers levelled in m and its log base (both (M, N, K)) and
return the signed relative error of each scored cell, NaN elsewhere. The base is not refitted
without the cell: it has four parameters and thousands of cells. Filled cells are not used.
"""

from __future__ import annotations

import numpy as np

from calibration.fit.tables.gemm_tables import (
    BoolArray,
    FloatArray,
    GemmTable,
    combine,
    level_in_m,
    predict_along,
)
from perfmodel.units import MB

SMALLEST_SCORED_SIDE = 256
LARGEST_SCORED_M = 4096
M_BANDS = ((1, 16), (17, 64), (65, 256), (257, 1024), (1025, 4096))
WEIGHT_BANDS_MB = ((0, 8), (8, 33), (33, 100), (100, 300), (300, 10_000))


def scored(table: GemmTable) -> BoolArray:
    """Cells that errors are stated over: measured, m up to 4096, both sides 256 or more."""
    wide, deep = table.n >= SMALLEST_SCORED_SIDE, table.k >= SMALLEST_SCORED_SIDE
    rows = table.m <= LARGEST_SCORED_M
    shape = rows[:, None, None] & wide[None, :, None] & deep[None, None, :]
    return np.asarray(shape & np.isfinite(table.seconds))


def leave_one_cell_out(
    table: GemmTable, log_multiplier: FloatArray, log_base: FloatArray
) -> FloatArray:
    """Each cell from its matrix's curve, levelled anew without it, and from the matrices beside it
    at the same m."""
    known = _measured_only(table, log_multiplier)
    same_matrix = _curve_without_cell(table, log_base)
    _, gap_m = predict_along(known, table.m, 0)
    along_n, gap_n = predict_along(known, table.n, 1)
    along_k, gap_k = predict_along(known, table.k, 2)
    predicted = combine([same_matrix, along_n, along_k], [gap_m, gap_n, gap_k], known)
    return _relative_error(predicted, table, log_base)


def leave_one_matrix_out(
    table: GemmTable, log_multiplier: FloatArray, log_base: FloatArray
) -> FloatArray:
    """Each cell with all m of its (n, k) left out: from the matrices beside it in n and in k."""
    known = _measured_only(table, log_multiplier)
    along_n, gap_n = predict_along(known, table.n, 1)
    along_k, gap_k = predict_along(known, table.k, 2)
    return _relative_error(combine([along_n, along_k], [gap_n, gap_k], known), table, log_base)


def leave_one_side_out(
    table: GemmTable, log_multiplier: FloatArray, log_base: FloatArray, *, axis: int
) -> FloatArray:
    """Each cell with all of its n (axis 1) or all of its k (axis 2) left out: the error of a matrix
    whose n, or k, is not a knot."""
    known = _measured_only(table, log_multiplier)
    predicted, _ = predict_along(known, (table.m, table.n, table.k)[axis], axis)
    return _relative_error(predicted, table, log_base)


def leave_both_sides_out(
    table: GemmTable, log_multiplier: FloatArray, log_base: FloatArray
) -> FloatArray:
    """Each cell from the four matrices diagonal to it: the error of one between knots."""
    known = _measured_only(table, log_multiplier)
    along_k, _ = predict_along(known, table.k, 2)
    predicted, _ = predict_along(along_k, table.n, 1)
    return _relative_error(predicted, table, log_base)


def summary(errors: FloatArray, table: GemmTable) -> dict[str, dict[str, float]]:
    """Median, 90th percentile and worst absolute error in percent: all, by m, by weight size."""
    regions = {"all": np.ones_like(errors, dtype=bool)}
    for low, high in M_BANDS:
        rows = (table.m >= low) & (table.m <= high)
        regions[f"m_{low}_to_{high}"] = np.broadcast_to(rows[:, None, None], errors.shape)
    weights_MB = np.broadcast_to(table.weight_bytes / MB, errors.shape)
    for low, high in WEIGHT_BANDS_MB:
        regions[f"weights_{low}_to_{high}_MB"] = (weights_MB > low) & (weights_MB <= high)
    figures = {}
    for name, cells in regions.items():
        size = 100.0 * np.abs(errors[cells & np.isfinite(errors)])
        if size.size:
            figures[name] = {
                "median_percent": float(np.median(size)),
                "p90_percent": float(np.percentile(size, 90)),
                "worst_percent": float(size.max()),
            }
    return figures


def _measured_only(table: GemmTable, log_multiplier: FloatArray) -> FloatArray:
    return np.where(np.isfinite(table.seconds), log_multiplier, np.nan)


def _curve_without_cell(table: GemmTable, log_base: FloatArray) -> FloatArray:
    """Log multiplier of each scored cell from its matrix's other m, (M, N, K)."""
    log_seconds, log_m = np.log(table.seconds), np.log(table.m)
    predicted = np.full_like(log_seconds, np.nan)
    for i, j, q in zip(*np.nonzero(scored(table)), strict=True):
        others = np.isfinite(log_seconds[:, j, q])
        others[i] = False
        if others.any():
            level = level_in_m(log_seconds[others, j, q], table.m[others])
            known = level - log_base[others, j, q]
            predicted[i, j, q] = np.interp(log_m[i], log_m[others], known)
    return predicted


def _relative_error(
    log_multiplier: FloatArray, table: GemmTable, log_base: FloatArray
) -> FloatArray:
    error = np.exp(log_multiplier + log_base) / table.seconds - 1.0
    return np.where(scored(table), error, np.nan)
