"""Shared parts of heat maps: index axes, the region that does not fit, markers, and clicks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from app.charts.base import DIVERGING, HATCH, WALL, Array, finish, numbers, tick_positions
from perfmodel import Scenario
from perfmodel.planning import plan_label


@dataclass(frozen=True, eq=False, slots=True)
class SpeedupGrid:
    """Best speedup, and its γ, over batch (rows) and prompt length (columns).

    `speedup` is NaN where the plan does not fit in memory (`fits` is False) or its acceptance is
    unknown. `low` is the lower end of its 90 % interval, if known. `title` says what it is.
    """

    scenario: Scenario
    batches: Array
    prompts: Array
    speedup: Array
    gamma: Array
    fits: NDArray[np.bool_]
    low: Array | None = None
    title: str = "Speedup of decoding"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSpeedup:
    """A measured speedup to show on a map."""

    batch: int
    prompt_tokens: int
    gamma: int
    speedup: float
    source: str


CELL_HOVER = (
    "%{customdata[0]:.2f}x<br>batch %{customdata[1]:,}, prompt %{customdata[2]:,} tokens"
    "<br>γ %{customdata[3]}"
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


def heatmap(speedup: Array, data: Array, names: tuple[str, ...], *, hover: str) -> go.Figure:
    """A heat map of log2 of the speedup, on index axes so that all cells have the same size."""
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
        colorscale=DIVERGING,
        name="speedup",
        colorbar={
            "title": "speedup",
            "tickvals": ticks,
            "ticktext": [f"{2.0**t:.2g}x" for t in ticks],
            "thickness": 12,
        },
    )


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
    """Add axes, the region that does not fit, and markers to a heat map over batch and prompt.

    `fits` has shape (batches, prompts); a star marks the scenario.
    """
    _batch_prompt_axes(figure, batches, prompts)
    add_wall(figure, fits)
    if clickable:
        _make_clickable(figure)
    if measured:
        _add_measured(figure, batches, prompts, measured)
    work = scenario.workload
    (x,), (y,) = (
        tick_positions(values, [here])
        for values, here in ((prompts, work.prompt_tokens), (batches, work.batch))
    )
    add_marker(figure, x, y, "this workload")
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


def _batch_prompt_axes(figure: go.Figure, batches: Array, prompts: Array) -> None:
    powers = 2.0 ** np.arange(0, 21)
    rows = _apart(batches, [p for p in powers if batches[0] <= p <= batches[-1]])
    thousands = [p for p in 1000 * powers if prompts[0] <= p <= prompts[-1]]
    figure.update_yaxes(
        tickvals=tick_positions(batches, rows),
        ticktext=[f"{b:,.0f}" for b in rows],
        range=[-0.5, len(batches) - 0.5],
    )
    figure.update_xaxes(
        tickvals=tick_positions(prompts, thousands),
        ticktext=[f"{p / 1000:.0f}k" for p in thousands],
        range=[-0.5, len(prompts) - 0.5],
    )


def _apart(values: Array, wanted: Sequence[float]) -> list[float]:
    """The wanted ticks without those too close to the next larger one."""
    ticks: list[float] = []
    for tick, place in zip(wanted[::-1], tick_positions(values, wanted)[::-1], strict=True):
        if not ticks or tick_positions(values, ticks[-1:])[0] - place > len(values) / 24:
            ticks.append(tick)
    return ticks[::-1]


def contour(z: Array, level: float, name: str) -> go.Contour:
    """The contour line on which `z` equals `level`."""
    return go.Contour(
        z=z,
        name=name,
        contours={"start": level, "end": level, "size": 1.0, "coloring": "none"},
        line={"color": "black", "width": 3, "smoothing": 0},
        showscale=False,
        hoverinfo="skip",
    )


def add_wall(figure: go.Figure, fits: NDArray[np.bool_]) -> None:
    """Hatch the cells that do not fit: in each column, all rows from the first of them."""
    first = np.where(np.all(fits, axis=0), fits.shape[0], np.argmin(fits, axis=0))
    walled = np.flatnonzero(first < fits.shape[0])
    if not len(walled):
        return
    top = fits.shape[0] - 0.5
    x, y = [walled[0] - 0.5], [top]
    for column in walled:
        x += [column - 0.5, column + 0.5]
        y += [first[column] - 0.5] * 2
    figure.add_trace(
        go.Scatter(
            x=[*x, walled[-1] + 0.5, walled[0] - 0.5],
            y=[*y, top, top],
            mode="lines",
            name="does not fit",
            line={"width": 1, "color": HATCH},
            fill="toself",
            fillcolor=WALL,
            fillpattern={"shape": "/", "size": 8, "fgcolor": HATCH, "bgcolor": WALL},
            hoverinfo="skip",
        )
    )


def _make_clickable(figure: go.Figure) -> None:
    """Add empty text marks that receive clicks, since cells of a heat map cannot be selected.

    Unlike thousands of invisible markers, they do not slow down a redraw.
    """
    heat = figure.data[0]
    rows, cells = np.nonzero(np.isfinite(np.asarray(heat.z, float)))
    marks = go.Scatter(
        x=cells,
        y=rows,
        mode="text",
        text="",
        name="cells",
        showlegend=False,
        customdata=np.asarray(heat.customdata)[rows, cells],
        hovertemplate=heat.hovertemplate,
    )
    heat.update(hoverinfo="skip", hovertemplate=None)
    figure.add_trace(marks)


def _add_measured(
    figure: go.Figure, batches: Array, prompts: Array, measured: Sequence[MeasuredSpeedup]
) -> None:
    heat = figure.data[0]
    data = [[m.speedup, m.batch, m.prompt_tokens, m.gamma, escape(m.source)] for m in measured]
    figure.add_trace(
        go.Scatter(
            x=tick_positions(prompts, [m.prompt_tokens for m in measured]),
            y=tick_positions(batches, [m.batch for m in measured]),
            mode="markers",
            name="measured",
            marker={
                "size": 13,
                "color": np.log2([m.speedup for m in measured]),
                "colorscale": DIVERGING,
                "cmin": heat.zmin,
                "cmax": heat.zmax,
                "line": {"width": 2, "color": "black"},
            },
            customdata=data,
            meta=("speedup", "batch", "prompt_tokens", "gamma", "source"),
            hovertemplate="measured %{customdata[0]:.2f}x at γ %{customdata[3]}<br>batch "
            "%{customdata[1]:,}, prompt %{customdata[2]:,}<br>%{customdata[4]}<extra></extra>",
        )
    )


def add_marker(figure: go.Figure, x: float, y: float, name: str) -> None:
    """Mark one cell with a star."""
    figure.add_trace(
        go.Scatter(
            x=[x],
            y=[y],
            mode="markers",
            name=name,
            marker={
                "symbol": "star",
                "size": 16,
                "color": "black",
                "line": {"width": 1, "color": "white"},
            },
            hoverinfo="skip",
        )
    )
