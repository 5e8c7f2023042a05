"""A simulation over time and its percentiles, from its JSON form (docs/reference/json.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app.charts.base import LEGEND, LINE, PLAIN, columns, finish
from perfmodel import SLO
from perfmodel.units import format_seconds

ROWS = {
    "batch": "sequences",
    "kv_share": "KV cache (share)",
    "gamma": "γ",
    "tokens_per_s": "tokens/s",
    "busy_share": "busy (share)",
}
DURATIONS = {"ttft": "first token", "tpot": "per later token", "latency": "whole request"}
QUANTILES = ("p50", "p90", "p95", "p99")
COLOURS = ("#777777", "#4477aa", "#aa3377")


def timeline(result: Mapping[str, Any]) -> go.Figure:
    """Batch, KV cache, γ, token rate and busy share over time, one line per run."""
    titles = list(ROWS.values())
    figure = make_subplots(
        rows=len(ROWS), cols=1, shared_xaxes=True, vertical_spacing=0.03, row_titles=titles
    )
    for run, colour in zip(result["runs"], COLOURS, strict=False):
        times = [row["start_s"] for row in run["timeline"]]
        for place, key in enumerate(ROWS, start=1):
            values = [row[key] for row in run["timeline"]]
            line = {"color": colour, "shape": "hv", "width": 1.5}
            trace = go.Scatter(
                x=times,
                y=values,
                mode="lines",
                name=run["label"],
                legendgroup=run["label"],
                showlegend=place == 1,
                line=line,
            )
            figure.add_trace(trace, row=place, col=1)
    figure.update_xaxes(title_text="time (s)", row=len(ROWS), col=1)
    figure.update_layout(
        title={"text": "Timeline"},
        height=160 * len(ROWS) + 80,
        template="plotly_white",
        margin={"t": 40, "r": 60},
        legend=LEGEND,
    )
    return figure


def percentiles(
    result: Mapping[str, Any], slo: SLO | None = None, *, colour: str = COLOURS[1]
) -> go.Figure:
    """p50 to p99 of the times of requests, a row for each time and a line for each run.

    `colour` is that of the draft; the dotted line is the run that chooses γ in every round. Dashed
    lines are the limits of `slo`.
    """
    limits = {"ttft": slo and slo.ttft_s, "tpot": slo and slo.tpot_s}
    figure = make_subplots(rows=len(DURATIONS), cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for run in result["runs"]:
        line = {"color": PLAIN if run["gamma"] == 0 else colour}
        line |= {"dash": "dot"} if run["gamma"] is None else {}
        for row, (key, name) in enumerate(DURATIONS.items(), start=1):
            seconds = [run[key][f"{quantile}_s"] for quantile in QUANTILES]
            texts = ["unknown" if s is None else format_seconds(s) for s in seconds]
            trace = go.Scatter(
                x=QUANTILES,
                y=seconds,
                mode="lines+markers",
                name=run["label"],
                legendgroup=run["label"],
                showlegend=row == 1,
                line=line,
                customdata=columns(name, QUANTILES, seconds, texts),
                meta=("time", "percentile", "seconds", "text"),
                hovertemplate="%{fullData.name}<br>%{customdata[0]}, %{customdata[1]}: "
                "%{customdata[3]}<extra></extra>",
            )
            figure.add_trace(trace, row=row, col=1)
    for row, (key, name) in enumerate(DURATIONS.items(), start=1):
        if limits.get(key) is not None:
            figure.add_hline(limits[key], line_dash="dash", line_color=LINE, row=row, col=1)
        figure.update_yaxes(rangemode="tozero", title_text=f"{name} (s)", row=row, col=1)
    slowest = "; ".join(
        f"{run['label']}: whole request {format_seconds(run['latency']['p99_s'])}"
        for run in result["runs"]
        if run["latency"]["p99_s"] is not None
    )
    finish(
        figure,
        title="Times of the requests by percentile"
        + (" (dashed: the SLO)" if any(limits.values()) else ""),
        x="",
        y=f"{DURATIONS['ttft']} (s)",
        alt=f"Lines of three times by percentile. 99 % finish within, {slowest}.",
    )
    return figure.update_layout(height=620)
