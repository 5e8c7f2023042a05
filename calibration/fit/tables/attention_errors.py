"""Held-out errors of a fitted attention curve, and the figures that its catalog file keeps.

The seven parameters stay when cells are left out: thousands of cells fix them.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from calibration.fit.tables.attention_fit import (
    GROUP_KNOTS,
    PREFILL_TOKENS,
    PREFILL_UNITS,
    DecodeFit,
)
from calibration.fit.tables.attention_residuals import held_out
from calibration.fit.tables.gpus import MeasuredGpu
from perfmodel.kernels import AttentionCurve

DECODE_TOKENS = 128  # shorter KV is left out of the figures
LEFT_OUT = ("cell", "heads", "batch", "units", "tokens")
WAYS = ("in_sample", *(f"{name}_out" for name in LEFT_OUT))


def decode_errors(curve: AttentionCurve, fits: list[DecodeFit], gpu: MeasuredGpu) -> pd.DataFrame:
    """Decode cells from 128 KV tokens up, with a column of relative errors per way of holding out.

    `in_sample` is the finished curve's, running maximum and rounding included.
    """
    parts = []
    for fit in fits:
        cells = fit.cells.assign(heads=fit.cells.query_heads * 1000 + fit.cells.kv_heads)
        ways = {f"{name}_out": held_out(cells, fit.table, name) for name in LEFT_OUT}
        parts.append(cells.assign(**ways, in_sample=_in_sample(curve, cells, gpu)))
    frame = pd.concat(parts)
    return frame[frame.tokens >= DECODE_TOKENS]


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


def prefill_errors(curve: AttentionCurve, frame: pd.DataFrame, gpu: MeasuredGpu) -> pd.DataFrame:
    """Prefill cells with the curve's relative error; `on_knots` cells are in its table."""
    parts = []
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
        parts.append(part.assign(error=seconds / part.measured_s - 1.0, on_knots=on))
    return pd.concat(parts)


def error_figures(decode: pd.DataFrame, prefill: pd.DataFrame) -> dict[str, float]:
    """Median and 90th percentile of the absolute errors in percent, for the catalog file."""
    out: dict[str, float] = {"decode_cells": len(decode)}
    for way in WAYS:
        out |= _percentiles(f"decode_{way}", decode[way])
        hbm = _percentiles(f"decode_{way}", decode[way][~decode.in_l2])
        out[f"decode_{way}_median_percent_kv_in_hbm"] = hbm[f"decode_{way}_median_percent"]
    regions = {"long": prefill.new_tokens >= 1024, "short": prefill.new_tokens.between(16, 512)}
    for region, cells in regions.items():
        for label, knots in (("on", prefill.on_knots), ("between", ~prefill.on_knots)):
            out |= _percentiles(f"prefill_{region}_{label}_knots", prefill.error[cells & knots])
    return out


def report_lines(decode: pd.DataFrame) -> list[str]:
    """The errors of decode attention as text, a line per way of holding out."""
    lines = [f"decode attention, {len(decode):,} cells, |error| %, median / p90 / worst"]
    for way in WAYS:
        size = decode[way].abs() * 100
        figures = f"{size.median():.1f} / {size.quantile(0.9):.1f} / {size.max():.1f}"
        lines.append(f"  {way.replace('_', ' '):12} {figures}")
    return lines


def _percentiles(name: str, errors: pd.Series) -> dict[str, float]:
    size = errors.abs() * 100
    return {
        f"{name}_median_percent": round(float(size.median()), 2),
        f"{name}_p90_percent": round(float(size.quantile(0.9)), 2),
    }
