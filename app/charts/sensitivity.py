"""Sensitivity of the speedup to each input, and its 90 % interval over one axis."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from app.charts.base import DRAFT_COLOURS, LINE, curve, finish
from perfmodel import Interval
from perfmodel.speculation import Sensitivity

COLOUR = DRAFT_COLOURS["self:streamingllm"]
SPEEDUP = "speedup of decoding alone"


def tornado(
    sensitivities: Sequence[Sensitivity],
    speedup: float,
    *,
    colour: str = COLOUR,
    what: str = SPEEDUP,
) -> go.Figure:
    """Speedup at both ends of each input's error range, widest bar on top.

    `what` names it, if it is not that of decoding alone.
    """
    ordered = sorted(sensitivities, key=lambda s: abs(s.high - s.low))
    figure = go.Figure(
        go.Bar(
            y=[f"{escape(s.name)}<br>{escape(s.change)}" for s in ordered],
            x=[s.high - s.low for s in ordered],
            base=[s.low for s in ordered],
            orientation="h",
            name="speedup",
            marker_color=colour,
            customdata=[[s.name, s.change, s.low, s.high] for s in ordered],
            meta=("input", "change", "speedup_low", "speedup_high"),
            hovertemplate="%{customdata[2]:.2f}x to %{customdata[3]:.2f}x<extra></extra>",
        )
    )
    figure.add_vline(x=1.0, line_color=LINE)
    figure.add_vline(x=speedup, line_dash="dot", line_color=LINE)
    ends = [f"{s.name} {s.change} {s.low:.2f}x to {s.high:.2f}x" for s in reversed(ordered)]
    return finish(
        figure,
        title=f"Sensitivity of the {what} (solid: break-even; dotted: prediction)",
        x=f"{what.partition(' ')[0]} (x)",
        y="input",
        legend=False,
        alt=f"Bars around the predicted speedup of {speedup:.2f}x: {escape('; '.join(ends))}.",
    )


def speedup_band(
    axis: str,
    values: Sequence[float],
    intervals: Sequence[Interval],
    here: float,
    *,
    colour: str = COLOUR,
) -> go.Figure:
    """The speedup and its 90 % interval over one axis, such as "batch (sequences)"."""
    low, middle, high = (
        np.array([getattr(i, end) for i in intervals]) for end in ("low", "value", "high")
    )
    name = axis.partition(" (")[0]
    band = go.Scatter(
        x=[*values, *values[::-1]],
        y=[*high, *low[::-1]],
        mode="lines",
        fill="toself",
        name="90 % interval",
        line={"width": 1, "color": colour},
        opacity=0.5,
        hoverinfo="skip",
    )
    middles = curve(
        {name: values, "speedup": middle, "speedup_low": low, "speedup_high": high},
        name="speedup",
        colour=colour,
        mode="lines+markers",
        hover="%{x:,}: %{y:.2f}x (%{customdata[2]:.2f}-%{customdata[3]:.2f})",
    )
    figure = go.Figure([band, middles])
    figure.add_hline(y=1.0, line_color=LINE)
    figure.add_vline(x=here, line_dash="dot", line_color=LINE)
    if max(values) > 50 * min(values) or name != "γ":
        apart = [v for v in values if v == max(values) or 1.5 * v < max(values)]
        figure.update_xaxes(type="log", tickvals=apart, tickangle=0)
    return finish(
        figure,
        title=f"{SPEEDUP.capitalize()} over {name}, with its 90 % interval (dotted: this scenario)",
        x=axis,
        y="speedup (x)",
        alt=f"Band over {name} {min(values):,.0f} to {max(values):,.0f}: speedup "
        f"{middle.min():.2f}x to {middle.max():.2f}x.",
    )
