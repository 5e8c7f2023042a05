"""Fit measured GEMM times as ratios to the GPU's table: `gemm-specroof.toml`, `gemm-library.toml`.

There is one ratio for each matrix shape and row count. Spikes are removed, and times are levelled
so that they never fall as the number of rows grows. Other shapes are interpolated; the error of
that is found by leaving one shape out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibration.fit.errors import Errors, m_band, size_band
from calibration.fit.tables.gemm.tables import level_in_m
from calibration.measure.grid import gemm_shapes
from calibration.records.kernels import KernelRecord
from calibration.records.toml_file import toml_text
from perfmodel import GPU
from perfmodel.kernels import GemmCurve, MeasuredRatios

Array = NDArray[np.float64]

LEAST_ROWS = 6  # a shape with fewer row counts is ignored
LEAST_SHAPES = 4
SPIKE = 1.3  # a time longer than both neighbours by this factor
RUNTIME, LIBRARY = "the runtime", "cuBLAS"
HEADER = """\
GEMM times of {kernels}, measured on this GPU, over those of gemm.toml's curve.
Written by `specroof calibrate fit`. A row per shape (n, k), a column per m;
median_percent and p90_percent are errors of a shape left out, predicted from the others.
"""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class RatioFit:
    """The fitted ratios, the curve with these ratios, and its errors."""

    ratios: MeasuredRatios
    curve: GemmCurve
    shapes: tuple[tuple[int, int], ...]
    errors: Errors
    source: str
    command: str

    def toml(self, kernels: str = RUNTIME) -> str:
        """The catalog file of these kernels."""
        figures = self.errors.figures("matrix out")
        table = {
            "source": self.source,
            "command": self.command,
            "median_percent": round(figures["median_percent"], 2),
            "p90_percent": round(figures["p90_percent"], 2),
            "m": self.ratios.m_knots.astype(int),
            "shapes": self.shapes,
            "time_over_table_per_10000": np.rint(1e4 * np.exp(self.ratios.log_ratio)).astype(int),
        }
        return toml_text({"measured": table}, header=HEADER.format(kernels=kernels))


def missing_gemm(records: Sequence[KernelRecord]) -> str | None:
    """What is missing for a fit, as a clause; None if the records suffice."""
    rows = _rows_by_shape(records)
    enough = [shape for shape, times in rows.items() if len(times) >= LEAST_ROWS]
    if len(enough) >= LEAST_SHAPES:
        return None
    return (
        f"GEMMs: {len(enough)} matrices with {LEAST_ROWS} row counts or more; "
        f"{LEAST_SHAPES} are needed"
    )


def split_by_rank(records: Sequence[KernelRecord]) -> tuple[list[KernelRecord], list[KernelRecord]]:
    """The records of whole models' matrices, and of those that only tensor-parallel ranks have."""
    whole: list[KernelRecord] = []
    of_ranks: list[KernelRecord] = []
    shapes = set(gemm_shapes())
    for record in records:
        (whole if (record["n"], record["k"]) in shapes else of_ranks).append(record)
    return whole, of_ranks


