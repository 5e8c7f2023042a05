"""Fit curves of fused mixture-of-experts kernels to aiconfigurator's tables: `experts.toml`.

Only rows with a balanced distribution are fitted, in which T tokens with k experts each reach
min(E, T k) experts, so the number of experts with rows is known. Rows with a power-law distribution
test the curve: they are predicted with the number of experts expected for uniform routing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.fit.errors import Errors
from calibration.fit.tables.correction import (
    Array,
    Fitted,
    Problem,
    errors_of,
    fit,
    held_out,
    least_of_larger,
    predict,
)
from calibration.fit.tables.gpus import MeasuredGpu, has_table, read_table
from calibration.records.toml_file import compact, significant, toml_text
from perfmodel.kernels import ExpertsCurve, LogTable
from perfmodel.specs import DTYPES
from perfmodel.units import MS, US

TYPES = {  # names of the tables
    "bf16": "bfloat16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "int4": "int4_wo",
    "mxfp4": "w4a16_mxfp4",
    "nvfp4": "nvfp4",
}
# Nemotron's experts have no gate, and Kimi-K3's rows use another activation than the model's.
NO_GATE_HIDDEN, NO_GATE_TOP_K, APPROXIMATED = 2688, 22, "situ_as_silu"
NO_GATE_KERNEL = "nongated"
# TensorRT-LLM's kernels, by architecture and type, with the peak over that of bf16. On Hopper,
# vLLM 0.24's for fp8 with a scale per tensor take four times as long as bf16. On Blackwell, engines
# compute gpt-oss with activations in fp8, in which vLLM's table has no shape of it.
OTHER_TABLES = {
    ("hopper", "fp8"): ("moe_trtllm", "fp8", 2.0),
    ("blackwell", "mxfp4"): ("moe_trtllm", "w4a8_mxfp4_mxfp8", 2.0),
}
LEAST_CELLS, FEW_TOKENS = 200, 64
# A cell is broken if it takes this many times as long as one of at least its work, of its own type
# or of bf16. Broken cells are left out where they are more than a share that is noise: some of
# TensorRT-LLM's on Hopper ran without the tuned kernel and took 2 to 14 times too long.
SLOWER, SLOWER_THAN_BF16, NOISE = 1.5, 2.0, 0.05
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
TRITON = "tritonexperts"  # vLLM's kernel, which leaves the sort out for few tokens
SMOOTHNESS = 0.3
HEADER = """\
Times of the routed experts of one layer on one rank, {gpu}.
Written by `specroof calibrate fit-tables`; the form is in perfmodel/kernels/experts.py.
correction: ln(measured / form), [rows per expert][experts with rows][elements of a matrix].
measured: the smallest and largest value on each of these axes, beyond which it is constant.
sort_latency, remote_efficiency: of the sort of rows, and of rows whose experts are on other ranks.
residuals: model_out leaves out all cells of a model's shape; power_law are cells with unequal
loads, priced with the expected number of experts of random routing.
"""


def read_cells(data: Path, gpu: MeasuredGpu, kernels: str, table: str = "moe") -> pd.DataFrame:
    """Cells of the kernels of one type: tokens, hidden, inter, top_k, experts, ranks, model,
    balanced, triton, seconds, and the columns of `AXES`; the fastest kernel of each cell. `kernels`
    is the name of the type in the table."""
    frame = read_table(data, gpu, table)
    frame = frame[~frame.kernel_source.str.contains(NO_GATE_KERNEL)]
    frame = frame[frame.moe_dtype == kernels]
    frame = frame[~frame.kernel_source.str.contains(APPROXIMATED)]
    frame = frame[(frame.hidden_size != NO_GATE_HIDDEN) & (frame.topk != NO_GATE_TOP_K)]
    ranks = frame.moe_ep_size
    cells = pd.DataFrame(
        {
            "tokens": frame.num_tokens,
            "hidden": frame.hidden_size,
            "inter": frame.inter_size / frame.moe_tp_size,
            "top_k": frame.topk / ranks,
            "experts": frame.num_experts / ranks,
            "ranks": ranks,
            "balanced": frame.distribution == "balanced",
            "law": frame.distribution,
            "model": [
                f"{h}/{i}/{e}/{k}"
                for h, i, e, k in zip(
                    frame.hidden_size, frame.inter_size, frame.num_experts, frame.topk, strict=True
                )
            ],
            "seconds": frame.latency * MS,
        }
    )
    keys = [name for name in cells.columns if name != "seconds"]
    cells = cells.groupby(keys, as_index=False).seconds.min()
    cells["triton"] = bool(frame.kernel_source.str.endswith(TRITON).all())
    pairs = cells.tokens * cells.top_k
    expected = cells.experts * -np.expm1(
        cells.tokens * np.log1p(-np.minimum(cells.top_k / cells.experts, 1.0 - 1e-12))
    )
    touched = np.where(cells.balanced, np.minimum(cells.experts, pairs), expected)
    cells["touched"] = np.minimum(np.maximum(touched, 1e-3), pairs).clip(lower=1.0)
    cells["rows"] = np.maximum(pairs, cells.touched)
    cells["rows_each"] = cells.rows / cells.touched
    cells["matrix"] = cells.hidden * cells.inter
    return cells


def broken(cells: pd.DataFrame, bf16: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether each cell takes much longer than a cell of at least its work.

    Splitting a layer over more ranks leaves each fewer weights, rows and operations, and fp8 halves
    the bytes of bf16. So a cell cannot take much longer than one of the same model and tokens on
    fewer ranks (`SLOWER`), nor than one in bf16 (`bf16`, `SLOWER_THAN_BF16`).
    """
    keys = ["model", "law", "tokens"]
    references = pd.concat(
        [
            cells.assign(limit=cells.seconds * SLOWER),
            bf16.assign(limit=bf16.seconds * SLOWER_THAN_BF16),
        ]
    )
    by_key = dict(list(references.groupby(keys)))
    result = np.zeros(len(cells), bool)
    for key, places in cells.groupby(keys).indices.items():
        group, others = cells.iloc[places], by_key[key]
        sizes = ["inter", "experts", "top_k"]
        limits = least_of_larger(
            group[sizes].to_numpy(), others[sizes].to_numpy(), others.limit.to_numpy()
        )
        result[places] = group.seconds.to_numpy() > limits
    return result


