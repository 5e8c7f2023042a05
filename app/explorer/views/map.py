"""Map: the speedup or the fastest draft by batch and prompt length; a click shows a cell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st
from numpy.typing import NDArray

from app.charts.cells import add_marker
from app.explorer.cached import (
    at_gamma,
    bundled_rows,
    most_ranks,
    prediction,
    scenario_of,
)
from app.explorer.figures import DECODE_TPOT, GAIN, MEMORY, SERVICE, SPEEDUP, TPOT, of_plan, ratio
from app.explorer.inputs.widgets import segmented
from app.explorer.show import plain, show_chart
from app.explorer.state import PLAN_KEYS, Values
from app.explorer.tray import adopt
from app.explorer.views.drawing import charts
from perfmodel import Scenario, catalog, speculation
from perfmodel.planning import draft_choices, plan_label
from perfmodel.specs import Prefill, Workload, named_version, profile_version
from perfmodel.speculation import GAMMAS

MAP_SIZE = 64
MAP_BATCHES = charts.log_steps(1, 1024, MAP_SIZE)
KINDS = {"speedup": "Speedup", "winner": "Fastest draft"}


def show() -> None:
    """Draw the view."""
    values = st.session_state["values"]
    scenario = scenario_of(values)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind = segmented("map_kind", "Colour", KINDS)
        fixed = kind == "speedup" and st.toggle("Hold the plan's γ", key="fixed_gamma")
    rivals = _rivals(values, scenario) if kind == "winner" else {}
    figure = _figure(kind, values, rivals, fixed=fixed)
    if figure is None:
        return
    if (cell := st.session_state.get("map_cell")) is not None:
        add_marker(figure, cell[1], cell[0], "the clicked cell", "x")
    chart, panel = st.columns([3, 1])
    with chart:
        st.caption(plain(_with_prompts(values)))
        figure.update_layout(height=560 if kind == "speedup" else 640)  # with a longer legend
        show_chart(figure, "speedup_map", on_select=_choose_cell)
    with panel:
        _cell_inputs(np.asarray(figure.data[0].customdata, dtype=object), scenario.workload)
        _panel(values, rivals)


def map_prompts(values: Values) -> NDArray[np.float64]:
    """Prompt lengths of the map: 1,000 tokens to the target's context or the scenario's prompt."""
    scenario = scenario_of(values)
    longest = max(scenario.target.max_context_tokens, scenario.workload.prompt_tokens, 4096)
    return charts.log_steps(1000, longest, MAP_SIZE)


@st.cache_data(max_entries=64, show_spinner=False)
def speedup_grid(values: Values, *, fixed_gamma: bool) -> charts.SpeedupGrid:
    """The 64 x 64 cells of the map, each at its best γ or all at the plan's γ."""
    scenario = scenario_of(values)
    gammas = np.array([scenario.plan.gamma], float) if fixed_gamma else GAMMAS
    return charts.speedup_grid(scenario, MAP_BATCHES, map_prompts(values), gammas)


def _figure(
    kind: str, values: Values, rivals: Mapping[str, Values], *, fixed: bool
) -> go.Figure | None:
    """The map, or None after saying why there is none."""
    scenario = scenario_of(values)
    if kind == "winner":
        if not rivals:
            st.info("No draft that the engine runs has a known acceptance for this target.")
            return None
        grids = [speedup_grid(stated, fixed_gamma=False) for stated in rivals.values()]
        return charts.winner_map(grids, clickable=True)
    if not scenario.plan.speculates:
        st.info("There is no speedup to map. Choose a draft and a γ above 0.")
        return None
    if scenario.acceptance is None and scenario.curve is None:
        st.info(
            f"The acceptance of {plain(plan_label(scenario))} has not been measured. The map "
            "shows the α that it needs; give an acceptance in the sidebar to see the speedup."
        )
        return charts.needed_map(scenario, MAP_BATCHES, map_prompts(values))
    grid = speedup_grid(values, fixed_gamma=fixed)
    return charts.speedup_map(scenario, grid, measured=_measured(scenario), clickable=True)


def _with_prompts(values: Values) -> str:
    """What the map leaves out: the gain of the page's plan at the star, with its prompts."""
    scenario, alone = scenario_of(values), "The map is of decoding alone"
    gain = of_plan(values, st.session_state["objective"])[GAIN]
    if scenario.workload.prefill is Prefill.DISAGGREGATED:
        share = "where prompts are computed on other GPUs, which are not counted"
    else:
        taken = float(speculation.service(scenario).prefill_share)
        share = f"where prompts take {taken:.0%} of the GPU time"
    if not scenario.plan.speculates or gain == ratio(math.nan):
        return f"{alone}."
    return f"{alone}: with prompts ({SERVICE}), the page's plan gains {gain} at the star, {share}."


