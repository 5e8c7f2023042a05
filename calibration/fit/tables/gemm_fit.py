"""GEMM curves fitted to aiconfigurator's tables, with their leave-out errors: `gemm.toml`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.fit.tables.gemm_leave_out import (
    leave_both_sides_out,
    leave_one_cell_out,
    leave_one_matrix_out,
    leave_one_side_out,
    scored,
    summary,
)
from calibration.fit.tables.gemm_tables import (
    DECODE_ROWS,
    SMALLEST_SIDE,
    ColdFloor,
    GemmTable,
    cold_floor,
    fill,
    level_in_m,
    warm_cells,
)
from calibration.fit.tables.gpus import GPUS
from calibration.records.jsonl import RecordError
from calibration.records.toml_file import compact, fields_of, inline, toml_text
from perfmodel import GPU
from perfmodel.kernels import Waves, roofline_seconds
from perfmodel.units import MIB, TB, TFLOP, US

FloatArray = NDArray[np.float64]

# Rows at which tiles end (128 and 129) are both kept; between them times rise smoothly.
M_KNOTS = (1, 2, 4, 8, 16, 17, 32, 33, 48, 64, 65, 80, 81, 96, 112, 128, 129, 160, 192, 193, 224,
           256, 257, 384, 512, 513, 768, 769, 1024, 1025, 1280, 1536, 1792, 2048, 2049, 2560, 3072,
           3584, 4096, 8192, 16384, 32768)  # fmt: skip

LEAST_MATRICES = 16  # four by four sides, measured at some m
HEADER = """\
GEMM times, {gpu}.
Written by `specroof calibrate fit-tables`; the form is in perfmodel/kernels/gemm.py.
time_over_roofline_per_mille: a row per (n, k), n-major; a column per m.
"""
SCOPE = (
    "each (m, n, k) predicted without it; m up to 4096, n and k from 256; "
    "left_out_matrix: all m of the (n, k) left out; left_out_n: all of that n; "
    "left_out_n_and_k: all of that n and of that k"
)
NOTE = (
    "cells faster than launch_floor_us + weights / (cold_memory_efficiency x HBM) were read from "
    "L2: dropped and filled from their neighbours; the percentage is of the cells with m up to 64"
)

# Whole waves of 128 x 256 tiles lower the error of a left-out n on Ampere and Ada (m from 257 to
# 1024, median: A100 7.4 to 4.8 %, L40S 6.6 to 5.9 %) and raise it on Hopper, whose kernels share
# out the last wave (H100 5.5 to 6.8 %): so Hopper has none.
WHOLE_WAVES = ("ampere", "ada")


def waves_of(gpu: GPU) -> Waves | None:
    """The waves of tiles that products of this GPU come in, None where the last one is shared."""
    if gpu.architecture not in WHOLE_WAVES:
        return None
    return Waves(sm_count=gpu.sm_count, tile_rows=128, tile_columns=256, from_m=512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The physical parameters of a curve, before its table of multipliers."""

    kernel_latency_s: float
    memory_efficiency: float
    compute_efficiency: float
    overlap_exponent: float

    def seconds(self, table: GemmTable, gpu: GPU) -> FloatArray:
        """Roofline time of every cell, (M, N, K)."""
        return roofline_seconds(
            table.m[:, None, None],
            table.n[None, :, None],
            table.k[None, None, :],
            kernel_latency_s=self.kernel_latency_s,
            memory_rate=gpu.hbm_bandwidth * self.memory_efficiency,
            compute_rate=gpu.peak_flops * self.compute_efficiency,
            overlap_exponent=self.overlap_exponent,
            waves=waves_of(gpu),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class GemmFit:
    """A fitted curve on all measured m, with what was dropped to get it."""

    table: GemmTable  # warm cells removed
    base: Base
    log_base: FloatArray  # (M, N, K)
    log_multiplier: FloatArray  # (M, N, K), levelled in m, no gaps
    floor: ColdFloor
    warm_share: float  # of the cells with m <= 64


def fit_base(table: GemmTable, gpu: GPU) -> Base:
    """Latency, two efficiencies and the overlap exponent, by robust least squares on log time."""
    from scipy.optimize import least_squares

    cells = scored(table)

    def base_of(logs: FloatArray) -> Base:
        latency, memory, compute, overlap = np.exp(logs)
        return Base(
            kernel_latency_s=float(latency),
            memory_efficiency=float(memory),
            compute_efficiency=float(compute),
            overlap_exponent=1.0 + float(overlap),
        )

    def residuals(logs: FloatArray) -> FloatArray:
        return np.asarray(np.log(table.seconds[cells] / base_of(logs).seconds(table, gpu)[cells]))

    start = np.log([3e-6, 0.8, 0.7, 1.0])
    # No kernel exceeds a peak: where the data would rather have it so, the exponent takes the rest.
    most = np.log([1e-3, 1.0, 1.0, 100.0])
    solved = least_squares(
        residuals, start, bounds=(np.full(4, -np.inf), most), loss="soft_l1", f_scale=0.1
    )
    return base_of(solved.x)


def fit_gemm_table(measured: GemmTable, gpu: GPU) -> GemmFit:
    """Drop cells that L2 served, fit the base, fill and level the multipliers.

    Raises
    ------
    RecordError
        If there are too few matrices to fit, or times that the GPU cannot reach.
    """
    matrices = int(np.isfinite(measured.seconds).any(axis=0).sum())
    if matrices < LEAST_MATRICES:
        raise RecordError(
            f"products: {matrices} matrices of {SMALLEST_SIDE} rows and columns or more; "
            f"{LEAST_MATRICES} are needed"
        )
    floor = cold_floor(measured, hbm_bandwidth=gpu.hbm_bandwidth, l2_bytes=gpu.l2_bytes)
    if not 0.0 < floor.memory_efficiency <= 1.0:
        raise RecordError(
            f"products: weights are read at {floor.memory_efficiency:.2f} of the HBM bandwidth of "
            f"{gpu.name}; the table is of another GPU"
        )
    warm = warm_cells(measured, floor, gpu.hbm_bandwidth)
    table = measured.without(warm)
    base = fit_base(table, gpu)
    log_base = np.log(base.seconds(table, gpu))
    filled = fill(np.log(table.seconds) - log_base, (table.m, table.n, table.k))
    levelled = np.apply_along_axis(level_in_m, 0, filled + log_base, table.m)
    return GemmFit(
        table=table,
        base=base,
        log_base=log_base,
        log_multiplier=levelled - log_base,
        floor=floor,
        warm_share=float(warm[measured.m <= DECODE_ROWS].mean()),
    )


def leave_outs(fit: GemmFit) -> dict[str, FloatArray]:
    """Signed relative errors of every scored cell, (M, N, K) each, by what was left out."""
    table, multiplier, base = fit.table, fit.log_multiplier, fit.log_base
    return {
        "cell": leave_one_cell_out(table, multiplier, base),
        "matrix": leave_one_matrix_out(table, multiplier, base),
        "n": leave_one_side_out(table, multiplier, base, axis=1),
        "n_and_k": leave_both_sides_out(table, multiplier, base),
    }


def catalog_text(name: str, fit: GemmFit, gpu: GPU) -> str:
    """The catalog file of a fit: parameters, provenance, residuals, table of multipliers."""
    at_knots = np.isin(fit.table.m, M_KNOTS)
    per_mille = np.rint(1000.0 * np.exp(fit.log_multiplier[at_knots])).astype(int)
    waves = waves_of(gpu)
    values = {
        "kernel_latency_us": round(fit.base.kernel_latency_s / US, 4),
        "memory_efficiency": round(fit.base.memory_efficiency, 4),
        "compute_efficiency": round(fit.base.compute_efficiency, 4),
        "overlap_exponent": round(fit.base.overlap_exponent, 4),
        **({} if waves is None else {"waves": fields_of(waves)}),
        "source": _source(name, fit.table),
        "fit": _provenance(name, fit, gpu),
        "residuals": _residuals(fit),
        "table": {
            "m": compact(fit.table.m[at_knots], 12),
            "n": compact(fit.table.n, 12),
            "k": compact(fit.table.k, 12),
            "time_over_roofline_per_mille": np.moveaxis(per_mille, 0, -1).reshape(
                -1, int(at_knots.sum())
            ),
        },
    }
    return toml_text(values, header=HEADER.format(gpu=name))


def _source(name: str, table: GemmTable) -> dict[str, str]:
    return {
        "dataset": f"PyPI aiconfigurator-core 0.12.0, {GPUS[name].folder}/gemm.parquet",
        "licence": "Apache-2.0",
        "device": table.device,
        "kernel_library": table.kernel_library,
        "kernel_version": table.kernel_version,
        "dtype": "bfloat16",
    }


def _provenance(name: str, fit: GemmFit, gpu: GPU) -> dict[str, str | float]:
    return {
        "command": f"specroof calibrate fit-tables DIR --gpu {name}",
        "peak_TFLOPS": compact(gpu.peak_flops / TFLOP),
        "hbm_TBps": compact(gpu.hbm_bandwidth / TB),
        "l2_MiB": compact(gpu.l2_bytes / MIB),
        "launch_floor_us": round(fit.floor.launch_s / US, 4),
        "cold_memory_efficiency": round(fit.floor.memory_efficiency, 4),
        "warm_cells_dropped_percent": round(100.0 * fit.warm_share, 2),
        "note": NOTE,
    }


def _residuals(fit: GemmFit) -> dict[str, Any]:
    """Absolute errors in percent: of each cell left out, then of whole matrices and sides."""
    summaries = {way: _rounded(summary(e, fit.table)) for way, e in leave_outs(fit).items()}
    cell = summaries.pop("cell")
    values: dict[str, Any] = {"scope": SCOPE, **cell.pop("all"), "by_region": _inline(cell)}
    for way, regions in summaries.items():
        values[f"left_out_{way}"] = {**regions.pop("all"), **_inline(regions)}
    return values


def _rounded(regions: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    return {r: {k: round(v, 2) for k, v in figures.items()} for r, figures in regions.items()}


def _inline(regions: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {region: inline(figures) for region, figures in regions.items()}


def report_lines(name: str, fit: GemmFit) -> list[str]:
    """The errors as text: median / 90th percentile / worst, by region."""
    used = np.isfinite(fit.table.seconds).sum()
    lines = [
        f"{name}: {fit.table.device}, {used:,} cells used; dropped as read from L2: "
        f"{100.0 * fit.warm_share:.1f} % of the cells with m up to {DECODE_ROWS:g}"
    ]
    for left_out, errors in leave_outs(fit).items():
        lines.append(f"  {left_out} left out: median / p90 / worst, percent")
        for region, figures in summary(errors, fit.table).items():
            values = " / ".join(f"{value:5.1f}" for value in figures.values())
            lines.append(f"    {region:24s} {values}")
    return lines
