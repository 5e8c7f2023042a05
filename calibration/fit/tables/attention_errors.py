"""Errors of a fitted attention curve, in sample and on cells left out of its residual table.

The seven parameters are not refitted without a cell, since thousands of cells determine them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from calibration.fit.errors import Errors, misfit_figures, token_band
from calibration.fit.tables.attention_fit import (
    GROUP_KNOTS,
    PREFILL_TOKENS,
    PREFILL_UNITS,
    DecodeFit,
)
from calibration.fit.tables.attention_residuals import held_out
from calibration.fit.tables.attention_tables import read_windowed
from calibration.fit.tables.gpus import MeasuredGpu
from perfmodel.kernels import AttentionCurve

DECODE_TOKENS = 128  # cells with shorter KV are not counted
PREFILL_LEAST, PREFILL_LONG = 16, 1024  # new tokens: cells that count, and long prompts
LEFT_OUT = ("cell", "heads", "batch", "units", "tokens")


def decode_errors(curve: AttentionCurve, fits: Sequence[DecodeFit], gpu: MeasuredGpu) -> Errors:
    """Errors of the finished curve ("in sample"), and with cells left out of its residuals."""
    errors = Errors(
        "decode attention",
        regions=lambda c: (token_band(c["tokens"]), "KV in L2" if c["in_l2"] else "KV in HBM"),
    )
    for fit in fits:
        cells = fit.cells.assign(heads=fit.cells.query_heads * 1000 + fit.cells.kv_heads)
        _add(errors, "in sample", cells, _in_sample(curve, cells, gpu))
        for name in LEFT_OUT:
            _add(errors, f"{name} out", cells, held_out(cells, fit.table, name))
    return errors


def _add(errors: Errors, way: str, cells: pd.DataFrame, values: pd.Series) -> None:
    counted = cells.tokens >= DECODE_TOKENS
    rows = cells.loc[counted, ["tokens", "in_l2"]].to_dict("records")
    for cell, error in zip(rows, values[counted], strict=True):
        errors.add(way, {str(name): value for name, value in cell.items()}, float(error))


def _in_sample(curve: AttentionCurve, cells: pd.DataFrame, gpu: MeasuredGpu) -> pd.Series:
    out = pd.Series(np.nan, index=cells.index)
    for (query_heads, kv_heads), part in cells.groupby(["query_heads", "kv_heads"]):
        seconds = curve.seconds(
            batch=part.batch.to_numpy(),
            kv_tokens=part.tokens.to_numpy(),
            query_heads=int(query_heads),
            kv_heads=int(kv_heads),
            head_dim=int(part.head_dim.iloc[0]),
            peak_flops=gpu.sheet.peak_flops,
            hbm_bandwidth=gpu.sheet.hbm_bandwidth,
        )
        out[part.index] = seconds / part.cold_s - 1.0
    return out


def window_lines(curve: AttentionCurve, data: Path, gpu: MeasuredGpu) -> Iterator[str]:
    """How far attention in a sliding window is from a cache of as many tokens."""
    for (window, dim), cells in read_windowed(data, gpu).groupby(["window_size", "head_dim"]):
        misfit = np.empty(0)
        for (query_heads, kv_heads), part in cells.groupby(["query_heads", "kv_heads"]):
            seconds = curve.seconds(
                batch=part.batch.to_numpy(),
                kv_tokens=float(window),
                query_heads=int(query_heads),
                kv_heads=int(kv_heads),
                head_dim=int(dim),
                peak_flops=gpu.sheet.peak_flops,
                hbm_bandwidth=gpu.sheet.hbm_bandwidth,
            )
            misfit = np.append(misfit, np.log(seconds / part.measured_s))
        yield (
            f"attention in a window of {window} tokens, head dimension {dim}, priced as a cache of "
            f"as many tokens: {misfit_figures(misfit)}"
        )


def prefill_errors(curve: AttentionCurve, frame: pd.DataFrame, gpu: MeasuredGpu) -> Errors:
    """Errors of the prefill cells on the knots of the curve's table, and between them."""
    errors = Errors(
        "prefill attention",
        regions=lambda cell: (
            f"{'from' if cell['new_tokens'] >= PREFILL_LONG else 'below'} {PREFILL_LONG} tokens",
        ),
    )
    frame = frame[frame.new_tokens >= PREFILL_LEAST]
    for (dim, query_heads, kv_heads), part in frame.groupby(
        ["head_dim", "query_heads", "kv_heads"]
    ):
        seconds = curve.prefill_seconds(
            batch=part.batch.to_numpy(),
            new_tokens=part.new_tokens.to_numpy(),
            query_heads=int(query_heads),
            kv_heads=int(kv_heads),
            head_dim=int(dim),
            peak_flops=gpu.sheet.peak_flops,
            hbm_bandwidth=gpu.sheet.hbm_bandwidth,
        )
        on = part.new_tokens.isin(PREFILL_TOKENS) & (part.batch * query_heads).isin(PREFILL_UNITS)
        on &= query_heads / kv_heads in GROUP_KNOTS
        for tokens, error, on_knots in zip(
            part.new_tokens, seconds / part.measured_s - 1.0, on, strict=True
        ):
            way = "on knots" if on_knots else "between knots"
            errors.add(way, {"new_tokens": tokens}, float(error))
    return errors