def _sound(
    data: Path, gpu: MeasuredGpu, kernels: str, table: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cells of one type without the broken ones, and the balanced cells that are left out."""
    cells = read_cells(data, gpu, kernels, table)
    # Only fp8 with a scale per tensor has the kernels of bf16.
    same = kernels == TYPES["fp8"]
    bf16 = read_cells(data, gpu, TYPES["bf16"], table) if same else cells.iloc[:0]
    bad, balanced = broken(cells, bf16), cells.balanced.to_numpy()
    if bad[balanced].sum() <= NOISE * balanced.sum():
        bad[:] = False
    return cells[~bad].reset_index(drop=True), cells[bad & balanced]


def fit_experts(data: Path, gpu: MeasuredGpu) -> tuple[str, list[Errors], list[str]]:
    """The catalog file of one GPU, the errors of each weight type, and lines on cells left out."""
    formats, reports, notes = [], [], []
    device = str(read_table(data, gpu, "moe").device.iloc[0])
    for dtype, kind in TYPES.items():
        usual = ("moe", kind, DTYPES[dtype].peak_ratio)
        other = OTHER_TABLES.get((gpu.sheet.architecture, dtype), usual)
        table, kernel_type, peak_ratio = other if has_table(data, gpu, other[0]) else usual
        cells, left_out = _sound(data, gpu, kernel_type, table)
        balanced = cells[cells.balanced]
        if len(balanced) < LEAST_CELLS:
            continue
        if len(left_out):
            notes.append(_left_out_line(dtype, left_out, balanced))
        more = ("remote", "sort") if balanced.triton.all() else ("remote",)
        with_terms, without = (
            _fit(problem_of(dtype, gpu, peak_ratio, terms), cells) for terms in (more, ())
        )
        best = with_terms if with_terms.is_better_than(without, cells) else without
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


def _fit(problem: Problem, cells: pd.DataFrame) -> _Fitting:
    balanced = cells[cells.balanced]
    fitted = fit(problem, balanced)
    model_out = None
    if balanced.model.nunique() > 1:
        model_out = held_out(problem, fitted, balanced, "model")
    all_cells = predict(problem, fitted, cells) / cells.seconds - 1.0
    return _Fitting(problem, fitted, pd.Series(all_cells), model_out)


def problem_of(
    dtype: str, gpu: MeasuredGpu, peak_ratio: float, terms: tuple[str, ...] = ()
) -> Problem:
    """The form of one weight type on a GPU, with these of `ADDED`."""

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
        "remote_efficiency": values.get("remote", 0.0),
        "models": int(cells.model.nunique()),
        **{name: compact(np.asarray(knots), 12) for name, knots in AXES.items()},
        "measured": compact(fitted.ranges, 12),
        "correction": compact(fitted.table.values, 3),
        "residuals": errors.flat(),
    }
