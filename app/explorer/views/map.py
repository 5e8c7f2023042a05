"""Map: the speedup or the fastest draft by batch and prompt length; a click opens Why."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import charts
from app.explorer.cached import MAP_BATCHES, bundled_rows, map_prompts, scenario_of, speedup_grid
from app.explorer.inputs.widgets import segmented
from app.explorer.show import plain, show_chart
from app.explorer.state import PLAN_KEYS, Values
from perfmodel import DraftPlan, Scenario
from perfmodel.planning import draft_choices, plan_label

KINDS = {"speedup": "Speedup", "winner": "Fastest draft"}


def show() -> None:
    """Draw the view."""
    values = st.session_state["values"]
    scenario = scenario_of(values)
    left, right = st.columns(2)
    with left:
        kind = segmented("map_kind", "Colour", KINDS)
    fixed = right.toggle("Use the sidebar's γ", key="fixed_gamma")
    if kind == "winner":
        grids = _rivals(values, scenario)
        if not grids:
            st.info("No draft of this target has a measured acceptance.")
            return
        figure = charts.winner_map(grids, clickable=True)
    elif not scenario.plan.speculates:
        st.info("There is no speedup to map. Choose a draft and a γ above 0.")
        return
    elif scenario.acceptance is None and scenario.curve is None:
        st.info(
            f"The acceptance of {plain(plan_label(scenario.plan))} has not been measured. The map "
            "shows the α that it needs; give an acceptance in the sidebar to see the speedup."
        )
        figure = charts.needed_map(scenario, MAP_BATCHES, map_prompts(values))
    else:
        grid = speedup_grid(values, fixed_gamma=fixed)
        figure = charts.speedup_map(scenario, grid, measured=_measured(scenario), clickable=True)
    figure.update_layout(height=560)
    show_chart(figure, "speedup_map", on_select=_drill_down)
    st.caption("Click a cell to open it in Why.")


def _rivals(values: Values, scenario: Scenario) -> list[charts.SpeedupGrid]:
    """The cells of every draft to compare, at its default budget, if its acceptance is known."""
    considered = st.session_state.get("drafts") or [
        f"{draft}:{policy}" for draft, policy in draft_choices(scenario)
    ]
    base = {key: value for key, value in values if key not in PLAN_KEYS}
    grids = []
    for choice in considered:
        draft, _, policy = choice.partition(":")
        if scenario.curve_of(draft, policy) is not None:
            stated = base | {"draft": draft, "draft_policy": policy}
            if _same_choice(scenario.plan, draft, policy):
                stated = dict(values)
            grids.append(speedup_grid(tuple(stated.items()), fixed_gamma=False))
    return grids


def _same_choice(plan: DraftPlan, draft: str, policy: str) -> bool:
    return (plan.draft, plan.policy) == (draft, policy) and plan.speculates


def _measured(scenario: Scenario) -> list[charts.MeasuredSpeedup]:
    """Measured speedups of the same target, GPU, TP, draft and engine."""
    plan = scenario.plan
    place = (scenario.target.name, scenario.machine.gpu.name, scenario.tp, scenario.engine.name)
    return [
        charts.MeasuredSpeedup(
            batch=row.batch,
            prompt_tokens=row.prompt_tokens,
            gamma=row.gamma,
            speedup=row.speedup,
            source=f"{row.engine}, {row.table}",
        )
        for row in bundled_rows()
        if (row.target, row.gpu, row.tp, row.engine) == place
        and (row.draft, row.draft_policy) == (plan.draft, plan.policy)
        and row.speedup == row.speedup
    ]


def _drill_down() -> None:
    """Open Why at the clicked cell, with the γ that the map chose for it."""
    event: Any = st.session_state["speedup_map"]
    points = [p for p in event["selection"]["points"] if p.get("customdata") is not None]
    if not points:
        return
    cell = points[0]["customdata"]
    # Numbers sent in binary form come back as a dict keyed by index.
    _, batch, prompt, chosen = cell.values() if isinstance(cell, dict) else cell
    st.session_state["batch"] = int(batch)
    st.session_state["prompt_tokens"] = int(prompt)
    st.session_state["prompt_mix"] = ""
    if not isinstance(chosen, str):  # a γ, not the name of the fastest draft
        st.session_state["gamma"] = int(chosen)
    st.session_state["view"] = "Why"
