"""Charts for choosing γ and the KV budget of one scenario."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from app.charts.base import LINE, Array, curve, finish, numbers, plan_colour
from app.charts.cells import (
    TIE,
    add_marker,
    add_wall,
    cell_map,
    contour,
    heatmap,
    label_cells,
    make_clickable,
)
from perfmodel import Scenario, estimate
from perfmodel.planning import BUDGETS
from perfmodel.speculation import GAMMAS, GammaSchedule
from perfmodel.units import format_tokens


def budget_map(scenario: Scenario, *, clickable: bool = False) -> go.Figure:
    """Speedup over γ and KV budget at the scenario's batch and prompt length.

    The star is the optimum, and the line encloses the choices within 2 % of it; the cross is the
    scenario's own choice. `clickable` makes the cells selectable.
    """
    budgets = np.array([b for b in BUDGETS if b <= scenario.workload.prompt_tokens], float)
    point = estimate(scenario, gamma=GAMMAS[:, None], kv_budget_tokens=budgets[None, :])
    shape = (len(GAMMAS), len(budgets))
    speedup = np.broadcast_to(np.where(point.feasible, point.speedup, np.nan), shape)
    data = numbers(speedup, GAMMAS[:, None], budgets[None, :], point.alpha)
    figure = heatmap(
        speedup,
        data,
        ("speedup", "gamma", "kv_budget", "alpha"),
        hover="%{customdata[0]:.2f}x<br>γ %{customdata[1]}, budget %{customdata[2]:,}"
        "<br>α %{customdata[3]:.3f}",
    )
    label_cells(figure, x=[format_tokens(b) for b in budgets], y=[f"{g:.0f}" for g in GAMMAS])
    if clickable:
        make_clickable(figure)
    own, gamma = (
        float(scenario.plan.budget_at(scenario.workload.prompt_tokens)),
        scenario.plan.gamma,
    )
    if len(budgets) and gamma >= 1:
        place = np.interp(np.log(own), np.log(budgets), np.arange(len(budgets)))
        add_marker(figure, float(place), gamma - 1.0, f"this plan: γ={gamma}, {own:,.0f}", "x")
    return finish(
        figure,
        title="Speedup of decoding alone by γ and KV budget",
        x="KV budget (tokens)",
        y="γ (drafts per round)",
        alt=_mark_optimum(figure, speedup, budgets),
    )


def _mark_optimum(figure: go.Figure, speedup: Array, budgets: Array) -> str:
    """Draw the optimum and the plateau around it; returns the alternative text."""
    if not np.any(np.isfinite(speedup)):
        return "Heat map over γ and KV budget: no point has a known speedup."
    row, column = np.unravel_index(np.nanargmax(speedup), speedup.shape)
    best = speedup[row, column]
    plateau = int(np.sum(speedup >= (1.0 - TIE) * best))
    if 1 < plateau < speedup.size:
        figure.add_trace(contour(speedup, (1.0 - TIE) * best, "within 2 % of the best"))
    add_marker(figure, float(column), float(row), f"best: {best:.2f}x")
    return (
        f"Heat map over γ and KV budget: best {best:.2f}x at γ {GAMMAS[row]:.0f} and budget "
        f"{format_tokens(budgets[column])} tokens; {plateau} of {speedup.size} points are "
        f"within 2 % of it."
    )


def schedule_map(schedule: GammaSchedule) -> go.Figure:
    """Best γ over batch and prompt length; 0 is plain decoding."""
    gamma = np.array(schedule.gamma, float)
    batches, prompts = (np.array(v, float) for v in (schedule.batches, schedule.contexts))
    fits = gamma >= 0
    figure = cell_map(
        np.where(fits, gamma, np.nan),
        numbers(gamma, batches[:, None], prompts[None, :]),
        ("gamma", "batch", "prompt_tokens"),
        hover="γ %{customdata[0]}<br>batch %{customdata[1]:,}, prompt %{customdata[2]:,} tokens",
        text=np.where(fits, gamma.astype(int).astype(str), ""),
        texttemplate="%{text}",
        colorscale="Blues",
        name="gamma",
        showscale=False,
    )
    label_cells(figure, x=[format_tokens(p) for p in prompts], y=[f"{b:.0f}" for b in batches])
    add_wall(
        figure,
        fits,
        **{axis: np.arange(n + 1) - 0.5 for axis, n in zip("yx", fits.shape, strict=True)},
    )
    return finish(
        figure,
        title="Best γ by batch and prompt length (0: no speculation; hatched: does not fit)",
        x="prompt (tokens)",
        y="batch (sequences)",
        alt=f"Table of the best γ: 0 (plain decoding) in {np.mean(gamma == 0):.0%} of the cells, "
        f"at most {max(gamma.max(), 0):.0f}; {np.mean(~fits):.0%} do not fit.",
    )


def acceptance_needed(scenario: Scenario) -> go.Figure:
    """α needed to break even over γ, and the draft's α."""
    point = estimate(scenario, gamma=GAMMAS)
    needed = np.where(np.isfinite(point.break_even_alpha), point.break_even_alpha, np.nan)
    alpha = np.broadcast_to(point.alpha, GAMMAS.shape)
    figure = go.Figure(
        curve(
            {"gamma": GAMMAS, "alpha": needed},
            name="needed to break even",
            colour=LINE,
            mode="lines+markers",
            hover="γ %{x}: α %{y:.3f} breaks even",
        )
    )
    text = "unknown"
    if np.all(np.isfinite(alpha)):
        text = f"{alpha[0]:.3f}"
        draft, colour = {"gamma": GAMMAS, "alpha": alpha}, plan_colour(scenario)
        figure.add_trace(curve(draft, name="the draft's α", colour=colour, hover="α %{y:.3f}"))
    figure.update_yaxes(range=[0, 1.02])
    known = needed[np.isfinite(needed)]
    span = f"{known.min():.2f} to {known.max():.2f}" if len(known) else "more than any α gives"
    return finish(
        figure,
        title="Acceptance needed to break even",
        x="γ (drafts per round)",
        y="acceptance α",
        alt=f"Over γ 1 to 16 break-even needs α of {span}; the draft's α is {text}.",
    )
