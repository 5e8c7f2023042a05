"""Shared parts of heat maps: axes, the region that does not fit, markers, and clicks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from app.charts.base import EDGE, GAIN, HATCH, LOSS, NEUTRAL, WALL, Array, finish, numbers
from perfmodel import Scenario
from perfmodel.planning import plan_label


@dataclass(frozen=True, eq=False, slots=True)
class SpeedupGrid:
    """Best speedup, and its γ, over batch (rows) and prompt length (columns).

    `speedup` is NaN where the plan does not fit in memory (`fits` is False) or its acceptance is
    unknown. `low` is the lower end of its 90 % interval, if known. `title` says what it is, and
    `here` is its value at the scenario's own batch and prompt; NaN if unknown.
    """

    scenario: Scenario
    batches: Array
    prompts: Array
    speedup: Array
    gamma: Array
    fits: NDArray[np.bool_]
    low: Array | None = None
    title: str = "Speedup of decoding alone"
    here: float = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSpeedup:
    """A measured speedup to show on a map."""

    batch: int
    prompt_tokens: int
    gamma: int
    speedup: float
    source: str


TIE = 0.02  # choices within this share of each other count as equally good
CELL_HOVER = (
    "%{customdata[0]:.2f}x<br>batch %{customdata[1]:,}, prompt %{customdata[2]:,} tokens"
    "<br>γ %{customdata[3]}"
)
UNFIT_HOVER = (
    "does not fit<br>batch %{customdata[1]:,}, prompt %{customdata[2]:,} tokens<extra></extra>"
)


def cell_data(grid: SpeedupGrid) -> tuple[Array, tuple[str, ...]]:
    """Data of each cell, shape (batches, prompts, 4), and the names of its columns."""
    data = numbers(grid.speedup, *mesh(grid), grid.gamma)
    return data, ("speedup", "batch", "prompt_tokens", "gamma")


def mesh(grid: SpeedupGrid) -> tuple[Array, Array]:
    """Batches as a column and prompt lengths as a row, ready to broadcast."""
    return grid.batches[:, None], grid.prompts[None, :]


def short_label(scenario: Scenario) -> str:
    """The label of a plan without its γ."""
    return plan_label(scenario).rpartition(", γ=")[0]


def speedup_range(speedup: Array) -> str:
    """The smallest and the largest known speedup in words."""
    if not np.any(np.isfinite(speedup)):
        return "no known speedup"
    return f"speedup {np.nanmin(speedup):.2f}x to {np.nanmax(speedup):.2f}x"


def heatmap(
    speedup: Array,
    data: Array,
    names: tuple[str, ...],
    *,
    hover: str,
    x: Array | None = None,
    y: Array | None = None,
) -> go.Figure:
    """A heat map of log2 of the speedup at `x` and `y`, by default the cells' indices."""
    z = np.log2(speedup)
    reach = max(1.0, float(np.nanmax(np.abs(z), initial=0.0)))
    ticks = np.arange(-np.floor(reach), np.floor(reach) + 0.5, 0.5 if reach < 2 else 1.0)
    return cell_map(
        z,
        data,
        names,
        hover=hover,
        zmin=-reach,
        zmax=reach,
        colorscale=_gain_colours(reach),
        name="speedup",
        colorbar={
            "title": "speedup",
            "tickvals": ticks,
            "ticktext": [f"{2.0**t:.2g}x" for t in ticks],
            "thickness": 12,
        },
        x=x,
        y=y,
    )


def _gain_colours(reach: float) -> list[tuple[float, str]]:
    """Purple to green around a white band of ties, for log2 of the speedup up to `reach`."""
    tie = np.log2(1.0 + TIE) / (2.0 * reach)
    losses = [(0.0, LOSS), (0.25, "#c2a5cf"), (0.5 - tie, "#e7d4e8"), (0.5 - tie, NEUTRAL)]
    return [*losses, (0.5 + tie, NEUTRAL), (0.5 + tie, "#d9f0d3"), (0.75, "#a6dba0"), (1.0, GAIN)]


