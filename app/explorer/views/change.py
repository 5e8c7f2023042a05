"""Why, what would change it: one wrong input at a time, and the interval over batch and γ."""

from __future__ import annotations

import streamlit as st

from app.explorer.cached import bands, point_of
from app.explorer.figures import SPEEDUP
from app.explorer.show import plain, show_chart, show_table
from app.explorer.views.drawing import charts
from perfmodel.speculation import probability_of_gain, sensitivities
from perfmodel.units import format_chance


def show() -> None:
    """Draw this part of Why."""
    values = st.session_state["values"]
    point = point_of(values)
    scenario = point.scenario
    inputs = sensitivities(scenario) if scenario.plan.speculates else []
    if not inputs or not float(point.speedup) > 0:
        st.info("The speedup is unknown. Choose a draft and give its acceptance.")
        return
    colour = charts.plan_colour(scenario)
    chance = probability_of_gain(scenario)
    if chance is not None:
        st.markdown(f"P(speedup of decoding alone > 1): **{plain(format_chance(chance))}**")
    show_chart(charts.tornado(inputs, float(point.speedup), colour=colour), "tornado")
    plan, work = scenario.plan, scenario.workload
    axes = {
        "batch": ("batch (sequences)", float(work.batch)),
        "gamma": ("γ (drafts per round)", float(plan.gamma)),
    }
    columns = st.columns(2)
    for column, (key, (title, here)) in zip(columns, axes.items(), strict=True):
        points, intervals = bands(values)[key]
        if not points:
            continue
        with column:
            show_chart(
                charts.speedup_band(title, points, intervals, here, colour=colour), f"band_{key}"
            )
    st.markdown(f"### {SPEEDUP}, if an input is wrong")
    show_table(
        [
            {
                "input": s.name,
                "change": s.change,
                "low end": _times(s.low),
                "high end": _times(s.high),
            }
            for s in inputs
        ]
    )


def _times(speedup: float) -> str:
    return f"{speedup:.3f}x"
