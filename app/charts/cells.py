"""The pieces of a map: cells on index axes, the memory wall, markers, and cells that click."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from app.charts.base import DIVERGING, HATCH, WALL, Array, numbers, tick_positions
from perfmodel import Scenario, plan_label


@dataclass(frozen=True, eq=False, slots=True)
class SpeedupGrid:
    """Speedup and the γ that gives it, over batch (rows) and prefix (columns).

    `speedup` is NaN where the GPUs do not hold the plan (`fits` is False there) and where the
    acceptance is unknown.
    """

    scenario: Scenario
    batches: Array
    prefixes: Array
    speedup: Array
    gamma: Array
    fits: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSpeedup:
    """A published measurement at one cell of the map."""

    batch: int
    prompt_tokens: int
    gamma: int
    speedup: float
    source: str


CELL_HOVER = (
    "%{customdata[0]:.2f}x<br>batch %{customdata[1]:,}, prefix %{customdata[2]:,} tokens"
    "<br>γ %{customdata[3]}<extra></extra>"
)


def cell_data(grid: SpeedupGrid) -> tuple[Array, tuple[str, ...]]:
    data = numbers(grid.speedup, *mesh(grid), grid.gamma)
    return data, ("speedup", "batch", "prompt_tokens", "gamma")


def mesh(grid: SpeedupGrid) -> tuple[Array, Array]:
    return grid.batches[:, None], grid.prefixes[None, :]


def short_label(scenario: Scenario) -> str:
    return plan_label(scenario.plan).rpartition(", γ=")[0]


def speedup_range(speedup: Array) -> str:
    if not np.any(np.isfinite(speedup)):
        return "no known speedup"
    return f"speedup {np.nanmin(speedup):.2f}x to {np.nanmax(speedup):.2f}x"


def heatmap(speedup: Array, data: Array, names: tuple[str, ...], *, hover: str) -> go.Figure:
    """A heat map of log2 of the speedup on index axes, so that cells keep their size."""
    z = np.log2(speedup)
    reach = max(1.0, float(np.nanmax(np.abs(z), initial=0.0)))
    ticks = np.arange(-np.floor(reach), np.floor(reach) + 0.5, 0.5 if reach < 2 else 1.0)
    figure = go.Figure(
        go.Heatmap(
            z=z,
            zmin=-reach,
            zmax=reach,
            colorscale=DIVERGING,
            name="speedup",
            customdata=data,
            meta=names,
            hovertemplate=hover,
            hoverongaps=False,
            colorbar={
                "title": "speedup",
                "tickvals": ticks,
                "ticktext": [f"{2.0**t:.2g}x" for t in ticks],
                "thickness": 12,
            },
        )
    )
    return figure


def batch_prefix_axes(figure: go.Figure, batches: Array, prefixes: Array) -> None:
    powers = 2.0 ** np.arange(0, 21)
    rows = _apart(batches, [p for p in powers if batches[0] <= p <= batches[-1]])
    whole = [p for p in 1000 * powers if prefixes[0] <= p <= prefixes[-1]]
    figure.update_yaxes(
        tickvals=tick_positions(batches, rows),
        ticktext=[f"{b:,.0f}" for b in rows],
        range=[-0.5, len(batches) - 0.5],
    )
    figure.update_xaxes(
        tickvals=tick_positions(prefixes, whole),
        ticktext=[f"{p / 1000:.0f}k" for p in whole],
        range=[-0.5, len(prefixes) - 0.5],
    )


def _apart(values: Array, wanted: Sequence[float]) -> list[float]:
    """The wanted ticks from the top down, without those that would crowd the one above."""
    kept: list[float] = []
    for tick, place in zip(wanted[::-1], tick_positions(values, wanted)[::-1], strict=True):
        if not kept or tick_positions(values, kept[-1:])[0] - place > len(values) / 24:
            kept.append(tick)
    return kept[::-1]


def contour(z: Array, level: float, name: str) -> go.Contour:
    return go.Contour(
        z=z,
        name=name,
        contours={"start": level, "end": level, "size": 1.0, "coloring": "none"},
        line={"color": "black", "width": 3, "smoothing": 0},
        showscale=False,
        hoverinfo="skip",
    )


def add_wall(figure: go.Figure, fits: NDArray[np.bool_]) -> None:
    """Hatch what does not fit: per run of columns the rows from the first that is too large."""
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


def make_clickable(figure: go.Figure) -> None:
    """Empty texts that carry hover and click, since a heat map cannot be selected.

    They draw nothing: thousands of invisible markers would take most of a redraw.
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


def add_measured(figure: go.Figure, grid: SpeedupGrid, measured: Sequence[MeasuredSpeedup]) -> None:
    if not measured:
        return
    heat = figure.data[0]
    data = [[m.speedup, m.batch, m.prompt_tokens, m.gamma, escape(m.source)] for m in measured]
    figure.add_trace(
        go.Scatter(
            x=tick_positions(grid.prefixes, [m.prompt_tokens for m in measured]),
            y=tick_positions(grid.batches, [m.batch for m in measured]),
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
            "%{customdata[1]:,}, prefix %{customdata[2]:,}<br>%{customdata[4]}<extra></extra>",
        )
    )


def add_star(figure: go.Figure, batches: Array, prefixes: Array, scenario: Scenario) -> None:
    work = scenario.workload
    (x,) = tick_positions(prefixes, [work.prompt_tokens])
    (y,) = tick_positions(batches, [work.batch])
    add_marker(figure, x, y, "this workload")


def add_marker(figure: go.Figure, x: float, y: float, name: str) -> None:
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
