"""Bar charts: one measure of several scenarios or plans, and the memory of one GPU."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from app.charts.base import LINE, SERIES, columns, finish
from perfmodel import RoundEstimate, prediction_dict, units
from perfmodel.units import format_bytes


def compare_bars(names: Sequence[str], measure: str, values: Sequence[float | None]) -> go.Figure:
    """One measure of several scenarios; unknown values leave a gap."""
    shown = [np.nan if v is None else v for v in values]
    figure = go.Figure(
        go.Bar(
            x=list(names),
            y=shown,
            name=measure,
            marker_color=[SERIES[i % len(SERIES)] for i in range(len(names))],
            customdata=columns(list(names), shown),
            meta=("scenario", measure),
            hovertemplate="%{x}: %{y:.4g}<extra></extra>",
        )
    )
    pairs = zip(names, values, strict=True)
    words = [f"{n} {'unknown' if v is None else f'{v:,.2f}'}" for n, v in pairs]
    return finish(
        figure,
        title=measure,
        x="scenario",
        y=measure,
        legend=False,
        alt=f"Bars of {measure}: {', '.join(words)}.",
    )


def plan_bars(names: Sequence[str], values: Sequence[float], measure: str) -> go.Figure:
    """One measure of several plans as horizontal bars, first on top, since names can be long."""
    figure = go.Figure(
        go.Bar(
            x=list(values),
            y=[escape(name).replace(", ", ",<br>", 1) for name in names],
            orientation="h",
            name=measure,
            marker_color=[SERIES[2], *[SERIES[0]] * (len(names) - 1)],
            text=[f"{value:,.0f}" for value in values],
            customdata=columns(list(names), list(values)),
            meta=("plan", measure),
            hovertemplate="%{y}: %{x:,.1f}<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", tickfont={"size": 11})
    pairs = zip(names, values, strict=True)
    words = escape("; ".join(f"{name} {value:,.0f}" for name, value in pairs))
    return finish(
        figure,
        title=f"Plans by {measure}",
        x=measure,
        y="plan",
        legend=False,
        alt=f"Bars of {measure}: {words}.",
    )


def memory_bars(point: RoundEstimate) -> go.Figure:
    """Memory that the plan needs on one GPU by term, and the GPU's capacity."""
    memory = prediction_dict(point)["memory"]
    terms = {
        key.removesuffix("_bytes").replace("_", " "): value
        for key, value in memory.items()
        if key not in ("total_bytes", "capacity_bytes") and value > 0
    }
    figure = go.Figure()
    for (name, value), colour in zip(terms.items(), SERIES, strict=False):
        figure.add_trace(
            go.Bar(
                x=[value / units.GB],
                y=["one GPU"],
                orientation="h",
                name=name,
                marker_color=colour,
                customdata=[[name, value]],
                meta=("term", "bytes"),
                hovertemplate=f"{name}: %{{x:.1f}} GB<extra></extra>",
            )
        )
    capacity = memory["capacity_bytes"] / units.GB
    figure.add_vline(x=capacity, line_color=LINE, annotation_text=f"capacity {capacity:.0f} GB")
    figure.update_layout(barmode="stack")
    words = ", ".join(f"{name} {format_bytes(value)}" for name, value in terms.items())
    return finish(
        figure,
        title="Memory of the sidebar's plan on the fullest GPU",
        x="memory (GB)",
        y="GPU",
        alt=f"Stacked bar of {format_bytes(memory['total_bytes'])} against a capacity of "
        f"{capacity:.0f} GB: {words}.",
    )
