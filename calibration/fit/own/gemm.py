"""Products timed on one's own GPU, as ratios to the curve of its table: `gemm-specroof.toml`.

Each matrix gives one ratio a row count, without spikes and levelled so that its time never falls as
rows grow; nothing else is free. A matrix in between is told by those around it, which leaving one
out tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibration.fit.errors import Errors, m_band, size_band
from calibration.fit.tables.gemm_tables import level_in_m
from calibration.records.kernels import KernelRecord, KernelRecords
from perfmodel import GPU, GemmCurve, OwnProducts

Array = NDArray[np.float64]

LEAST_ROWS = 6  # row counts of a matrix, or it says too little
LEAST_SHAPES = 4
SPIKE = 1.3  # times its neighbours


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class OwnGemmFit:
    """The fitted ratios, the curve that they make, and how far it errs."""

    own: OwnProducts
    curve: GemmCurve
    shapes: tuple[tuple[int, int], ...]
    errors: Errors
    source: str
    command: str

    def toml(self) -> str:
        """The catalog file."""
        rows = np.rint(1e4 * np.exp(self.own.log_ratio)).astype(int)
        figures = self.errors.figures("matrix out")
        lines = [
            "# Products as the runtime runs them, timed on this GPU: ratios to gemm.toml's curve.",
            "# Written by `specroof calibrate fit`, not by hand.",
            "[own]",
            f'source = "{self.source}"',
            f'command = "{self.command}"',
            "# of a matrix left out, told by the others",
            f"median_percent = {figures['median_percent']:.2f}",
            f"p90_percent = {figures['p90_percent']:.2f}",
            "m = [" + ", ".join(f"{m:.0f}" for m in self.own.m_knots) + "]",
            "shapes = [" + ", ".join(f"[{n}, {k}]" for n, k in self.shapes) + "]",
            "# A row per shape (n, k), a column per m.",
            "time_over_table_per_10000 = [",
            *("  [" + ", ".join(map(str, row)) + "]," for row in rows),
            "]",
        ]
        return "\n".join(lines) + "\n"


def gemm_records(records: KernelRecords) -> list[KernelRecord]:
    """Products as the runtime runs them: its own choice, cuBLAS where that was not timed."""
    own = records.of("gemm", path="runtime")
    timed = {(r["m"], r["n"], r["k"]) for r in own}
    rest = [r for r in records.of("gemm") if r["path"] != "runtime"]
    return own + [r for r in rest if (r["m"], r["n"], r["k"]) not in timed]


def missing_gemm(records: Sequence[KernelRecord]) -> str | None:
    """What is lacking for a fit, in a clause; None where there is enough."""
    rows = _rows_by_shape(records)
    enough = [shape for shape, found in rows.items() if len(found) >= LEAST_ROWS]
    if len(enough) >= LEAST_SHAPES:
        return None
    return (
        f"products: {len(enough)} matrices with {LEAST_ROWS} row counts or more; "
        f"{LEAST_SHAPES} are needed"
    )


def fit_own_gemm(
    records: Sequence[KernelRecord], table: GemmCurve, gpu: GPU, *, source: str, command: str
) -> OwnGemmFit:
    """Ratios of every matrix with enough row counts, and their errors.

    Parameters
    ----------
    records : sequence of KernelRecord
        Of op "gemm"; `missing_gemm` must have said None.
    table : GemmCurve
        The curve that the ratios are to, without own products.
    """
    by_shape = _rows_by_shape(records)
    kept = {s: rows for s, rows in sorted(by_shape.items()) if len(rows) >= LEAST_ROWS}
    knots = np.array(sorted({m for rows in kept.values() for m in rows}), float)
    ratios = [_ratios(rows, knots, table, shape, gpu) for shape, rows in kept.items()]
    own = _products(list(kept), knots, np.array(ratios))
    curve = replace(table, own=own)
    errors = Errors("products", regions=lambda cell: (m_band(cell["m"]), size_band(cell)))
    for index, (shape, rows) in enumerate(kept.items()):
        others = _products(
            [s for s in kept if s != shape], knots, np.delete(np.array(ratios), index, axis=0)
        )
        without = replace(table, own=others)
        for m, seconds in rows.items():
            cell = {"m": m, "n": shape[0], "k": shape[1]}
            errors.add("in sample", cell, _seconds(curve, m, shape, gpu) / seconds - 1.0)
            errors.add("matrix out", cell, _seconds(without, m, shape, gpu) / seconds - 1.0)
            if min(rows) < m < max(rows):
                rest = {k: v for k, v in rows.items() if k != m}
                trial = np.array([r for r in rest], float), np.array(list(rest.values()))
                alone = np.exp(np.interp(np.log(m), np.log(trial[0]), np.log(trial[1])))
                errors.add("cell out", cell, float(alone) / seconds - 1.0)
    return OwnGemmFit(
        own=own, curve=curve, shapes=tuple(kept), errors=errors, source=source, command=command
    )


def _rows_by_shape(records: Sequence[KernelRecord]) -> dict[tuple[int, int], dict[int, float]]:
    """Median seconds of each (n, k) and m, rows rising."""
    found: dict[tuple[int, int], dict[int, list[float]]] = {}
    for record in records:
        shape = int(record["n"]), int(record["k"])
        found.setdefault(shape, {}).setdefault(int(record["m"]), []).append(record.seconds)
    return {
        shape: {m: float(np.median(rows[m])) for m in sorted(rows)} for shape, rows in found.items()
    }


def _ratios(
    rows: dict[int, float], knots: Array, table: GemmCurve, shape: tuple[int, int], gpu: GPU
) -> Array:
    """ln(time / table's) at the knots; between and beyond measured rows the ratio goes on."""
    m, log_s = np.array(list(rows), float), np.log(list(rows.values()))
    kept = ~spikes(log_s)
    m, log_s = m[kept], log_s[kept]
    level = level_in_m(log_s, m)
    base = np.log([_seconds(table, one, shape, gpu) for one in m])
    return np.asarray(np.interp(np.log(knots), np.log(m), level - base))


def spikes(log_seconds: Array) -> NDArray[np.bool_]:
    """Which times, rows rising, exceed both neighbours by more than `SPIKE`; never an end.

    No work explains them, and levelling would lift the rows around them.
    """
    above = np.diff(log_seconds) > np.log(SPIKE)
    below = np.diff(log_seconds) < -np.log(SPIKE)
    found = np.zeros(len(log_seconds), dtype=bool)
    found[1:-1] = above[:-1] & below[1:]
    return found


def _products(shapes: Sequence[tuple[int, int]], knots: Array, ratios: Array) -> OwnProducts:
    sides = np.array(shapes, float)
    return OwnProducts(
        m_knots=knots, log_n=np.log(sides[:, 0]), log_k=np.log(sides[:, 1]), log_ratio=ratios
    )


def _seconds(curve: GemmCurve, m: float, shape: tuple[int, int], gpu: GPU) -> float:
    found = curve.seconds(
        m=m, n=shape[0], k=shape[1], peak_flops=gpu.peak_flops, hbm_bandwidth=gpu.hbm_bandwidth
    )
    return float(found)
