"""Shared parts of charts: palette, layout, alternative text, and the data as rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from perfmodel import Scenario
from perfmodel.planning import draft_choices
from perfmodel.specs import METHODS

Array = NDArray[np.float64]

# Purple to green is distinct for colour-blind readers; greys are legible on light and dark pages.
GAIN, LOSS, NEUTRAL = "#1b7837", "#762a83", "#f7f7f7"
EDGE = "#b35806"  # lines across a map; legible on light and dark pages
WALL, HATCH, LINE = "rgba(136, 136, 136, 0.3)", "#777777", "#888888"  # on any background
# Pale, for parts of a pass: the colours below are those of drafts.
PART_COLOURS = {
    "linear": "#77aadd",
    "experts": "#bbcc33",
    "attention": "#ee8866",
    "comm": "#44bb99",
    "elementwise": "#eedd88",
    "overhead": "#aaaaaa",
}
# Distinct also for colour-blind readers, with a contrast of 3:1 on light and dark pages
# (tests/app/charts).
PLAIN = "#888888"  # plain decoding, and passes of the target
DRAFT_COLOURS = {
    "self:streamingllm": "#1177aa",
    "self:snapkv": "#22aa55",
    "self:full": "#aa77ff",
    "eagle3": "#cc7700",
    "mtp": "#bb1199",
    "p-eagle": "#9944cc",
    "dflash": "#dd6644",
    "ngram": "#ee44cc",
    "suffix": "#bb3300",
}
# Draft models in the order of the catalog: with a window of the cache, and with all of it.
MODEL_COLOURS = (
    {"streamingllm": "#8811ff", "full": "#aa4433"},
    {"streamingllm": "#8855ff", "full": "#995555"},
    {"streamingllm": "#4499dd", "full": "#885577"},
)
OTHER = "#bbbbbb"
SERIES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bb5566", "#999933")
PASS_LABELS = {
    "target_step": "T_T plain step",
    "verify": "T_V verify",
    "draft_step": "T_D one draft",
}
# Horizontal, below the axes.
LEGEND = {
    "orientation": "h",
    "yref": "container",
    "y": 0.0,
    "yanchor": "bottom",
    "font": {"size": 11},
}


def plan_colour(scenario: Scenario) -> str:
    """The colour of a scenario's draft, the same in every chart; grey without a draft."""
    plan = scenario.plan
    if not plan.speculates:
        return PLAIN
    if plan.is_self:
        return DRAFT_COLOURS[f"self:{plan.policy}"]
    if plan.method is not None:
        return DRAFT_COLOURS[plan.draft]
    known = (draft for draft, _ in draft_choices(scenario))
    models = [d for d in dict.fromkeys(known) if d != "self" and d not in METHODS]
    place = models.index(plan.draft) if plan.draft in models else len(models)
    shades = MODEL_COLOURS[place % len(MODEL_COLOURS)]
    return shades["full" if plan.policy == "full" else "streamingllm"]


def finish(
    figure: go.Figure, *, title: str, x: str, y: str, alt: str, legend: bool = True
) -> go.Figure:
    """Set title, axis titles with units, and layout; `alt` is the alternative text."""
    figure.update_layout(
        title={"text": title, "font": {"size": 15}},
        xaxis_title=x,
        yaxis_title=y,
        showlegend=legend,
        legend=LEGEND,
        margin={"l": 10, "r": 24, "t": 50, "b": 10},
        height=440,
        font={"family": "system-ui, sans-serif", "size": 12},
        meta={"alt": alt},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


def alt_text(figure: go.Figure) -> str:
    """The alternative text of a chart."""
    return str(figure.layout.meta["alt"])


def chart_rows(figure: go.Figure) -> list[dict[str, Any]]:
    """The chart's data as one dict per point: the series, then its columns; None if unknown.

    A trace names the columns of its `customdata` in `meta`; traces without `meta` are only visual
    aids and are left out.
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
    """Arrays, broadcast together, as the columns of a trace's `customdata`: (..., columns)."""
    return np.stack([np.asarray(a, dtype=object) for a in np.broadcast_arrays(*arrays)], axis=-1)


def numbers(*arrays: Any) -> Array:
    """Like `columns`, for numbers only, which plotly sends to the browser in binary form."""
    stacked = np.stack(np.broadcast_arrays(*(np.asarray(a, float) for a in arrays)), axis=-1)
    return np.asarray(stacked, dtype=np.float64)


def curve(
    values: Mapping[str, Any], *, name: str, colour: str, hover: str, mode: str = "lines"
) -> go.Scatter:
    """A line of the second named column over the first; all columns are its data."""
    x, y, *_ = values.values()
    return go.Scatter(
        x=x,
        y=y,
        mode=mode,
        name=name,
        line={"color": colour},
        customdata=numbers(*values.values()),
        meta=tuple(values),
        hovertemplate=f"{hover}<extra></extra>",
    )


def box(rows: Sequence[Sequence[Any]], names: tuple[str, ...], *, name: str, **look: Any) -> go.Box:
    """Box plots of the rows' second column, one per value of the first."""
    return go.Box(
        x=[row[0] for row in rows],
        y=[row[1] for row in rows],
        name=name,
        customdata=rows,
        meta=names,
        **look,
    )


def log_steps(low: int, high: int, count: int) -> Array:
    """`count` distinct integers from `low` to `high`, spaced evenly in log where possible."""
    points = count
    while True:
        values = np.unique(np.round(np.geomspace(low, high, points)))
        if len(values) >= count:
            chosen = np.round(np.linspace(0, len(values) - 1, count)).astype(int)
            return np.asarray(values[chosen], dtype=np.float64)
        points += count - len(values)
