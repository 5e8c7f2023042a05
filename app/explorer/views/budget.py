"""γ and budget: the heat map with its plateau, and the acceptance behind it."""

from __future__ import annotations

import streamlit as st

from app import charts
from app.explorer.cached import point_of, scenario_of
from app.explorer.show import plain, show_chart, show_table
from perfmodel import estimate, format_tokens


def show() -> None:
    """Draw the view."""
    scenario = scenario_of(st.session_state["values"])
    plan = scenario.plan
    if plan.draft == "none":
        st.info("There is no draft: choose one in the sidebar.")
        return
    curve = scenario.curve
    known = scenario.acceptance is not None or curve is not None
    if plan.policy != "full" and known:
        show_chart(charts.budget_map(scenario), "gamma_budget")
    if not known:
        st.info("Nobody has measured this draft's acceptance: below is what it would need.")
    show_chart(charts.acceptance_needed(scenario), "acceptance_needed")
    point = point_of(st.session_state["values"])
    if plan.speculates:
        needed = float(point.break_even_alpha)
        text = "no α reaches it" if not needed <= 1.0 else f"α of {needed:.3f}"
        st.markdown(f"To break even at γ={plan.gamma}: **{text}**.")
    if scenario.acceptance is not None:
        st.markdown("**Stated acceptance by position**")
        rates = scenario.acceptance.per_position
        show_table([{"draft": i, "α": rate} for i, rate in enumerate(rates, start=1)])
    elif curve is not None:
        st.markdown("**Acceptance by KV budget**, from the curve")
        prefix = float(scenario.workload.prefix_tokens)
        budgets = [b for b in charts.BUDGETS if b <= prefix] or [prefix]
        rows = []
        for budget in budgets:
            at = {"kv_budget_tokens": budget, "context_tokens": prefix}
            low, high = curve.interval(**at)
            row = {"KV budget (tokens)": int(budget), "α": float(curve.alpha(**at))}
            rows.append(row | {"low": float(low), "high": float(high)})
        show_table(rows)
        st.caption(
            f"{curve.origin}; {len(curve.points)} published points over "
            f"{format_tokens(curve.context_range[0])} to {format_tokens(curve.context_range[1])} "
            f"tokens. {plain(curve.source)}"
        )
        if curve.points:
            st.markdown("**Published points**")
            show_table(
                [
                    {
                        "context (tokens)": p.context_tokens,
                        "KV budget (tokens)": p.kv_budget_tokens,
                        "α": p.alpha,
                        "source": p.citation,
                    }
                    for p in curve.points
                ]
            )
    best = estimate(scenario, gamma=charts.GAMMAS)
    if known:
        where = int(best.speedup.argmax())
        st.markdown(
            f"At this budget γ={charts.GAMMAS[where]:.0f} is best: {best.speedup[where]:.2f}x."
        )
