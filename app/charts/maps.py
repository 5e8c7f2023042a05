"""Heat maps over batch and prompt length: speedup, fastest draft, and required α."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from app.charts.base import PLAIN, Array, columns, numbers, plan_colour
from app.charts.cells import (
    CELL_HOVER,
    TIE,
    MeasuredSpeedup,
    SpeedupGrid,
    cell_data,
    cell_map,
    contour,
    finish_map,
    heatmap,
    legend_square,
    log_edges,
    mesh,
    short_label,
    speedup_range,
)
from perfmodel import RoundEstimate, Scenario, estimate, without_speculation
from perfmodel.speculation import GAMMAS, Rule, best_gain
from perfmodel.units import format_tokens

WHOLE = "#a9a9a9"
MAP_BATCHES = np.unique([n * 2.0**k for k in range(9) for n in (1, 1.5) if n * 2.0**k % 1 == 0])
MAP_PROMPTS = np.unique(np.round(1000 * 2.0 ** np.arange(0, 7.5, 0.5)))


def speedup_grid(
    scenario: Scenario,
    batches: Array = MAP_BATCHES,
    prompts: Array = MAP_PROMPTS,
    gammas: Array = GAMMAS,
) -> SpeedupGrid:
    """Speedup at the best of `gammas`, from one broadcast call.

    It is unknown where a self-draft would read the whole prompt and so be its own target.
    """
    point, feasible = _estimate_grid(scenario, batches, prompts, gammas)
    known_cells = feasible & ~np.isnan(point.speedup) & ~_is_target(scenario, prompts)[:, None]
    usable = np.where(known_cells, point.speedup, -np.inf)
    best = np.argmax(usable, axis=-1)
    speedup = np.take_along_axis(usable, best[..., None], axis=-1)[..., 0]
    here = estimate(scenario, gamma=gammas)
    known = here.speedup[np.broadcast_to(here.feasible, gammas.shape) & ~np.isnan(here.speedup)]
    return SpeedupGrid(
        scenario,
        batches,
        prompts,
        np.where(np.isfinite(speedup), speedup, np.nan),
        gammas[best],
        np.any(feasible, axis=-1),
        here=float(np.max(known)) if len(known) else float("nan"),
    )


def gain_grid(scenario: Scenario, rule: Rule) -> SpeedupGrid:
    """The gain of the service at the best γ within the limits, and where it is clear."""
    batch, prompt = MAP_BATCHES[:, None], MAP_PROMPTS[None, :]
    best = best_gain(scenario, rule, batch=batch, prompt_tokens=prompt)
    plain = estimate(without_speculation(scenario), batch=batch, prompt_tokens=prompt)
    return SpeedupGrid(
        scenario,
        MAP_BATCHES,
        MAP_PROMPTS,
        best.gain.value,
        best.gamma,
        best.possible | plain.feasible,
        low=best.gain.low,
        title="Gain in throughput" if rule.objective == "throughput" else "Gain in speed per token",
    )


def _is_target(scenario: Scenario, prompts: Array) -> NDArray[np.bool_]:
    """For which prompts the draft is the target itself."""
    plan = scenario.plan
    same = plan.is_self and scenario.draft_types == scenario.target_types
    return same & (plan.budget_at(prompts) >= prompts)


def _estimate_grid(
    scenario: Scenario, batches: Array, prompts: Array, gammas: Array
) -> tuple[RoundEstimate, Array]:
    """The estimate over (batch, prompt, γ) and where it fits; budgets are cut to the prompt."""
    prompt = prompts[None, :, None]
    point = estimate(
        scenario,
        batch=batches[:, None, None],
        prompt_tokens=prompt,
        gamma=gammas,
        kv_budget_tokens=scenario.plan.budget_at(prompt),
    )
    return point, np.broadcast_to(point.feasible, (len(batches), len(prompts), len(gammas)))


def speedup_map(
    scenario: Scenario,
    grid: SpeedupGrid | None = None,
    *,
    measured: Sequence[MeasuredSpeedup] = (),
    clickable: bool = False,
) -> go.Figure:
    """Speedup over batch and prompt length, at the best γ of each cell.

    Colour is log2 of the speedup, centred on 1x; the line is break-even, or the edge of a clear
    gain if the grid has intervals; hatched cells do not fit on the GPUs. The star is the scenario,
    and circles are measurements. `clickable` makes the cells selectable.
    """
    grid = grid or speedup_grid(scenario)
    place = {"x": grid.prompts, "y": grid.batches}
    data, names = cell_data(grid)
    figure = heatmap(grid.speedup, data, names, hover=CELL_HOVER, **place)
    edge, line = (grid.speedup, "break-even") if grid.low is None else (grid.low, "clear gain")
    if np.any(edge < 1.0) and np.any(edge > 1.0):
        figure.add_trace(contour(np.log2(edge), 0.0, line, **place))
    whole = int(np.sum(_is_target(scenario, grid.prompts)))
    if whole:
        ends = log_edges(grid.prompts)[[0, whole]]
        figure.add_vrect(*ends, fillcolor=WHOLE, line_width=0, layer="below")
        figure.add_trace(legend_square("the draft would read the whole prompt", WHOLE))
    chosen = " at its best γ" if np.ptp(grid.gamma) else ""
    value = "" if np.isnan(grid.here) else f", {grid.here:.2f}x at the star{chosen}"
    return finish_map(
        figure,
        scenario,
        grid.batches,
        grid.prompts,
        grid.fits,
        measured=measured,
        clickable=clickable,
        title=f"{grid.title} of {short_label(scenario)}{value} (line: {line}; white: "
        f"within {TIE:.0%} of 1x; hatched: does not fit)",
        alt=f"Heat map of {escape(short_label(scenario))}: {speedup_range(grid.speedup)} "
        f"over batch {grid.batches[0]:.0f} to {grid.batches[-1]:.0f} and prompt "
        f"{format_tokens(grid.prompts[0])} to {format_tokens(grid.prompts[-1])} tokens; "
        f"{np.mean(~grid.fits):.0%} of the cells do not fit.",
    )


def winner_map(grids: Sequence[SpeedupGrid], *, clickable: bool = False) -> go.Figure:
    """The fastest draft at each batch and prompt length; plain decoding is one of the choices.

    Where the two fastest are within 2 % of each other, the cell is a tie.
    """
    first = grids[0]
    names = ["No speculation", *(short_label(grid.scenario) for grid in grids)]
    speedups = np.stack([np.where(first.fits, 1.0, np.nan), *(g.speedup for g in grids)])
    fits = np.any([g.fits for g in grids], axis=0)
    filled = np.where(np.isnan(speedups), -np.inf, speedups)
    winner = np.argmax(filled, axis=0)
    best = np.where(fits, np.take_along_axis(filled, winner[None], axis=0)[0], np.nan)
    second = np.sort(filled, axis=0)[-2]
    gammas = np.stack([np.zeros(fits.shape), *(g.gamma for g in grids)])
    gamma = np.take_along_axis(gammas, winner[None], axis=0)[0]
    tied = fits & (best <= (1.0 + TIE) * second)
    shown = [*names, f"tie: two are within {TIE:.0%}"]
    colours = [PLAIN, *(plan_colour(grid.scenario) for grid in grids), "#f5e6b3"]
    steps = [(i + k) / len(shown) for i in range(len(shown)) for k in (0, 1)]
    figure = cell_map(
        np.where(fits, np.where(tied, len(names), winner), np.nan),
        columns(best, *mesh(first), np.array(names)[winner], gamma),
        ("speedup", "batch", "prompt_tokens", "plan", "gamma"),
        hover="%{customdata[3]}: %{customdata[0]:.2f}x<br>batch %{customdata[1]:,}, "
        "prompt %{customdata[2]:,} tokens",
        zmin=-0.5,
        zmax=len(shown) - 0.5,
        colorscale=[[s, colours[i // 2]] for i, s in enumerate(steps)],
        name="winner",
        showscale=False,
        x=first.prompts,
        y=first.batches,
    )
    figure.add_traces([legend_square(*pair) for pair in zip(shown, colours, strict=True)])
    clear = winner[fits & ~tied]
    shares = [f"{n} on {np.sum(clear == i) / max(clear.size, 1):.0%}" for i, n in enumerate(names)]
    return finish_map(
        figure,
        first.scenario,
        first.batches,
        first.prompts,
        fits,
        clickable=clickable,
        title="Fastest draft, decoding alone, each at its default KV budget (hatched: none fits)",
        alt=f"Map of the fastest draft: {np.sum(tied) / max(np.sum(fits), 1):.0%} of the cells "
        f"that fit are ties; of the others: {escape('; '.join(shares))}.",
    )


def needed_map(scenario: Scenario, batches: Array, prompts: Array) -> go.Figure:
    """Lowest α that breaks even at any γ, for a draft whose α is unknown."""
    point, feasible = _estimate_grid(scenario, batches, prompts, GAMMAS)
    needed = np.where(feasible, point.break_even_alpha, np.inf)
    best = np.argmin(needed, axis=-1)
    lowest = np.take_along_axis(needed, best[..., None], axis=-1)[..., 0]
    alpha = np.where(np.isfinite(lowest), lowest, np.nan)
    figure = cell_map(
        alpha,
        numbers(alpha, batches[:, None], prompts[None, :], GAMMAS[best]),
        ("alpha", "batch", "prompt_tokens", "gamma"),
        hover="α %{customdata[0]:.2f} breaks even at γ %{customdata[3]}<br>batch "
        "%{customdata[1]:,}, prompt %{customdata[2]:,} tokens",
        zmin=0.0,
        zmax=1.0,
        colorscale="Viridis",
        name="alpha needed",
        colorbar={"title": "α", "thickness": 12},
        x=prompts,
        y=batches,
    )
    known = alpha[np.isfinite(alpha)]
    span = f"{known.min():.2f} to {known.max():.2f}" if len(known) else "above 1 everywhere"
    return finish_map(
        figure,
        scenario,
        batches,
        prompts,
        np.any(feasible, axis=-1),
        clickable=True,
        title=f"α that {short_label(scenario)} needs to break even, at the best γ "
        f"(hatched: does not fit)",
        alt=f"Heat map of the acceptance that breaks even: {span}.",
    )
