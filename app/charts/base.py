"""What every chart shares: palette, axes with units, alt text, and its data as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Purple to green, told apart by colour-blind readers too; greys read on light and dark pages.
GAIN, LOSS, NEUTRAL = "#1b7837", "#762a83", "#f7f7f7"
DIVERGING = [[0.0, LOSS], [0.25, "#c2a5cf"], [0.5, NEUTRAL], [0.75, "#a6dba0"], [1.0, GAIN]]
WALL, HATCH, LINE = "#d0d0d0", "#777777", "#888888"
PART_COLOURS = {
    "linear": "#4477aa",
    "attention": "#ee6677",
    "comm": "#228833",
    "elementwise": "#ccbb44",
    "overhead": "#777777",
}
ROUND_COLOURS = {"plain": "#777777", "draft": "#66ccee", "verify": "#aa3377", "other": "#bbbbbb"}
SERIES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bb5566", "#999933")
# Below the axes, in a row.
LEGEND = {
    "orientation": "h",
    "yref": "container",
    "y": 0.0,
    "yanchor": "bottom",
    "font": {"size": 11},
}


def finish(
    figure: go.Figure, *, title: str, x: str, y: str, alt: str, legend: bool = True
) -> go.Figure:
    """Title, axis names with their units, one look; `alt` says in words what the chart shows."""
    figure.update_layout(
        title={"text": title, "font": {"size": 15}},
        xaxis_title=x,
        yaxis_title=y,
        showlegend=legend,
        legend=LEGEND,
        margin={"l": 10, "r": 10, "t": 50, "b": 10},
        height=440,
        font={"family": "system-ui, sans-serif", "size": 12},
        meta={"alt": alt},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


def alt_text(figure: go.Figure) -> str:
    """What the chart shows, in words."""
    return str(figure.layout.meta["alt"])


def chart_rows(figure: go.Figure) -> list[dict[str, Any]]:
    """The chart's data, one dict a point: the series, then its columns; null where unknown.

    A trace of data names the columns of its `customdata` in `meta`; a trace without is drawn for
    orientation and left out.
    """
    rows = []
    for trace in figure.data:
        if trace.meta is None:
            continue
        names = list(trace.meta)
        for point in np.asarray(trace.customdata, dtype=object).reshape(-1, len(names)):
            values = dict(zip(names, (_plain(value) for value in point), strict=True))
            rows.append({"series": trace.name or "", **values})
    return rows


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def columns(*arrays: Any) -> NDArray[Any]:
    """Arrays of one shape as the columns of a trace's `customdata`: shape (..., columns)."""
    return np.stack([np.asarray(a, dtype=object) for a in np.broadcast_arrays(*arrays)], axis=-1)


def numbers(*arrays: Any) -> Array:
    """The same for numbers alone, which travel to the browser packed."""
    stacked = np.stack(np.broadcast_arrays(*(np.asarray(a, float) for a in arrays)), axis=-1)
    return np.asarray(stacked, dtype=np.float64)


def log_steps(low: int, high: int, count: int) -> Array:
    """`count` distinct whole numbers, evenly spread in logarithms as far as whole numbers go."""
    points = count
    while True:
        values = np.unique(np.round(np.geomspace(low, high, points)))
        if len(values) >= count:
            kept = np.round(np.linspace(0, len(values) - 1, count)).astype(int)
            return np.asarray(values[kept], dtype=np.float64)
        points += count - len(values)


def tick_positions(values: Sequence[float] | Array, wanted: Sequence[float]) -> list[float]:
    """Where on an index axis over `values` each wanted value stands, between cells if need be."""
    index = np.arange(len(values), dtype=float)
    return [float(np.interp(np.log(w), np.log(values), index)) for w in wanted]
