"""Fit curves of fused mixture-of-experts kernels to aiconfigurator's tables: `experts.toml`.

Only rows with a balanced distribution are fitted, in which T tokens with k experts each reach
min(E, T k) experts, so the number of experts with rows is known. Rows with a power-law distribution
test the curve: they are predicted with the number of experts expected for uniform routing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calibration.fit.errors import Errors
from calibration.fit.tables.correction import (
    Array,
    Fitted,
    Problem,
    errors_of,
    fit,
    held_out,
    predict,
)
from calibration.fit.tables.experts.cells import (
    FEW_TOKENS,
    SLOWER,
    SLOWER_THAN_BF16,
    TYPES,
    read_cells,
    sound_cells,
    split_latency,
)
from calibration.fit.tables.gpus import MeasuredGpu, has_table, read_table
from calibration.records.toml_file import compact, significant, toml_text
from perfmodel.kernels import ExpertsCurve, LogTable
from perfmodel.specs import DTYPES
from perfmodel.units import US

# TensorRT-LLM's kernels, by architecture and type, with the peak over that of bf16. On Hopper,
# vLLM 0.24's for fp8 with a scale per tensor take four times as long as bf16. On Blackwell, engines
# compute gpt-oss with activations in fp8, in which vLLM's table has no shape of it.
OTHER_TABLES = {
    ("hopper", "fp8"): ("moe_trtllm", "fp8", 2.0),
    ("blackwell", "mxfp4"): ("moe_trtllm", "w4a8_mxfp4_mxfp8", 2.0),
}
LEAST_CELLS = 200
AXES = {
    "rows_each": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048),
    "touched": (1, 4, 16, 64, 256),
    "matrix": (2**19, 2**21, 2**23, 2**25, 2**27),
}
PARAMETERS = {  # start, lower and upper bound
    "latency": (20e-6, 1e-6, 1e-3),
    "memory": (0.7, 0.05, 1.0),
    "compute": (0.5, 0.05, 1.0),
    "activation": (0.5, 0.02, 3.0),
    "overlap": (1.5, 1.0, 20.0),
}
ADDED = {"remote": (0.2, 0.005, 1e3), "sort": (8e-6, 1e-8, 1e-4)}  # not scaled by the correction
SMOOTHNESS = 0.3
HEADER = """\
Times of the routed experts of one layer on one rank, {gpu}.
Written by `specroof calibrate fit-tables`; the form is in perfmodel/kernels/experts.py.
correction: ln(measured / form), [rows per expert][experts with rows][elements of a matrix].
measured: the smallest and largest value on each of these axes, beyond which it is constant.
sort_latency: of the sort of rows.
remote_latency, remote_efficiency: added by experts on other ranks, and of the rows of these.
residuals: model_out leaves out all cells of a model's shape; power_law are cells with unequal
loads, priced with the expected number of experts of random routing.
"""


def fit_experts(data: Path, gpu: MeasuredGpu) -> tuple[str, list[Errors], list[str]]:
    """The catalog file of one GPU, the errors of each weight type, and lines on cells left out."""
    formats, reports, notes = [], [], []
    device = str(read_table(data, gpu, "moe").device.iloc[0])
    for dtype, kind in TYPES.items():
        usual = ("moe", kind, DTYPES[dtype].peak_ratio)
        other = OTHER_TABLES.get((gpu.sheet.architecture, dtype), usual)
        table, kernel_type, peak_ratio = other if has_table(data, gpu, other[0]) else usual
        cells, left_out = sound_cells(data, gpu, kernel_type, table)
        balanced = cells[cells.balanced]
        if len(balanced) < LEAST_CELLS:
            continue
        if len(left_out):
            notes.append(_left_out_line(dtype, left_out, balanced))
        best = _best(partial(problem_of, dtype, gpu, peak_ratio), cells)
        problem, fitted = best.problem, best.fitted
        errors = _errors(dtype, best, cells)
        if has_table(data, gpu, f"{table}_later"):
            later = read_cells(data, gpu, kernel_type, f"{table}_later")
            _add_later(errors, problem, fitted, later[later.balanced])
        versions = read_table(data, gpu, table).iloc[0]
        kernels = f"{versions.framework} {versions.version}"
        entry = {"dtype": dtype, "peak_ratio": peak_ratio}
        formats.append({"kernels": kernels} | entry | _entry(fitted, balanced, errors))
        reports.append(errors)
    source = f"PyPI aiconfigurator-core 0.12.0, Apache-2.0: {device}"
    values = {"source": source, "format": formats}
    return toml_text(values, header=HEADER.format(gpu=gpu.name)), reports, notes


def _left_out_line(dtype: str, left_out: pd.DataFrame, kept: pd.DataFrame) -> str:
    shapes = ", ".join(f"{model} ({n})" for model, n in left_out.model.value_counts().items())
    return (
        f"experts in {dtype}: {len(left_out)} of {len(left_out) + len(kept)} balanced cells are "
        f"left out, {SLOWER} times slower than one of at least their work, or "
        f"{SLOWER_THAN_BF16:g} times slower than one in bf16; by "
        f"hidden/intermediate/experts/top-k: {shapes}"
    )


@dataclass(frozen=True)
class _Fitting:
    """A fit, with the relative errors of all cells, and of cells whose model is left out of it."""

    problem: Problem
    fitted: Fitted
    all_cells: pd.Series
    model_out: pd.Series | None  # None with one model

    def is_better_than(self, other: _Fitting, cells: pd.DataFrame) -> bool:
        """Whether the mean errors of cells that were not fitted are lower: both of unequal loads
        and of models left out."""
        unequal = ~cells.balanced
        pairs = [(self.all_cells[unequal], other.all_cells[unequal])]
        if self.model_out is not None and other.model_out is not None:
            pairs.append((self.model_out, other.model_out))
        means = [[np.mean(np.abs(np.log1p(errors))) for errors in pair] for pair in pairs]
        return all(mine < theirs for mine, theirs in means)


def _best(problem: Callable[..., Problem], cells: pd.DataFrame) -> _Fitting:
    """The fit with those added terms that lower the errors of cells that were not fitted."""
    terms = ("remote", "sort") if cells.triton.all() else ("remote",)
    tried = [problem(terms)]
    if cells.fused_routing.all():
        tried.append(problem(terms, splits=True))
    best = _fit(problem(), cells)
    for more in tried:
        found = _fit(more, cells)
        best = found if found.is_better_than(best, cells) else best
    return best


def _fit(problem: Problem, cells: pd.DataFrame) -> _Fitting:
    balanced = cells[cells.balanced]
    fitted = fit(problem, balanced)
    model_out = None
    if balanced.model.nunique() > 1:
        model_out = held_out(problem, fitted, balanced, "model")
    all_cells = predict(problem, fitted, cells) / cells.seconds - 1.0
    return _Fitting(problem, fitted, pd.Series(all_cells), model_out)


def problem_of(
    dtype: str,
    gpu: MeasuredGpu,
    peak_ratio: float,
    terms: tuple[str, ...] = (),
    *,
    splits: bool = False,
) -> Problem:
    """The form of one weight type on a GPU, with these of `ADDED`, and, with `splits`, the latency
    that experts on other ranks add."""

    def seconds(values: Mapping[str, float], cells: pd.DataFrame) -> Array:
        return _curve(dtype, peak_ratio, values).base_seconds(
            cells.rows.to_numpy(),
            cells.touched.to_numpy(),
            cells.hidden.to_numpy(float),
            cells.inter.to_numpy(float),
            peak_flops=gpu.sheet.peak_flops,
            hbm_bandwidth=gpu.sheet.hbm_bandwidth,
            weight_bytes_per_element=DTYPES[dtype].bytes,
        )

    def added(values: Mapping[str, float], cells: pd.DataFrame) -> Array:
        columns = ("tokens", "hidden", "top_k", "ranks")
        return _curve(dtype, peak_ratio, values).added_seconds(
            **{name: cells[name].to_numpy(float) for name in columns},
            count=cells.experts.to_numpy(float) * cells.ranks.to_numpy(float),
            hbm_bandwidth=gpu.sheet.hbm_bandwidth,
        )

    def finished(fitted: Fitted, cells: pd.DataFrame) -> Array:
        curve = _curve(dtype, peak_ratio, fitted.values)
        curve = replace(curve, correction=fitted.table, measured=fitted.ranges)
        columns = ("tokens", "touched", "hidden", "inter", "top_k", "ranks")
        return curve.seconds(
            **{name: cells[name].to_numpy(float) for name in columns},
            count=cells.experts.to_numpy(float) * cells.ranks.to_numpy(float),
            peak_flops=gpu.sheet.peak_flops,
            hbm_bandwidth=gpu.sheet.hbm_bandwidth,
            weight_bytes_per_element=DTYPES[dtype].bytes,
        )

    return Problem(
        form=seconds,
        parameters=PARAMETERS | {name: ADDED[name] for name in terms},
        axes=AXES,
        smoothness=SMOOTHNESS,
        added=added,
        known=split_latency if splits else None,
        curve=finished,
    )


def _curve(dtype: str, peak_ratio: float, values: Mapping[str, float]) -> ExpertsCurve:
    return ExpertsCurve(
        dtype=dtype,
        peak_ratio=peak_ratio,
        kernel_latency_s=values["latency"],
        memory_efficiency=values["memory"],
        compute_efficiency=values["compute"],
        activation_efficiency=values["activation"],
        overlap_exponent=values["overlap"],
        source="",
        correction=LogTable((np.ones(1),) * 3, np.zeros((1, 1, 1))),
        sort_latency_s=values.get("sort", 0.0),
        remote_latency_s=values.get("split", 0.0),
        remote_efficiency=values.get("remote", 0.0),
    )


def _errors(dtype: str, best: _Fitting, cells: pd.DataFrame) -> Errors:
    others = cells[~cells.balanced]
    ways = {"in sample": best.all_cells.where(cells.balanced)}
    if best.model_out is not None:
        ways["model out"] = best.model_out.reindex(cells.index)
    for law in sorted(others.law.unique()):
        ways[law.replace("_", " ")] = best.all_cells.where(cells.law == law)

    return errors_of(f"experts in {dtype}", cells, ways, _regions)


def _regions(cell: Mapping[str, Any]) -> list[str]:
    few = cell["tokens"] <= FEW_TOKENS
    alone = ["one expert per rank"] if cell["experts"] == 1 else []
    return [f"tokens 1-{FEW_TOKENS}" if few else f"tokens {FEW_TOKENS + 1}-", *alone]


def _add_later(errors: Errors, problem: Problem, fitted: Fitted, cells: pd.DataFrame) -> None:
    """Errors for the kernels of a later version, which the curve was not fitted to."""
    if cells.empty:
        return
    values = predict(problem, fitted, cells) / cells.seconds - 1.0
    for cell, error in zip(cells.to_dict("records"), values, strict=True):
        errors.add("later kernels", {str(k): v for k, v in cell.items()}, float(error))


def _entry(fitted: Fitted, cells: pd.DataFrame, errors: Errors) -> dict[str, Any]:
    values = fitted.values
    return {
        "kernel_latency_us": significant(values["latency"] / US, 4),
        "memory_efficiency": values["memory"],
        "compute_efficiency": values["compute"],
        "activation_efficiency": values["activation"],
        "overlap_exponent": values["overlap"],
        "sort_latency_us": significant(values.get("sort", 0.0) / US, 4),
        "remote_latency_us": significant(values.get("split", 0.0) / US, 4),
        "remote_efficiency": values.get("remote", 0.0),
        "models": int(cells.model.nunique()),
        **{name: compact(np.asarray(knots), 12) for name, knots in AXES.items()},
        "measured": compact(fitted.ranges, 12),
        "correction": compact(fitted.table.values, 3),
        "residuals": errors.flat(),
    }
