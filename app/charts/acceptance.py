"""Charts of measured acceptance: α over the KV budget, and α by position in a round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from app.charts.base import SERIES, columns, finish
from calibration.acceptance import Cell
from perfmodel import AcceptanceCurve

DASHES = {"streamingllm": "solid", "snapkv": "dot"}


def measured_budgets(grid: Sequence[Cell], curves: Sequence[AcceptanceCurve]) -> go.Figure:
    """α over KV budget with 90 % intervals, per text, context and policy; fits are dashed."""
    figure = go.Figure()
    for number, ((text, context, policy), row) in enumerate(_lines(grid).items()):
        budgets = np.array([cell.key.view.kv_budget or 0 for cell in row], dtype=float)
        alphas = np.array([cell.alpha for cell in row])
        ends = np.array([cell.interval() for cell in row])
        figure.add_scatter(
            x=budgets,
            y=alphas,
            error_y={
                "type": "data",
                "array": ends[:, 1] - alphas,
                "arrayminus": alphas - ends[:, 0],
            },
            mode="lines+markers",
            name=f"{text}, {context:,}, {policy}",
            line={"color": SERIES[number % len(SERIES)], "dash": DASHES.get(policy, "dash")},
            meta=["budget_tokens", "alpha", "low", "high"],
            customdata=columns(budgets, alphas, ends[:, 0], ends[:, 1]),
        )
    for curve in curves:
        budgets = np.geomspace(*curve.budget_range, 60)
        figure.add_scatter(
            x=budgets,
            y=curve.alpha(kv_budget_tokens=budgets, context_tokens=curve.context_range[1]),
            mode="lines",
            name=f"fit, {curve.context_range[1]:,.0f}, {curve.draft_policy}",
            line={"color": "#777777", "dash": "dash", "width": 1},
        )
    figure.update_xaxes(type="log")
    finish(
        figure,
        title="Measured acceptance by KV budget",
        x="KV budget (tokens)",
        y="α = mean Σ min(p, q)",
        alt="Acceptance rises with the KV budget and approaches 1 as the budget nears the context.",
    )
    return figure.update_layout(height=640)


def measured_positions(grid: Sequence[Cell]) -> go.Figure:
    """α by position in a round at the longest context."""
    figure = go.Figure()
    longest = max((cell.key.context_tokens for cell in grid), default=0)
    shown = [cell for cell in grid if cell.key.context_tokens == longest]
    for number, cell in enumerate(shown):
        places = np.arange(1, cell.gamma + 1)
        figure.add_scatter(
            x=places,
            y=cell.by_position,
            mode="lines",
            name=f"{cell.key.text}, {cell.key.view.label}",
            line={"color": SERIES[number % len(SERIES)]},
            meta=["position", "alpha", "alpha_given_accepted"],
            customdata=columns(places, cell.by_position, cell.conditional),
        )
    finish(
        figure,
        title=f"Measured acceptance by position, context {longest:,}",
        x="position in the round (drafts)",
        y="α = mean Σ min(p, q)",
        alt="Acceptance by position in a round, one line per text and draft view.",
    )
    return figure.update_layout(height=640)


def _lines(grid: Sequence[Cell]) -> dict[tuple[str, int, str], list[Cell]]:
    rows: dict[tuple[str, int, str], list[Cell]] = {}
    for cell in grid:
        key = (cell.key.text, cell.key.context_tokens, cell.key.view.policy)
        rows.setdefault(key, []).append(cell)
    return rows