def cell_map(
    z: Array, data: NDArray[Any], names: tuple[str, ...], *, hover: str, **look: Any
) -> go.Figure:
    """A heat map of `z` with columns of data per cell, as in `chart_rows`."""
    hover = f"{hover}<extra></extra>"
    heat = go.Heatmap(z=z, customdata=data, meta=names, hovertemplate=hover, hoverongaps=False)
    return go.Figure(heat.update(look))


def finish_map(
    figure: go.Figure,
    scenario: Scenario,
    batches: Array,
    prompts: Array,
    fits: NDArray[np.bool_],
    *,
    title: str,
    alt: str,
    measured: Sequence[MeasuredSpeedup] = (),
    clickable: bool = False,
) -> go.Figure:
    """Add log axes, the region that does not fit, and markers to a map over batch and prompt.

    `fits` has shape (batches, prompts); a star marks the scenario.
    """
    _batch_prompt_axes(figure, batches, prompts)
    add_wall(figure, fits, x=log_edges(prompts), y=log_edges(batches))
    if clickable:
        make_clickable(figure)
        _make_clickable_where(figure, ~fits, "cells that do not fit", UNFIT_HOVER)
    if measured:
        _add_measured(figure, measured)
    work = scenario.workload
    add_marker(figure, work.prompt_tokens, work.batch, "this workload")
    return finish(figure, title=title, x="prompt (tokens)", y="batch (sequences)", alt=alt)


def label_cells(figure: go.Figure, *, x: Sequence[str], y: Sequence[str]) -> None:
    """Label each column and row of a heat map on index axes."""
    figure.update_xaxes(tickvals=np.arange(len(x)), ticktext=x)
    figure.update_yaxes(tickvals=np.arange(len(y)), ticktext=y)


def legend_square(name: str, colour: str) -> go.Scatter:
    """A trace that only adds a legend entry for the cells of one colour."""
    return go.Scatter(
        x=[None],
        y=[None],
        mode="markers",
        name=escape(name),
        marker={"symbol": "square", "size": 12, "color": colour},
        hoverinfo="skip",
    )


def log_edges(values: Array) -> Array:
    """Edges of cells around values on a log axis: one more than there are values."""
    logs = np.log(values)
    if len(logs) == 1:
        return np.asarray(values[0] * np.array([0.5, 2.0]))
    middles = 0.5 * (logs[1:] + logs[:-1])
    ends = 2.0 * logs[[0, -1]] - middles[[0, -1]]
    return np.asarray(np.exp([ends[0], *middles, ends[1]]))


def _batch_prompt_axes(figure: go.Figure, batches: Array, prompts: Array) -> None:
    powers = 2.0 ** np.arange(0, 21)
    figure.update_yaxes(**_log_axis(batches, powers))
    prompt_axis = _log_axis(prompts, 1000 * powers)
    every = 1 if len(prompt_axis["ticktext"]) <= 6 else 2  # all would overlap on a phone
    named = [t if i % every == 0 else "" for i, t in enumerate(prompt_axis["ticktext"])]
    figure.update_xaxes(**prompt_axis | {"ticktext": named}, tickangle=0)


def _log_axis(values: Array, wanted: NDArray[Any]) -> dict[str, Any]:
    """A log axis over cells, with ticks at those of the wanted values that it has."""
    ticks = [float(tick) for tick in wanted if values[0] <= tick <= values[-1]]
    text = [f"{t / 1000:,.0f}k" if wanted[0] >= 1000 else f"{t:,.0f}" for t in ticks]
    ends = np.log10(log_edges(values)[[0, -1]])
    return {"type": "log", "tickvals": ticks, "ticktext": text, "range": ends, "showgrid": False}


