"""Fit a GEMM curve to aiconfigurator's tables, as the catalog file `gemm.toml`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.fit.errors import Errors
from calibration.fit.tables.gemm.leave_out import scored
from calibration.fit.tables.gemm.tables import (
    DECODE_ROWS,
    SMALLEST_SIDE,
    ColdFloor,
    GemmTable,
    cold_floor,
    fill,
    level_in_m,
    warm_cells,
)
from calibration.fit.tables.gpus import GPUS, LEAST_MATRICES
from calibration.records.jsonl import RecordError
from calibration.records.toml_file import compact, fields_of, toml_text
from perfmodel import GPU
from perfmodel.kernels import Waves, roofline_seconds
from perfmodel.units import MIB, TB, TFLOP, US

FloatArray = NDArray[np.float64]

# Both sides of tile edges (128 and 129) are knots; times rise smoothly between them.
M_KNOTS = (1, 2, 4, 8, 16, 17, 32, 33, 48, 64, 65, 80, 81, 96, 112, 128, 129, 160, 192, 193, 224,
           256, 257, 384, 512, 513, 768, 769, 1024, 1025, 1280, 1536, 1792, 2048, 2049, 2560, 3072,
           3584, 4096, 8192, 16384, 32768)  # fmt: skip

LEAST_ROW_COUNTS = 6
LEAST_EFFICIENCY = 0.05  # of reading large weights; a lower one is a time in another unit
HEADER = """\
GEMM times, {gpu}.
Written by `specroof calibrate fit-tables`; the form is in perfmodel/kernels/gemm.py.
time_over_roofline_per_mille: a row per (n, k), n-major; a column per m.
"""
SCOPE = (
    "cells with m up to 4096, n and k from 256; cell_out: each (m, n, k) predicted without it; "
    "n_out: without all cells of its n; n_and_k_out: without those of its n and of its k"
)
NOTE = (
    "cells faster than launch_floor_us + weights / (cold_memory_efficiency x HBM) were read from "
    "L2: dropped and filled from their neighbours; the percentage is of the cells with m up to 64"
)

# Whole waves of 128 x 256 tiles lower the error of a left-out n on Ampere and Ada (m from 257 to
# 1024, median: A100 7.4 to 4.8 %, L40S 6.6 to 5.9 %). They raise it on Hopper (H100 5.5 to 6.8 %),
# whose kernels split the last wave, so Hopper's curves have no waves.
WHOLE_WAVES = ("ampere", "ada")


def waves_of(gpu: GPU) -> Waves | None:
    """The waves of tiles in which this GPU computes GEMMs; None if it splits the last wave."""
    if gpu.architecture not in WHOLE_WAVES:
        return None
    return Waves(sm_count=gpu.sm_count, tile_rows=128, tile_columns=256, from_m=512)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The physical parameters of a curve, without its table of multipliers."""

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
            compute_rate=table.peak_ratio * gpu.peak_flops * self.compute_efficiency,
            overlap_exponent=self.overlap_exponent,
            weight_bytes_per_element=table.element_bytes,
            waves=waves_of(gpu),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class GemmFit:
    """A fitted curve at all measured m, and the cells it was fitted to."""

    table: GemmTable  # without warm cells
    base: Base
    log_base: FloatArray  # (M, N, K)
    log_multiplier: FloatArray  # (M, N, K), levelled in m and without gaps
    floor: ColdFloor
    warm_share: float  # share of warm cells among those with m <= 64


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
    # No kernel exceeds a peak; if the data suggests one does, the exponent accounts for it.
    most = np.log([1e-3, 1.0, 1.0, 100.0])
    solved = least_squares(
        residuals, start, bounds=(np.full(4, -np.inf), most), loss="soft_l1", f_scale=0.1
    )
    return base_of(solved.x)


def fit_gemm_table(measured: GemmTable, gpu: GPU) -> GemmFit:
    """Drop cells that were read from L2, fit the base, and fill and level the multipliers.

    Raises
    ------
    RecordError
        If there are too few matrices, or times that are impossible on the GPU.
    """
    matrices = int((np.isfinite(measured.seconds).sum(axis=0) >= LEAST_ROW_COUNTS).sum())
    if matrices < LEAST_MATRICES:
        raise RecordError(
            f"GEMMs: the table has {matrices} matrices with n and k of {SMALLEST_SIDE} or more and "
            f"at least {LEAST_ROW_COUNTS} values of m; at least {LEAST_MATRICES} are needed"
        )
    floor = cold_floor(measured, hbm_bandwidth=gpu.hbm_bandwidth, l2_bytes=gpu.l2_bytes)
    if not LEAST_EFFICIENCY <= floor.memory_efficiency <= 1.0:
        raise RecordError(
            f"GEMMs: weights would be read at {floor.memory_efficiency:.3g} times the HBM "
            f"bandwidth of {gpu.name}; the table is from another GPU, or not in ms"
        )
    warm = warm_cells(measured, floor, gpu.hbm_bandwidth)
    table = measured.without(warm)
    base = fit_base(table, gpu)
    log_base = np.log(base.seconds(table, gpu))
    filled = fill(np.log(table.seconds) - log_base, (table.m, table.n, table.k))
    if not np.isfinite(filled).all():
        raise RecordError(
            "GEMMs: some matrices have no neighbour to be filled from; the table needs more "
            "combinations of m, n and k"
        )
    levelled = np.apply_along_axis(level_in_m, 0, filled + log_base, table.m)
    return GemmFit(
        table=table,
        base=base,
        log_base=log_base,
        log_multiplier=levelled - log_base,
        floor=floor,
        warm_share=float(warm[measured.m <= DECODE_ROWS].mean()),
    )


def catalog_text(
    name: str,
    fit: GemmFit,
    errors: Errors,
    gpu: GPU,
    *,
    source: str = "gemm",
    scope: str = SCOPE,
) -> str:
    """The catalog file of a fit: parameters, provenance, errors, and table of multipliers."""
    at_knots = np.isin(fit.table.m, M_KNOTS)
    per_mille = np.rint(1000.0 * np.exp(fit.log_multiplier[at_knots])).astype(int)
    waves = fields_of(waves_of(gpu)) if waves_of(gpu) else {}
    waves.pop("smoothed", None)  # of GPUs without measured kernels
    values = {
        "kernel_latency_us": round(fit.base.kernel_latency_s / US, 4),
        "memory_efficiency": round(fit.base.memory_efficiency, 4),
        "compute_efficiency": round(fit.base.compute_efficiency, 4),
        "overlap_exponent": round(fit.base.overlap_exponent, 4),
        **({"waves": waves} if waves else {}),
        "source": _source(name, fit.table, source),
        "fit": _provenance(name, fit, gpu),
        "residuals": {"scope": scope, **errors.flat()},
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


def _source(name: str, table: GemmTable, file: str) -> dict[str, str]:
    return {
        "dataset": f"PyPI aiconfigurator-core 0.12.0, {GPUS[name].folder}/{file}.parquet",
        "licence": "Apache-2.0",
        "device": table.device,
        "kernel_library": table.kernel_library,
        "kernel_version": table.kernel_version,
        "dtype": table.dtype,
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


def report_line(fit: GemmFit) -> str:
    """The number of cells used, and the share of cells that were read from L2."""
    return (
        f"GEMMs: {np.isfinite(fit.table.seconds).sum():,} cells used; "
        f"{100.0 * fit.warm_share:.1f} % of the cells with m up to {DECODE_ROWS:g} were read from "
        f"L2 and dropped"
    )
