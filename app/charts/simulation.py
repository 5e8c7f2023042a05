"""The timeline of a simulation, drawn from its JSON form (docs/reference/json.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app.charts.base import LEGEND

ROWS = {
    "batch": "sequences",
    "kv_share": "KV cache (share)",
    "gamma": "γ",
    "tokens_per_s": "tokens/s",
    "busy_share": "busy (share)",
}
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
