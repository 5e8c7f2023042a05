"""The attention fit on paper: its catalog file and its error tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from perfmodel import LibraryAttention, ScheduledAttention

TOKEN_BANDS = {"128-512": (128, 512), "1024-4096": (1024, 4096), "8192-": (8192, np.inf)}
UNIT_BANDS = {
    "1-16": (1, 16),
    "32-128": (32, 128),
    "256-1024": (256, 1024),
    "2048-": (2048, np.inf),
}
HEADER = """# Attention times of one layer on one rank, {gpu}.
# Written by `python -m calibration.fit.tables.attention_fit`; form: perfmodel/kernels/attention.py.
# residual: ln(measured / form), [group][units][tokens]; efficiency: [group][units][tokens].
# Cells whose KV fitted in L2 were corrected to HBM: calibration/fit/tables/attention_tables.py.
"""


def toml_text(gpu: str, curve: LibraryAttention, residuals: Mapping[str, Any]) -> str:
    """The catalog file of a fitted curve."""
    lines = [HEADER.format(gpu=gpu)]
    for name in ("source", *(n for n in curve.__dataclass_fields__ if n != "source")):
        if name not in ("decode", "prefill", "origin"):
            lines.append(f"{name} = {_value(getattr(curve, name))}")
    lines += ["", "[origin]", *(f"{k} = {_value(v)}" for k, v in curve.origin.items())]
    lines += ["", "[residuals]", *(f"{k} = {_value(v)}" for k, v in residuals.items())]
    for kind in ("decode", "prefill"):
        for table in getattr(curve, kind):
            lines += ["", f"[[{kind}]]"]
            lines += _fields(table)
    return "\n".join(lines) + "\n"


OWN_HEADER = """# Attention as the runtime runs it, timed on this GPU; stands over attention.toml.
# Written by `specroof calibrate fit`; the form is in perfmodel/kernels/attention_scheduled.py.
# residual: ln(measured / form), [group][blocks per multiprocessor][tokens of a range].
"""


def own_toml_text(curve: ScheduledAttention, residuals: Mapping[str, Any]) -> str:
    """The catalog file of one's own blocks, which stands over that of the GPU's tables.

    Prefill is written where it was measured; else the GPU's own tables go on.
    """
    lines = [OWN_HEADER, f"source = {_value(curve.source)}", f"sm_count = {curve.sm_count}"]
    lines += ["", "[origin]", *(f"{k} = {_value(v)}" for k, v in curve.origin.items())]
    lines += ["", "[residuals]", *(f"{k} = {_value(v)}" for k, v in residuals.items())]
    for table in curve.blocks:
        lines += ["", "[[blocks]]", *_fields(table)]
    if curve.origin.get("prefill") == "measured":
        for prompt in curve.prefill:
            lines += ["", "[[prefill]]", *_fields(prompt)]
    return "\n".join(lines) + "\n"


def _fields(table: Any) -> list[str]:
    values = {name: getattr(table, name) for name in table.__dataclass_fields__}
    return [f"{name} = {_value(value)}" for name, value in values.items()]


def summary(errors: pd.DataFrame, columns: Iterable[str]) -> dict[str, float]:
    """Median and 90th percentile of the absolute error per way of holding out, percent."""
    out: dict[str, float] = {"decode_cells": len(errors)}
    hbm = errors[~errors.in_l2]
    for name in columns:
        size = errors[name].abs() * 100
        out[f"decode_{name}_median_percent"] = round(float(size.median()), 2)
        out[f"decode_{name}_p90_percent"] = round(float(size.quantile(0.9)), 2)
        out[f"decode_{name}_median_percent_kv_in_hbm"] = round(
            float(hbm[name].abs().median() * 100), 2
        )
    return out


def print_report(gpu: str, errors: pd.DataFrame, columns: list[str]) -> None:
    """Median / 90th percentile / worst absolute error, percent, by region and way."""
    table = Table(title=f"{gpu}: decode attention, KV >= 128, |error| % median / p90 / worst")
    table.add_column("region")
    table.add_column("cells", justify="right")
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for label, mask in _regions(errors):
        part = errors[mask]
        if len(part):
            cells = [_three(part[name]) for name in columns]
            table.add_row(label, f"{len(part):,}", *cells)
    Console(width=150).print(table)


def _regions(errors: pd.DataFrame) -> Iterable[tuple[str, pd.Series]]:
    yield "all", errors.tokens > 0
    for dim in sorted(errors.head_dim.unique()):
        yield f"head_dim {dim}", errors.head_dim == dim
    yield "KV in HBM (as measured)", ~errors.in_l2
    yield "KV in L2 (corrected)", errors.in_l2
    for label, (low, high) in TOKEN_BANDS.items():
        yield f"KV {label}", errors.tokens.between(low, high)
    for label, (low, high) in UNIT_BANDS.items():
        yield f"units {label}", errors.units.between(low, high)
    yield "group 1", errors.group == 1
    yield "group off the knots", np.log2(errors.group) % 1 != 0


def _three(values: pd.Series) -> str:
    size = values.abs() * 100
    return f"{size.median():.1f} / {size.quantile(0.9):.1f} / {size.max():.0f}"


def _value(value: Any) -> str:
    if isinstance(value, str):
        return '"' + value.replace('"', "'") + '"'
    if isinstance(value, np.ndarray):
        if value.ndim > 1:
            return "[\n" + ",\n".join(_value(row) for row in value) + ",\n]"
        return "[" + ", ".join(_value(v) for v in value) + "]"
    number = float(value)
    return str(int(number)) if number == int(number) else f"{number:.6g}"
