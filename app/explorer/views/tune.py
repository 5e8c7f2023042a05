"""Why, γ and KV budget: the speedup over both, and the acceptance that it is based on."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from app.explorer.cached import at_gamma, point_of, scenario_of
from app.explorer.show import plain, show_chart, show_table
from app.explorer.state import Values
from app.explorer.tray import adopt
from app.explorer.views.drawing import charts
from perfmodel import Acceptance, AcceptanceCurve, estimate
from perfmodel.planning import BUDGETS
from perfmodel.speculation import GAMMAS
from perfmodel.units import format_tokens


def show() -> None:
    """Draw this part of Why."""
    values = st.session_state["values"]
    scenario = scenario_of(values)
    plan, curve = scenario.plan, scenario.curve
    if plan.draft == "none":
        st.info("There is no draft. Choose one in the sidebar.")
        return
    known = scenario.acceptance is not None or curve is not None
    has_budget = plan.policy != "full"
    if known:
        _best_gamma(values)
    if known and has_budget:
        figure = charts.budget_map(scenario, clickable=True)
        show_chart(figure, "gamma_budget", on_select=_take_cell)
        st.caption(
            "A click on a cell takes its γ and KV budget on the whole page; by keyboard, set them "
            "in the sidebar."
        )
    if not known:
        st.info(
            "This draft's acceptance has not been measured. The chart shows the α that it needs."
        )
    show_chart(charts.acceptance_needed(scenario), "acceptance_needed")
    if plan.speculates:
        needed = float(point_of(values).break_even_alpha)
        text = "no α suffices" if not needed <= 1.0 else f"α = {needed:.3f}"
        st.markdown(f"Needed to break even at γ={plan.gamma}: **{text}**.")
    if scenario.acceptance is not None:
        _stated(scenario.acceptance)
    elif curve is not None:
        _published(curve, float(scenario.workload.prompt_tokens))


def _best_gamma(values: Values) -> None:
    """Say which γ is best at the plan's KV budget, with a button to take it."""
    scenario = scenario_of(values)
    point = estimate(scenario, gamma=GAMMAS)
    speedup = np.where(point.feasible, point.speedup, np.nan)
    if np.all(np.isnan(speedup)):
        return
    best = int(np.nanargmax(speedup))
    gamma = int(GAMMAS[best])
    with st.container(horizontal=True, vertical_alignment="center"):
        at_budget = "" if scenario.plan.policy == "full" else " at this KV budget"
        st.markdown(f"Best for decoding{at_budget}: **γ={gamma}, {speedup[best]:.2f}x**.")
        if gamma != scenario.plan.gamma:
            stated = dict(at_gamma(values, gamma))
            st.button(f"Use γ={gamma}", on_click=adopt, args=(stated,), key="use_gamma")


def _take_cell() -> None:
    """Take the γ and the KV budget of the clicked cell."""
    event: Any = st.session_state["gamma_budget"]
    points = [p for p in event["selection"]["points"] if p.get("customdata") is not None]
    if points:
        cell = points[0]["customdata"]
        _, gamma, budget, _ = cell.values() if isinstance(cell, dict) else cell
        adopt(dict(at_gamma(st.session_state["values"], int(gamma))) | {"kv_budget": int(budget)})


def _stated(acceptance: Acceptance) -> None:
    st.markdown(f"### Acceptance by position ({acceptance.origin})")
    rates = enumerate(acceptance.per_position, start=1)
    show_table([{"draft": position, "α": rate} for position, rate in rates])


def _published(curve: AcceptanceCurve, prompt_tokens: float) -> None:
    """Show α over KV budget from a published curve, and the points that it was fitted to."""
    st.markdown("### Acceptance by KV budget, from the fitted curve")
    rows = []
    budgets = [float(budget) for budget in BUDGETS if budget <= prompt_tokens]
    for budget in budgets or [prompt_tokens]:
        at = {"kv_budget_tokens": budget, "context_tokens": prompt_tokens}
        low, high = curve.interval(**at)
        row = {"KV budget (tokens)": int(budget), "α": float(curve.alpha(**at))}
        rows.append(row | {"low": float(low), "high": float(high)})
    show_table(rows)
    st.caption(
        f"{curve.origin}; {len(curve.points)} published points from "
        f"{format_tokens(curve.context_range[0])} to {format_tokens(curve.context_range[1])} "
        f"tokens. {plain(curve.source)}"
    )
    if curve.points:
        st.markdown("### Published points")
        show_table(
            [
                {
                    "context (tokens)": point.context_tokens,
                    "KV budget (tokens)": point.kv_budget_tokens,
                    "α": point.alpha,
                    "source": point.citation,
                }
                for point in curve.points
            ]
        )
