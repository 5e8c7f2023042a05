"""γ × budget: the speedup over both, and the acceptance that it is based on."""

from __future__ import annotations

import streamlit as st

from app import charts
from app.explorer.cached import point_of, scenario_of
from app.explorer.show import plain, show_chart, show_table
from perfmodel import Acceptance, AcceptanceCurve, estimate
from perfmodel.planning import BUDGETS
from perfmodel.speculation import GAMMAS
from perfmodel.units import format_tokens


def show() -> None:
    """Draw the view."""
    scenario = scenario_of(st.session_state["values"])
    plan, curve = scenario.plan, scenario.curve
    if plan.draft == "none":
        st.info("There is no draft. Choose one in the sidebar.")
        return
    known = scenario.acceptance is not None or curve is not None
    if plan.policy != "full" and known:
        show_chart(charts.budget_map(scenario), "gamma_budget")
    if not known:
        st.info(
            "This draft's acceptance has not been measured. The chart shows the α that it needs."
        )
    show_chart(charts.acceptance_needed(scenario), "acceptance_needed")
    if plan.speculates:
        needed = float(point_of(st.session_state["values"]).break_even_alpha)
        text = "no α suffices" if not needed <= 1.0 else f"α = {needed:.3f}"
        st.markdown(f"Needed to break even at γ={plan.gamma}: **{text}**.")
    if scenario.acceptance is not None:
        _stated(scenario.acceptance)
    elif curve is not None:
        _published(curve, float(scenario.workload.prompt_tokens))
    if known:
        best = estimate(scenario, gamma=GAMMAS)
        where = int(best.speedup.argmax())
        st.markdown(f"Best at this budget: γ={GAMMAS[where]:.0f}, {best.speedup[where]:.2f}x.")


def _stated(acceptance: Acceptance) -> None:
    st.markdown("**Given acceptance by position**")
    rates = enumerate(acceptance.per_position, start=1)
    show_table([{"draft": position, "α": rate} for position, rate in rates])


def _published(curve: AcceptanceCurve, prompt_tokens: float) -> None:
    """Show α over KV budget from a published curve, and the points that it was fitted to."""
    st.markdown("**Acceptance by KV budget**, from the fitted curve")
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
        st.markdown("**Published points**")
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
