"""Leave-out errors of a GEMM table: of one cell, of all cells of an n, and of an n and a k.

The base of the curve is not refitted without the cells, since thousands of cells determine its four
parameters. Filled cells are not used.
"""

from __future__ import annotations

import numpy as np

from calibration.fit.errors import Errors, m_band, size_band
from calibration.fit.tables.gemm.tables import (
    BoolArray,
    FloatArray,
    GemmTable,
    combine,
    level_in_m,
    predict_along,
)

SMALLEST_SCORED_SIDE = 256
LARGEST_SCORED_M = 4096


def scored(table: GemmTable) -> BoolArray:
    """Cells that errors are computed for: measured, m up to 4096, n and k from 256."""
    wide, deep = table.n >= SMALLEST_SCORED_SIDE, table.k >= SMALLEST_SCORED_SIDE
    rows = table.m <= LARGEST_SCORED_M
    shape = rows[:, None, None] & wide[None, :, None] & deep[None, None, :]
    return np.asarray(shape & np.isfinite(table.seconds))


def leave_out_errors(table: GemmTable, log_multiplier: FloatArray, log_base: FloatArray) -> Errors:
    """Errors by what was left out, over the scored cells of a levelled table (M, N, K)."""
    errors = Errors("GEMMs", regions=lambda cell: (m_band(cell["m"]), size_band(cell)))
    for way, predicted in predictions(table, log_multiplier, log_base).items():
        error = np.exp(predicted + log_base) / table.seconds - 1.0
        for i, j, q in zip(*np.nonzero(scored(table) & np.isfinite(error)), strict=True):
            cell = {"m": table.m[i], "n": table.n[j], "k": table.k[q]}
            errors.add(way, cell, float(error[i, j, q]))
    return errors


def predictions(
    table: GemmTable, log_multiplier: FloatArray, log_base: FloatArray
) -> dict[str, FloatArray]:
    """Log multipliers (M, N, K) predicted without the cell itself, by what was left out.

    "cell out" uses the other m of the same matrix, levelled without the cell, and the neighbouring
    matrices at the same m. "n out" uses the neighbours in n, "n and k out" the four diagonal
    neighbours in n and k: the errors for a matrix with n, or n and k, between the knots.
    """
    known = np.where(np.isfinite(table.seconds), log_multiplier, np.nan)
    (_, gap_m), (along_n, gap_n), (along_k, gap_k) = (
        predict_along(known, knots, axis) for axis, knots in enumerate((table.m, table.n, table.k))
    )
    same_matrix = _curve_without_cell(table, log_base)
    return {
        "cell out": combine([same_matrix, along_n, along_k], [gap_m, gap_n, gap_k], known),
        "n out": along_n,
        "n and k out": predict_along(along_k, table.n, 1)[0],
    }


def _curve_without_cell(table: GemmTable, log_base: FloatArray) -> FloatArray:
    """Log multiplier of each scored cell from the other m of its matrix, (M, N, K)."""
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
