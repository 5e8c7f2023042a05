"""Maps over batch and prefix, and over γ and KV budget."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from app.charts.base import SERIES, Array, columns, finish, numbers
from app.charts.cells import (
    CELL_HOVER,
    MeasuredSpeedup,
    SpeedupGrid,
    add_marker,
    add_measured,
    add_star,
    add_wall,
    batch_prefix_axes,
    cell_data,
    contour,
    heatmap,
    make_clickable,
    mesh,
    short_label,
    speedup_range,
)
from perfmodel import GammaSchedule, Scenario, estimate, format_tokens, plan_label

GAMMAS = np.arange(1, 17, dtype=float)
MAP_BATCHES = np.unique([n * 2.0**k for k in range(9) for n in (1, 1.5) if n * 2.0**k % 1 == 0])
MAP_PREFIXES = np.unique(np.round(1000 * 2.0 ** np.arange(0, 7.5, 0.5)))
BUDGETS = np.array([64, 128, 256, 512, 1024, 2048, 4096, 8192], float)
PLATEAU = 0.02  # within this share of the optimum, a choice is as good


def speedup_grid(
    scenario: Scenario,
    batches: Array = MAP_BATCHES,
    prefixes: Array = MAP_PREFIXES,
    gammas: Array = GAMMAS,
) -> SpeedupGrid:
    """Speedup at the best of `gammas`, one broadcast call; (batches, prefixes)."""
    prefix = prefixes[None, :, None]
    point = estimate(
        scenario,
        batch=batches[:, None, None],
        prompt_tokens=prefix,
        gamma=gammas,
        kv_budget_tokens=np.minimum(scenario.plan.kv_budget_tokens or 0, prefix),
    )
    shape = (len(batches), len(prefixes), len(gammas))
    feasible = np.broadcast_to(point.feasible, shape)
    usable = np.where(feasible & ~np.isnan(point.speedup), point.speedup, -np.inf)
    best = np.argmax(usable, axis=-1)
    speedup = np.take_along_axis(usable, best[..., None], axis=-1)[..., 0]
    return SpeedupGrid(
        scenario,
        batches,
        prefixes,
        np.where(np.isfinite(speedup), speedup, np.nan),
        gammas[best],
        np.any(feasible, axis=-1),
    )


def speedup_map(
    scenario: Scenario,
    grid: SpeedupGrid | None = None,
    *,
    measured: Sequence[MeasuredSpeedup] = (),
    clickable: bool = False,
) -> go.Figure:
    """Speedup of a draft choice over batch and prefix, γ chosen anew at each point.

    Colour is log2 of the speedup, centred on 1x; the line is break-even; hatching marks what the
    GPUs do not hold. The star is the scenario itself, circles are published measurements.
    `clickable` lays an invisible marker on each cell, since a heat map cannot be selected.
    """
    grid = grid or speedup_grid(scenario)
    figure = heatmap(grid.speedup, *cell_data(grid), hover=CELL_HOVER)
    batch_prefix_axes(figure, grid.batches, grid.prefixes)
    if np.any(grid.speedup < 1.0) and np.any(grid.speedup > 1.0):
        figure.add_trace(contour(np.log2(grid.speedup), 0.0, "break-even"))
    add_wall(figure, grid.fits)
    if clickable:
        make_clickable(figure)
    add_measured(figure, grid, measured)
    add_star(figure, grid.batches, grid.prefixes, scenario)
    return finish(
        figure,
        title="Speedup over batch and prefix (line: break-even; hatched: does not fit)",
        x="prefix (tokens)",
        y="batch (sequences)",
        alt=f"Heat map of {escape(plan_label(scenario.plan))}: {speedup_range(grid.speedup)} "
        f"over batch {grid.batches[0]:.0f} to {grid.batches[-1]:.0f} and prefix "
        f"{format_tokens(grid.prefixes[0])} to {format_tokens(grid.prefixes[-1])} tokens; "
        f"{np.mean(~grid.fits):.0%} of the cells do not fit.",
    )


def winner_map(grids: Sequence[SpeedupGrid], *, clickable: bool = False) -> go.Figure:
    """The draft choice that decodes fastest at each batch and prefix, plain decoding included."""
    first = grids[0]
    names = ["No speculation", *(short_label(grid.scenario) for grid in grids)]
    speedups = np.stack([np.where(first.fits, 1.0, np.nan), *(g.speedup for g in grids)])
    fits = np.any([g.fits for g in grids], axis=0)
    filled = np.where(np.isnan(speedups), -np.inf, speedups)
    winner = np.argmax(filled, axis=0)
    best = np.where(fits, np.take_along_axis(filled, winner[None], axis=0)[0], np.nan)
    colours = ["#bbbbbb", *SERIES][: len(names)]
    steps = [(i + k) / len(names) for i in range(len(names)) for k in (0, 1)]
    figure = go.Figure(
        go.Heatmap(
            z=np.where(fits, winner, np.nan),
            zmin=-0.5,
            zmax=len(names) - 0.5,
            colorscale=[[s, colours[i // 2]] for i, s in enumerate(steps)],
            name="winner",
            customdata=columns(best, *mesh(first), np.array(names)[winner]),
            meta=("speedup", "batch", "prompt_tokens", "plan"),
            hovertemplate="%{customdata[3]}: %{customdata[0]:.2f}x<br>batch %{customdata[1]:,}, "
            "prefix %{customdata[2]:,} tokens<extra></extra>",
            hoverongaps=False,
            showscale=False,
        )
    )
    for name, colour in zip(names, colours, strict=True):
        figure.add_trace(
            go.Scatter(
                x=[None],
                y=[None],
                mode="markers",
                name=escape(name),
                marker={"symbol": "square", "size": 12, "color": colour},
                hoverinfo="skip",
            )
        )
    batch_prefix_axes(figure, first.batches, first.prefixes)
    add_wall(figure, fits)
    if clickable:
        make_clickable(figure)
    add_star(figure, first.batches, first.prefixes, first.scenario)
    shares = [f"{n} on {np.mean(winner[fits] == i):.0%}" for i, n in enumerate(names)]
    return finish(
        figure,
        title="Fastest draft choice over batch and prefix (hatched: none fits)",
        x="prefix (tokens)",
        y="batch (sequences)",
        alt=f"Map of the fastest choice; of the cells that fit: {escape('; '.join(shares))}.",
    )


def budget_map(scenario: Scenario) -> go.Figure:
    """Speedup over γ and KV budget at the scenario's own batch and prefix.

    The star is the optimum, the line bounds the plateau within 2 % of it.
    """
    prefix = float(scenario.workload.prompt_tokens)
    budgets = BUDGETS[prefix >= BUDGETS]
    point = estimate(scenario, gamma=GAMMAS[:, None], kv_budget_tokens=budgets[None, :])
    shape = (len(GAMMAS), len(budgets))
    speedup = np.broadcast_to(np.where(point.feasible, point.speedup, np.nan), shape)
    data = numbers(speedup, GAMMAS[:, None], budgets[None, :], point.alpha)
    figure = heatmap(
        speedup,
        data,
        ("speedup", "gamma", "kv_budget", "alpha"),
        hover="%{customdata[0]:.2f}x<br>γ %{customdata[1]}, budget %{customdata[2]:,}"
        "<br>α %{customdata[3]:.3f}<extra></extra>",
    )
    figure.update_xaxes(
        tickvals=np.arange(len(budgets)), ticktext=[format_tokens(b) for b in budgets]
    )
    figure.update_yaxes(tickvals=np.arange(len(GAMMAS)), ticktext=[f"{g:.0f}" for g in GAMMAS])
    alt = "Heat map over γ and KV budget: no point has a known speedup."
    if np.any(np.isfinite(speedup)):
        row, column = np.unravel_index(np.nanargmax(speedup), shape)
        best = speedup[row, column]
        plateau = int(np.sum(speedup >= (1.0 - PLATEAU) * best))
        if 1 < plateau < speedup.size:
            figure.add_trace(contour(speedup, (1.0 - PLATEAU) * best, "within 2 % of the best"))
        add_marker(figure, float(column), float(row), f"best: {best:.2f}x")
        alt = (
            f"Heat map over γ and KV budget: best {best:.2f}x at γ {GAMMAS[row]:.0f} and budget "
            f"{format_tokens(budgets[column])} tokens; {plateau} of {speedup.size} points are "
            f"within 2 % of it."
        )
    return finish(
        figure,
        title="Speedup over drafts a round and KV budget",
        x="KV budget (tokens)",
        y="γ (drafts a round)",
        alt=alt,
    )


def needed_map(scenario: Scenario, batches: Array, prefixes: Array) -> go.Figure:
    """Lowest α over γ that breaks even, over batch and prefix, where the α is not known."""
    prefix = prefixes[None, :, None]
    point = estimate(
        scenario,
        batch=batches[:, None, None],
        prompt_tokens=prefix,
        gamma=GAMMAS,
        kv_budget_tokens=np.minimum(scenario.plan.kv_budget_tokens or 0, prefix),
    )
    shape = (len(batches), len(prefixes), len(GAMMAS))
    feasible = np.broadcast_to(point.feasible, shape)
    needed = np.where(feasible, point.break_even_alpha, np.inf)
    best = np.argmin(needed, axis=-1)
    lowest = np.take_along_axis(needed, best[..., None], axis=-1)[..., 0]
    alpha = np.where(np.isfinite(lowest), lowest, np.nan)
    figure = go.Figure(
        go.Heatmap(
            z=alpha,
            zmin=0.0,
            zmax=1.0,
            colorscale="Viridis",
            name="alpha needed",
            customdata=numbers(alpha, batches[:, None], prefixes[None, :], GAMMAS[best]),
            meta=("alpha", "batch", "prompt_tokens", "gamma"),
            hovertemplate="α %{customdata[0]:.2f} breaks even at γ %{customdata[3]}<br>batch "
            "%{customdata[1]:,}, prefix %{customdata[2]:,} tokens<extra></extra>",
            hoverongaps=False,
            colorbar={"title": "α", "thickness": 12},
        )
    )
    batch_prefix_axes(figure, batches, prefixes)
    add_wall(figure, np.any(feasible, axis=-1))
    make_clickable(figure)
    add_star(figure, batches, prefixes, scenario)
    known = alpha[np.isfinite(alpha)]
    span = f"{known.min():.2f} to {known.max():.2f}" if len(known) else "above 1 everywhere"
    return finish(
        figure,
        title="α needed to break even, at the γ that needs least (hatched: does not fit)",
        x="prefix (tokens)",
        y="batch (sequences)",
        alt=f"Heat map of the acceptance that breaks even: {span}.",
    )


def schedule_map(schedule: GammaSchedule) -> go.Figure:
    """Best γ over batch and prefix; 0 is plain decoding, and what does not fit is hatched."""
    gamma = np.array(schedule.gamma, float)
    batches, contexts = (np.array(v, float) for v in (schedule.batches, schedule.contexts))
    fits = gamma >= 0
    figure = go.Figure(
        go.Heatmap(
            z=np.where(fits, gamma, np.nan),
            text=np.where(fits, gamma.astype(int).astype(str), ""),
            texttemplate="%{text}",
            colorscale="Blues",
            name="gamma",
            customdata=numbers(gamma, batches[:, None], contexts[None, :]),
            meta=("gamma", "batch", "prompt_tokens"),
            hovertemplate="γ %{customdata[0]}<br>batch %{customdata[1]:,}, prefix "
            "%{customdata[2]:,} tokens<extra></extra>",
            hoverongaps=False,
            showscale=False,
        )
    )
    figure.update_xaxes(
        tickvals=np.arange(len(contexts)), ticktext=[format_tokens(c) for c in contexts]
    )
    figure.update_yaxes(tickvals=np.arange(len(batches)), ticktext=[f"{b:.0f}" for b in batches])
    add_wall(figure, fits)
    return finish(
        figure,
        title="Best γ over batch and prefix (0: decode plainly; hatched: does not fit)",
        x="prefix (tokens)",
        y="batch (sequences)",
        alt=f"Table of the best γ: 0 (plain decoding) in {np.mean(gamma == 0):.0%} of the cells, "
        f"at most {max(gamma.max(), 0):.0f}; {np.mean(~fits):.0%} do not fit.",
    )