def fit_gemm(
    records: Sequence[KernelRecord],
    table: GemmCurve,
    gpu: GPU,
    *,
    source: str,
    command: str,
    table_rows: int = 0,
) -> RatioFit:
    """Ratios of all shapes with enough row counts, and their errors.

    Parameters
    ----------
    records : sequence of KernelRecord
        Records of op "gemm" for which `missing_gemm` returns None.
    table : GemmCurve
        The public curve that the times are divided by.
    table_rows : int, optional
        Up to so many rows, times are those of the table, and none above is shorter.
    """
    by_shape = {
        shape: rows
        for shape, rows in sorted(_rows_by_shape(records).items())
        if len(rows) >= LEAST_ROWS
    }
    shapes = list(by_shape)
    measured = {m for rows in by_shape.values() for m in rows}
    knots = np.array(sorted(measured | ({table_rows} if table_rows else set())), float)
    ratios = np.array(
        [_ratios(rows, knots, table, s, gpu, table_rows) for s, rows in by_shape.items()]
    )
    fitted = _measured_ratios(shapes, knots, ratios)
    curve = replace(table, measured=fitted)
    errors = Errors("GEMMs", regions=lambda cell: (m_band(cell["m"]), size_band(cell)))
    for index, (shape, rows) in enumerate(by_shape.items()):
        others = _measured_ratios(
            [s for s in shapes if s != shape], knots, np.delete(ratios, index, 0)
        )
        without = replace(table, measured=others)
        for m, seconds in rows.items():
            cell = {"m": m, "n": shape[0], "k": shape[1]}
            errors.add("in sample", cell, _seconds(curve, m, shape, gpu) / seconds - 1.0)
            errors.add("matrix out", cell, _seconds(without, m, shape, gpu) / seconds - 1.0)
            if min(rows) < m < max(rows):
                errors.add("cell out", cell, _between(rows, m) / seconds - 1.0)
    return RatioFit(
        ratios=fitted,
        curve=curve,
        shapes=tuple(shapes),
        errors=errors,
        source=source,
        command=command,
    )


def _between(rows: dict[int, float], m: int) -> float:
    """Seconds at `m` rows, log-interpolated from the other row counts of the shape."""
    others = {rows_at: seconds for rows_at, seconds in rows.items() if rows_at != m}
    log_m, log_s = np.log(list(others)), np.log(list(others.values()))
    return float(np.exp(np.interp(np.log(m), log_m, log_s)))


def _rows_by_shape(records: Sequence[KernelRecord]) -> dict[tuple[int, int], dict[int, float]]:
    """Median seconds by (n, k) and then by m in ascending order."""
    times: dict[tuple[int, int], dict[int, list[float]]] = {}
    for record in records:
        shape = int(record["n"]), int(record["k"])
        times.setdefault(shape, {}).setdefault(int(record["m"]), []).append(record.seconds)
    return {
        shape: {m: float(np.median(rows[m])) for m in sorted(rows)} for shape, rows in times.items()
    }


def _ratios(
    rows: dict[int, float],
    knots: Array,
    table: GemmCurve,
    shape: tuple[int, int],
    gpu: GPU,
    table_rows: int,
) -> Array:
    """ln(time / time of the table) at the knots; constant beyond the measured rows."""
    m, log_s = np.array(list(rows), float), np.log(list(rows.values()))
    regular = ~spikes(log_s)
    m, log_s = m[regular], log_s[regular]
    level = level_in_m(log_s, m)
    if table_rows:
        least = np.log(_seconds(table, table_rows, shape, gpu))
        m, level = np.array([table_rows, *m]), np.array([least, *np.maximum(level, least)])
    base = np.log([_seconds(table, one, shape, gpu) for one in m])
    return np.asarray(np.interp(np.log(knots), np.log(m), level - base))


def spikes(log_seconds: Array) -> NDArray[np.bool_]:
    """Times longer than both neighbours by the factor `SPIKE`; never the first or the last.

    The work does not explain such times, and levelling would increase the times around them.
    """
    above = np.diff(log_seconds) > np.log(SPIKE)
    below = np.diff(log_seconds) < -np.log(SPIKE)
    spike = np.zeros(len(log_seconds), dtype=bool)
    spike[1:-1] = above[:-1] & below[1:]
    return spike


def _measured_ratios(
    shapes: Sequence[tuple[int, int]], knots: Array, ratios: Array
) -> MeasuredRatios:
    sides = np.array(shapes, float)
    return MeasuredRatios(
        m_knots=knots, log_n=np.log(sides[:, 0]), log_k=np.log(sides[:, 1]), log_ratio=ratios
    )


def _seconds(curve: GemmCurve, m: float, shape: tuple[int, int], gpu: GPU) -> float:
    seconds = curve.seconds(
        m=m, n=shape[0], k=shape[1], peak_flops=gpu.peak_flops, hbm_bandwidth=gpu.hbm_bandwidth
    )
    return float(seconds)
