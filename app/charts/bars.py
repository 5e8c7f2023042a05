"""The memory of one GPU as a stacked bar."""

from __future__ import annotations

import plotly.graph_objects as go

from app.charts.base import HATCH, LINE, PART_COLOURS, finish
from perfmodel import RoundEstimate, prediction_dict, units
from perfmodel.units import format_bytes

COLOURS = (*PART_COLOURS.values(), HATCH)  # one for each term


def memory_bars(point: RoundEstimate) -> go.Figure:
    """Memory that the plan needs on one GPU by term, and the GPU's capacity."""
    memory = prediction_dict(point)["memory"]
    terms = {
        key.removesuffix("_bytes").replace("_", " ").replace("kv", "KV"): value
        for key, value in memory.items()
        if key not in ("total_bytes", "capacity_bytes") and value > 0
    }
    figure = go.Figure()
    for (name, value), colour in zip(terms.items(), COLOURS, strict=False):
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
        title="Memory of the plan on the fullest GPU",
        x="memory (GB)",
        y="GPU",
        alt=f"Stacked bar of {format_bytes(memory['total_bytes'])} against a capacity of "
        f"{capacity:.0f} GB: {words}.",
    )
