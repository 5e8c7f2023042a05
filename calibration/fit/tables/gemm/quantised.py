"""Fit GEMM curves of quantised weights to aiconfigurator's tables: `gemm-<dtype>.toml`.

The form is that of the bf16 curves (`gemm.fit`), with the bytes and the peak FLOP/s of the type, on
fewer knots. Times include the quantisation of the activations (fp8, nvfp4) or the conversion of the
weights to bf16 (int8, int4). Cells off the knots are not used in the fit, so they are held out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calibration.fit.errors import Errors, m_band, size_band
from calibration.fit.tables.gemm.fit import GemmFit, catalog_text, fit_gemm_table, waves_of
from calibration.fit.tables.gemm.leave_out import LARGEST_SCORED_M, SMALLEST_SCORED_SIDE
from calibration.fit.tables.gemm.tables import (
    BoolArray,
    FloatArray,
    GemmTable,
    cold_floor,
    gemm_table,
    warm_cells,
)
from calibration.fit.tables.gpus import MeasuredGpu, has_table, read_table
from perfmodel.kernels import GemmCurve
from perfmodel.specs import DTYPES

M_KNOTS = (1, 4, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
SIDE_KNOTS = (256, 512, 1024, 2048, 4096, 8192, 16384, 65536)
LEAST_FILLED = 0.4  # share of measured cells of a knot
SCOPE = (
    "cells with m up to 4096, n and k from 256, without those read from L2; n_and_k_between_knots "
    "and m_between_knots: cells that the curve was not fitted to"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A weight type: its name in the catalog, its table, and its name in that table."""

    dtype: str
    table: str
    name: str

    def read(self, data: Path, gpu: MeasuredGpu, *, later: bool = False) -> GemmTable | None:
        """The measured times, or those of a later version; None if this GPU has none."""
        file = f"{self.table}_later" if later else self.table
        if not has_table(data, gpu, file):
            return None
        rows = read_table(data, gpu, file)
        if not (rows["gemm_dtype"] == self.name).any():
            return None
        kind = DTYPES[self.dtype]
        return gemm_table(rows, self.name, element_bytes=kind.bytes, peak_ratio=kind.peak_ratio)


# vLLM's rows of fp8_block include a launch of 60 us from the host, so TensorRT-LLM's are used. On
# B200, vLLM's fp8 takes twice as long with up to 8 rows as with 16, so SGLang's is used.
FORMATS = (
    Format(dtype="fp8", table="gemm_sglang", name="fp8"),
    Format(dtype="fp8", table="gemm", name="fp8"),
    Format(dtype="fp8_block", table="gemm_trtllm", name="fp8_block"),
    Format(dtype="int8", table="gemm_trtllm", name="int8_wo"),
    Format(dtype="int4", table="gemm_trtllm", name="int4_wo"),
    Format(dtype="nvfp4", table="gemm", name="nvfp4"),
)


def fit_formats(data: Path, gpu: MeasuredGpu) -> tuple[dict[str, str], list[Errors]]:
    """The catalog files of all formats that were measured on a GPU, and their errors."""
    files: dict[str, str] = {}
    reports: list[Errors] = []
    for kind in FORMATS:
        file = f"efficiency/{gpu.name}/gemm-{kind.dtype}.toml"
        table = None if file in files else kind.read(data, gpu)
        if table is None:
            continue
        fit = fit_gemm_table(on_knots(table), gpu.sheet)
        errors = knot_errors(kind.dtype, fit, table, gpu)
        if (later := kind.read(data, gpu, later=True)) is not None:
            _add(errors, "later kernels", later, _error(fit, later, gpu))  # not fitted to them
        text = catalog_text(gpu.name, fit, errors, gpu.sheet, source=kind.table, scope=SCOPE)
        files[file] = text
        reports.append(errors)
    return files, reports


def on_knots(table: GemmTable) -> GemmTable:
    """The cells on the knots, without knots of which most cells were not measured."""
    axes = (table.m, M_KNOTS), (table.n, SIDE_KNOTS), (table.k, SIDE_KNOTS)
    kept = [np.isin(values, knots) for values, knots in axes]
    part = _part(table, kept)
    known = np.isfinite(part.seconds)
    others = ((1, 2), (0, 2), (0, 1))
    return _part(part, [known.mean(axis=axis) > LEAST_FILLED for axis in others])


def _part(table: GemmTable, kept: list[BoolArray]) -> GemmTable:
    m, n, k = kept
    seconds = table.seconds[np.ix_(m, n, k)]
    return replace(table, m=table.m[m], n=table.n[n], k=table.k[k], seconds=seconds)


def knot_errors(dtype: str, fit: GemmFit, table: GemmTable, gpu: MeasuredGpu) -> Errors:
    """Errors on the knots, and for cells with n and k, or m, between the knots."""
    errors = Errors(f"GEMMs in {dtype}", lambda c: (m_band(c["m"]), size_band(c)))
    error = _error(fit, table, gpu)
    on_m = np.isin(table.m, fit.table.m)[:, None, None]
    on_n = np.isin(table.n, fit.table.n)[None, :, None]
    on_k = np.isin(table.k, fit.table.k)[None, None, :]
    ways = {
        "on knots": on_m & on_n & on_k,
        "n and k between knots": on_m & ~on_n & ~on_k,
        "m between knots": ~on_m & on_n & on_k,
    }
    for way, cells in ways.items():
        _add(errors, way, table, np.where(cells, error, np.nan))
    return errors


def _error(fit: GemmFit, table: GemmTable, gpu: MeasuredGpu) -> FloatArray:
    """Relative error of each cell that counts; NaN for the others."""
    sheet = gpu.sheet
    error = _seconds(fit, table, gpu) / table.seconds - 1.0
    floor = cold_floor(table, hbm_bandwidth=sheet.hbm_bandwidth, l2_bytes=sheet.l2_bytes)
    error[warm_cells(table, floor, sheet.hbm_bandwidth)] = np.nan
    error[table.m > LARGEST_SCORED_M] = np.nan
    return error


def _add(errors: Errors, way: str, table: GemmTable, error: FloatArray) -> None:
    for i, j, q in zip(*np.nonzero(np.isfinite(error)), strict=True):
        cell = {"m": table.m[i], "n": table.n[j], "k": table.k[q]}
        errors.add(way, cell, float(error[i, j, q]))


def _seconds(fit: GemmFit, table: GemmTable, gpu: MeasuredGpu) -> FloatArray:
    """The curve at every cell of a table, (M, N, K); NaN for narrow matrices."""
    base, grid = fit.base, fit.table
    curve = GemmCurve(
        kernel_latency_s=base.kernel_latency_s,
        memory_efficiency=base.memory_efficiency,
        compute_efficiency=base.compute_efficiency,
        overlap_exponent=base.overlap_exponent,
        m_knots=grid.m,
        n_knots=grid.n,
        k_knots=grid.k,
        log_multiplier=fit.log_multiplier,
        source=grid.device,
        waves=waves_of(gpu.sheet),
    )
    out = np.full(table.seconds.shape, np.nan)
    for j, n in enumerate(table.n):
        for q, k in enumerate(table.k):
            if min(n, k) >= SMALLEST_SCORED_SIDE:
                out[:, j, q] = curve.seconds(
                    m=table.m,
                    n=int(n),
                    k=int(k),
                    peak_flops=table.peak_ratio * gpu.sheet.peak_flops,
                    hbm_bandwidth=gpu.sheet.hbm_bandwidth,
                    weight_bytes_per_element=table.element_bytes,
                )
    return out