def contour(z: Array, level: float, name: str, **place: Any) -> go.Contour:
    """The contour line on which `z` equals `level`; `place` is that of the heat map."""
    return go.Contour(
        z=z,
        name=name,
        contours={"start": level, "end": level, "size": 1.0, "coloring": "none"},
        line={"color": EDGE, "width": 3, "smoothing": 0},
        showscale=False,
        hoverinfo="skip",
        **place,
    )


def add_wall(figure: go.Figure, fits: NDArray[np.bool_], *, x: Array, y: Array) -> None:
    """Hatch the cells that do not fit: in each column, all rows from the first of them.

    `x` and `y` are the edges of the cells.
    """
    first = np.where(np.all(fits, axis=0), fits.shape[0], np.argmin(fits, axis=0))
    walled = np.flatnonzero(first < fits.shape[0])
    if not len(walled):
        return
    right, top = [x[walled[0]]], [y[-1]]
    for column in walled:
        right += [x[column], x[column + 1]]
        top += [y[first[column]]] * 2
    figure.add_trace(
        go.Scatter(
            x=[*right, x[walled[-1] + 1], x[walled[0]]],
            y=[*top, y[-1], y[-1]],
            mode="lines",
            name="does not fit",
            line={"width": 1, "color": HATCH},
            fill="toself",
            fillcolor=WALL,
            fillpattern={"shape": "/", "size": 8, "fgcolor": HATCH, "bgcolor": WALL},
            hoverinfo="skip",
        )
    )


def make_clickable(figure: go.Figure) -> None:
    """Add markers that receive clicks, since cells of a heat map cannot be selected.

    Only one of them is drawn, and invisibly; all of them are found by the pointer.
    """
    heat = figure.data[0]
    known = np.isfinite(np.asarray(heat.z, float))
    _make_clickable_where(figure, known, "cells", heat.hovertemplate)
    heat.update(hoverinfo="skip", hovertemplate=None)


def _make_clickable_where(
    figure: go.Figure, chosen: NDArray[np.bool_], name: str, hover: str
) -> None:
    heat = figure.data[0]
    rows, cells = np.nonzero(chosen)
    marks = go.Scatter(
        x=cells if heat.x is None else np.asarray(heat.x)[cells],
        y=rows if heat.y is None else np.asarray(heat.y)[rows],
        mode="markers",
        marker={"opacity": 0, "maxdisplayed": 1},
        name=name,
        showlegend=False,
        customdata=np.asarray(heat.customdata)[rows, cells],
        hovertemplate=hover,
    )
    figure.add_trace(marks)


def _add_measured(figure: go.Figure, measured: Sequence[MeasuredSpeedup]) -> None:
    heat = figure.data[0]
    data = [[m.speedup, m.batch, m.prompt_tokens, m.gamma, escape(m.source)] for m in measured]
    figure.add_trace(
        go.Scatter(
            x=[m.prompt_tokens for m in measured],
            y=[m.batch for m in measured],
            mode="markers",
            name="measured",
            marker={
                "size": 13,
                "color": np.log2([m.speedup for m in measured]),
                "colorscale": heat.colorscale,
                "cmin": heat.zmin,
                "cmax": heat.zmax,
                "line": {"width": 2, "color": "black"},
            },
            unselected={"marker": {"opacity": 1}},
            customdata=data,
            meta=("speedup", "batch", "prompt_tokens", "gamma", "source"),
            hovertemplate="measured %{customdata[0]:.2f}x at γ %{customdata[3]}<br>batch "
            "%{customdata[1]:,}, prompt %{customdata[2]:,}<br>%{customdata[4]}<extra></extra>",
        )
    )


def add_marker(figure: go.Figure, x: float, y: float, name: str, symbol: str = "star") -> None:
    """Mark one cell with a star or another symbol."""
    figure.add_trace(
        go.Scatter(
            x=[x],
            y=[y],
            mode="markers",
            name=name,
            marker={
                "symbol": symbol,
                "size": 16,
                "color": "black",
                "line": {"width": 2, "color": "white"},
            },
            unselected={"marker": {"opacity": 1}},
            hoverinfo="skip",
        )
    )
