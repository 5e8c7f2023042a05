"""Fit curves of latent attention (MLA) to aiconfigurator's tables: `latent.toml`.

The tables are of DeepSeek-V3's layer with 1 to 128 heads and TensorRT-LLM's kernels. Decode rows
have one query token; n query tokens are treated as n times as many heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calibration.fit.errors import Errors, token_band
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
from calibration.fit.tables.gpus import MeasuredGpu, read_table
from calibration.records.toml_file import compact, significant, toml_text
from perfmodel.kernels import LatentCurve, LogTable
from perfmodel.specs import DTYPES
from perfmodel.units import MS, US

TYPES = {"bf16": "bfloat16", "fp8": "fp8"}
AXES = {
    "heads": (1, 4, 16, 32, 64, 128),
    "batch": (1, 4, 16, 64, 256, 1024),
    "tokens": (128, 512, 2048, 8192, 32768, 131072),
}
PREFILL_AXES = {"units": (1, 8, 32, 128, 512, 4096), "tokens": (128, 512, 2048, 8192, 32768)}
DECODE = {"latency": (12e-6, 1e-6, 1e-4), "memory": (0.7, 0.02, 1.0), "compute": (0.5, 0.02, 2.0)}
PREFILL = {"latency": (12e-6, 1e-6, 1e-3), "compute": (0.5, 0.02, 2.0)}
LEAST_TOKENS, SMOOTHNESS = 128, 0.15
# A cell is left out if it takes this many times as long as one of at least its heads, sequences and
# tokens: single cells on Hopper took up to 210 times too long. B200's kernels take up to 1.58 times
# as long for 32 heads as for 64, at all batches and lengths, and stay.
SLOWER = 1.75
HEADER = """\
Times of latent attention (MLA) in one layer on one rank, without projections, {gpu}.
Written by `specroof calibrate fit-tables`; the form is in perfmodel/kernels/latent.py.
correction: ln(measured / form), [packed query rows][batch][KV tokens].
prefill_correction: [batch x heads][prompt tokens].
"""


def read_decode(data: Path, gpu: MeasuredGpu, kv_dtype: str) -> pd.DataFrame:
    """Decode cells from 128 KV tokens: heads, batch, tokens, seconds."""
    frame = read_table(data, gpu, "generation_mla")
    frame = frame[frame.kv_cache_dtype == TYPES[kv_dtype]]
    cells = pd.DataFrame(
        {
            "heads": frame.num_heads,
            "batch": frame.batch_size,
            "tokens": frame.step + 1.0,
            "seconds": frame.latency * MS,
        }
    )
    cells = cells[cells.tokens >= LEAST_TOKENS]
    return cells.groupby(["heads", "batch", "tokens"], as_index=False).seconds.min()


def read_prefill(data: Path, gpu: MeasuredGpu, kv_dtype: str) -> pd.DataFrame:
    """Prefill cells from 128 new tokens: heads, batch, units (their product), tokens, seconds."""
    frame = read_table(data, gpu, "context_mla")
    frame = frame[(frame.kv_cache_dtype == TYPES[kv_dtype]) & (frame.isl >= LEAST_TOKENS)]
    cells = pd.DataFrame(
        {
            "heads": frame.num_heads,
            "batch": frame.batch_size,
            "units": frame.num_heads * frame.batch_size,
            "tokens": frame.isl.astype(float),
            "seconds": frame.latency * MS,
        }
    )
    return cells.reset_index(drop=True)


def _sound(cells: pd.DataFrame, name: str, notes: list[str]) -> pd.DataFrame:
    """The cells that are not much slower than a larger one; a note on the others."""
    sizes, seconds = cells[["heads", "batch", "tokens"]].to_numpy(float), cells.seconds.to_numpy()
    ratios = seconds / least_of_larger(sizes, sizes, seconds)
    if (slow := ratios > SLOWER).any():
        places = ", ".join(
            f"{heads:g}/{batch:g}/{tokens:g} ({ratio:.3g})"
            for (heads, batch, tokens), ratio in zip(sizes[slow], ratios[slow], strict=True)
        )
        notes.append(
            f"{name}: {slow.sum()} of {len(cells)} cells are left out, more than {SLOWER} times "
            f"slower than a larger one; by heads/batch/tokens (times): {places}"
        )
    return cells[~slow].reset_index(drop=True)


def fit_latent(data: Path, gpu: MeasuredGpu) -> tuple[str, list[Errors], list[str]]:
    """The catalog file of one GPU, the errors by KV type, and lines on cells left out."""
    entries, reports, notes = [], [], list[str]()
    versions = read_table(data, gpu, "generation_mla").iloc[0]
    for kv_dtype in TYPES:
        cells = read_decode(data, gpu, kv_dtype)
        prompts = read_prefill(data, gpu, kv_dtype)
        if cells.empty or prompts.empty:
            continue
        decoding, prefilling = (
            f"latent {kind}, KV in {kv_dtype}" for kind in ("decode", "prefill")
        )
        cells, prompts = _sound(cells, decoding, notes), _sound(prompts, prefilling, notes)
        problem, prefill = _decode_problem(kv_dtype, gpu), _prefill_problem(kv_dtype, gpu)
        fitted, of_prefill = fit(problem, cells), fit(prefill, prompts)
        reports.append(_errors(decoding, problem, fitted, cells))
        reports.append(_errors(prefilling, prefill, of_prefill, prompts))
        entries.append(_entry(kv_dtype, fitted, of_prefill, reports[-2:]))
    source = (
        f"PyPI aiconfigurator-core 0.12.0, Apache-2.0: {versions.framework} {versions.version}, "
        f"{versions.device}"
    )
    values = {"source": source, "cache": entries}
    return toml_text(values, header=HEADER.format(gpu=gpu.name)), reports, notes


def _decode_problem(kv_dtype: str, gpu: MeasuredGpu) -> Problem:
    def seconds(values: Mapping[str, float], cells: pd.DataFrame) -> Array:
        return _curve(kv_dtype, values, {}).base_seconds(
            cells.batch.to_numpy(float),
            cells.tokens.to_numpy(float),
            cells.heads.to_numpy(float),
            peak_flops=gpu.sheet.peak_flops,
            hbm_bandwidth=gpu.sheet.hbm_bandwidth,
        )

    return Problem(form=seconds, parameters=DECODE, axes=AXES, smoothness=SMOOTHNESS)


def _prefill_problem(kv_dtype: str, gpu: MeasuredGpu) -> Problem:
    def seconds(values: Mapping[str, float], cells: pd.DataFrame) -> Array:
        return _curve(kv_dtype, {}, values).prefill_base_seconds(
            cells.units.to_numpy(float),
            cells.tokens.to_numpy(float),
            peak_flops=gpu.sheet.peak_flops,
        )

    return Problem(form=seconds, parameters=PREFILL, axes=PREFILL_AXES, smoothness=SMOOTHNESS)


def _curve(kv_dtype: str, decode: Mapping[str, float], prefill: Mapping[str, float]) -> LatentCurve:
    nothing = LogTable((np.ones(1),), np.zeros(1))
    return LatentCurve(
        kv_dtype=kv_dtype,
        kv_bytes_per_element=DTYPES[kv_dtype].bytes,
        kernel_latency_s=decode.get("latency", 1.0),
        memory_efficiency=decode.get("memory", 1.0),
        compute_efficiency=decode.get("compute", 1.0),
        prefill_latency_s=prefill.get("latency", 1.0),
        prefill_efficiency=prefill.get("compute", 1.0),
        source="",
        correction=nothing,
        prefill_correction=nothing,
    )


def _errors(name: str, problem: Problem, fitted: Fitted, cells: pd.DataFrame) -> Errors:
    ways = {"in sample": pd.Series(predict(problem, fitted, cells) / cells.seconds - 1.0)}
    for column in problem.axes:
        ways[f"{column} out"] = held_out(problem, fitted, cells, column, inner=True)
    return errors_of(name, cells, ways, lambda cell: (token_band(float(cell["tokens"])),))  # type: ignore[arg-type]


def _entry(kv_dtype: str, decode: Fitted, prefill: Fitted, errors: list[Errors]) -> dict[str, Any]:
    axes = {name: compact(np.asarray(knots), 12) for name, knots in AXES.items()}
    more = {f"prefill_{k}": compact(np.asarray(v), 12) for k, v in PREFILL_AXES.items()}
    return {
        "kv_dtype": kv_dtype,
        "kernel_latency_us": significant(decode.values["latency"] / US, 4),
        "memory_efficiency": decode.values["memory"],
        "compute_efficiency": decode.values["compute"],
        "prefill_latency_us": significant(prefill.values["latency"] / US, 4),
        "prefill_efficiency": prefill.values["compute"],
        **axes,
        "correction": compact(decode.table.values, 3),
        **more,
        "prefill_correction": compact(prefill.table.values, 3),
        "residuals": {
            f"{kind}_{name}": value
            for kind, one in zip(("decode", "prefill"), errors, strict=True)
            for name, value in one.flat().items()
        },
    }
