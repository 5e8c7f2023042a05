"""Fit the effect of an fp8 KV cache on decode attention: `kv-fp8.toml`.

It is the ratio of measured times to what the bf16 curve of the same GPU predicts for half the
bytes: kernels that read fp8 do not reach the bandwidth of those that read bf16. The ratio never
falls with more sequences or tokens, so that neither does the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calibration.fit.errors import Errors, token_band
from calibration.fit.tables.attention_tables import HEAD_DIMS, cold_seconds
from calibration.fit.tables.correction import (
    Array,
    Fitted,
    Problem,
    errors_of,
    held_out,
    predict,
    smooth_table,
)
from calibration.fit.tables.gpus import MeasuredGpu, read_table
from calibration.records.toml_file import compact, toml_text
from perfmodel.kernels import AttentionCurve
from perfmodel.units import MS

LEAST_TOKENS, STRAY = 128, 3.0  # cells further than this factor from the bf16 curve are not fitted
AXES = {"units": (1, 8, 64, 512, 4096), "tokens": (128, 512, 2048, 8192, 32768, 131072)}
SMOOTHNESS = 0.15
HEADER = """\
Decode attention with an fp8 KV cache, {gpu}.
Written by `specroof calibrate fit-tables`: ln(measured / time of the curve in attention.toml with
one byte per element), [batch x KV heads][KV tokens].
"""


def read_cells(data: Path, gpu: MeasuredGpu) -> pd.DataFrame:
    """Decode cells with an fp8 cache and without a window: batch, query_heads, kv_heads, head_dim,
    tokens, units (batch x KV heads), in_l2, and `seconds` with KV in HBM."""
    frame = read_table(data, gpu, "generation_attention")
    if "window_size" in frame:
        frame = frame[frame.window_size == 0]
    frame = frame[(frame.kv_cache_dtype == "fp8") & frame.head_dim.isin(HEAD_DIMS)]
    cells = pd.DataFrame(
        {
            "batch": frame.batch_size,
            "query_heads": frame.num_heads,
            "kv_heads": frame.num_key_value_heads,
            "head_dim": frame.head_dim,
            "tokens": frame.step + 1.0,
            "measured_s": frame.latency * MS,
        }
    )
    cells = cells[cells.tokens >= LEAST_TOKENS].reset_index(drop=True)
    cells["units"] = cells.batch * cells.kv_heads
    cells["heads"] = cells.query_heads * 1000 + cells.kv_heads
    cells["kv_bytes"] = 2.0 * cells.units * cells.tokens * cells.head_dim
    cells["in_l2"] = cells.kv_bytes <= gpu.sheet.l2_bytes
    cells["seconds"] = cold_seconds(cells, gpu) if len(cells) else cells.measured_s
    return cells


def fit_kv_fp8(
    data: Path, gpu: MeasuredGpu, curve: AttentionCurve
) -> tuple[dict[str, str], list[Errors]]:
    """The catalog file of one GPU and its errors; nothing without cells."""
    cells = read_cells(data, gpu)
    if cells.empty:
        return {}, []
    cells["curve_s"] = _curve_seconds(curve, cells, gpu)
    near = np.abs(np.log(cells.seconds / cells.curve_s)) < np.log(STRAY)
    problem = Problem(form=_form, parameters={}, axes=AXES, smoothness=SMOOTHNESS, rising=True)
    used = cells[near]
    fitted = Fitted({}, smooth_table(problem, used, used.curve_s.to_numpy()))
    ways = {
        "bf16 curve": pd.Series(cells.curve_s / cells.seconds - 1.0),
        "in sample": pd.Series(predict(problem, fitted, cells) / cells.seconds - 1.0),
        "heads out": held_out(problem, fitted, used, "heads").reindex(cells.index),
    }
    errors = errors_of("decode attention, KV in fp8", cells, ways, _regions)
    row = read_table(data, gpu, "generation_attention").iloc[0]
    values = {
        "source": f"PyPI aiconfigurator-core 0.12.0, Apache-2.0: {row.framework} {row.version}, "
        f"{row.device}",
        **{name: compact(np.asarray(knots), 12) for name, knots in AXES.items()},
        "correction": compact(fitted.table.values, 3),
        "residuals": errors.flat(),
    }
    text = toml_text(values, header=HEADER.format(gpu=gpu.name))
    return {f"efficiency/{gpu.name}/kv-fp8.toml": text}, [errors]


def _regions(cell: Mapping[str, Any]) -> tuple[str, str]:
    return token_band(cell["tokens"]), "KV in L2" if cell["in_l2"] else "KV in HBM"


def _form(values: Mapping[str, float], cells: pd.DataFrame) -> Array:
    return np.asarray(cells.curve_s.to_numpy())


def _curve_seconds(curve: AttentionCurve, cells: pd.DataFrame, gpu: MeasuredGpu) -> pd.Series:
    out = pd.Series(np.nan, index=cells.index)
    for (query_heads, kv_heads, dim), part in cells.groupby(
        ["query_heads", "kv_heads", "head_dim"]
    ):
        out[part.index] = curve.seconds(
            batch=part.batch.to_numpy(),
            kv_tokens=part.tokens.to_numpy(),
            query_heads=int(query_heads),
            kv_heads=int(kv_heads),
            head_dim=int(dim),
            peak_flops=gpu.sheet.peak_flops,
            hbm_bandwidth=gpu.sheet.hbm_bandwidth,
            kv_bytes_per_element=1.0,
        )
    return out