def _panel(values: Values, rivals: Mapping[str, Values]) -> None:
    """The figures of the clicked cell, and buttons to take it over."""
    cell = st.session_state.get("map_cell")
    if cell is None:
        st.caption("Click or choose a cell to see its figures. The star is this page's workload.")
        return
    stated = _cell_values(values, rivals, cell)
    if stated is None:
        return
    scenario, result = scenario_of(stated), prediction(stated)
    work, of = scenario.workload, of_plan(stated, st.session_state["objective"])
    st.markdown(f"### Batch {work.batch:,}, {work.prompt_tokens:,} prompt tokens")
    st.markdown(plain(plan_label(scenario)))
    if not result["feasible"]:
        st.markdown(plain(f"Does not fit: it needs {of[MEMORY]} of a GPU's memory."))
        return
    low, high = result["speedup_low"], result["speedup_high"]
    span = "" if low is None else f" ({low:.2f}-{high:.2f})"
    figures = {
        SPEEDUP: of[SPEEDUP] + span,
        DECODE_TPOT: of[DECODE_TPOT],
        GAIN: of[GAIN],
        TPOT: of[TPOT],
        MEMORY: of[MEMORY],
    }
    st.markdown("\n".join(f"- {plain(name)}: **{plain(text)}**" for name, text in figures.items()))
    for label, view in (("Use on this page", ""), ("Use, and see why", "Why")):
        args = (dict(stated), "batch", "prompt_tokens")
        st.button(label, on_click=adopt, args=args, kwargs={"view": view}, width="stretch")


def _cell_values(
    values: Values, rivals: Mapping[str, Values], cell: tuple[int, int, int, str]
) -> Values | None:
    """The scenario of a cell: its batch, prompt and γ, and the draft that is fastest there."""
    batch, prompt, gamma, name = cell
    base = dict(rivals.get(name, values))
    if name == "No speculation":
        base = {k: v for k, v in values if k not in PLAN_KEYS} | {"draft": "none"}
    elif name and name not in rivals:
        return None  # a cell of an earlier map
    if gamma:
        base = dict(at_gamma(tuple(base.items()), gamma))
    base |= {"batch": batch, "prompt_tokens": prompt}
    if isinstance(base.get("kv_budget"), int):
        base["kv_budget"] = min(base["kv_budget"], prompt)
    return tuple(base.items())


def _rivals(values: Values, scenario: Scenario) -> dict[str, Values]:
    """By name, the drafts to compare whose acceptance is known and that the engine runs."""
    asked = st.session_state["runs_on"]
    version = named_version(asked) if asked else profile_version(scenario.engine.name)
    considered = st.session_state["drafts"] or [
        f"{draft}:{policy}" for draft, policy in draft_choices(scenario)
    ]
    base = {key: value for key, value in values if key not in PLAN_KEYS}
    rivals = {}
    for choice in considered:
        draft, _, policy = choice.partition(":")
        stated = base | {"draft": draft, "draft_policy": policy}
        if draft in catalog.model_names():
            stated["draft_tp"] = most_ranks(catalog.model(draft), scenario.tp)
        plan = scenario.plan
        if (plan.draft, plan.policy) == (draft, policy) and plan.speculates:
            stated = dict(values)
        result = tuple(stated.items())
        rival = scenario_of(result)
        is_known = rival.acceptance is not None or rival.curve is not None
        if is_known and rival.obstacle_on(version) is None:
            rivals[plan_label(rival).rpartition(", γ=")[0]] = result
    return rivals


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


def _cell_inputs(cells: NDArray[Any], workload: Workload) -> None:
    """Choose a cell by keyboard; `cells` are the data of all of them, (batches, prompts, ...)."""
    options = {"cell_batch": cells[:, 0, 1], "cell_prompt": cells[0, :, 2]}
    labels = {"cell_batch": "Batch of the cell", "cell_prompt": "Prompt of the cell"}
    chosen = st.session_state.get("map_cell") or (None, None)
    with st.container(horizontal=True):
        for (key, label), value in zip(labels.items(), chosen, strict=False):
            known = [int(option) for option in options[key]]
            st.session_state[key] = value if value in known else None
            st.selectbox(
                label,
                known,
                key=key,
                placeholder="none",
                format_func="{:,}".format,
                on_change=_choose_by_name,
                args=(cells, workload),
            )


def _choose_by_name(cells: NDArray[Any], workload: Workload) -> None:
    """Keep the cell of the chosen batch and prompt, or those of the workload if none is chosen."""
    state = st.session_state
    if state["cell_batch"] is None and state["cell_prompt"] is None:
        state["map_cell"] = None
        return
    row = _nearest(cells[:, 0, 1], state["cell_batch"] or workload.batch)
    column = _nearest(cells[0, :, 2], state["cell_prompt"] or workload.prompt_tokens)
    state["map_cell"] = _cell(cells[row, column])


def _nearest(values: NDArray[Any], wanted: float) -> int:
    return int(np.argmin(np.abs(np.log(np.asarray(values, float) / wanted))))


def _choose_cell() -> None:
    """Keep the clicked cell: batch, prompt tokens, γ, and in the map of drafts the fastest."""
    event: Any = st.session_state["speedup_map"]
    points = [p for p in event["selection"]["points"] if p.get("customdata") is not None]
    if not points:
        return
    cell = points[0]["customdata"]
    # Numbers sent in binary form come back as a dict keyed by index.
    st.session_state["map_cell"] = _cell(cell.values() if isinstance(cell, dict) else cell)


def _cell(data: Iterable[Any]) -> tuple[int, int, int, str]:
    """Batch, prompt tokens, γ, and in the map of drafts the fastest, of a cell's data."""
    _, batch, prompt, *rest = data
    name, gamma = (rest[0], rest[1]) if isinstance(rest[0], str) else ("", rest[0])
    return int(batch), int(prompt), int(gamma), name
