"""Frontier: speed of one user against throughput or cost, for all batches; traffic over time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import streamlit as st

from app.explorer.cached import most_ranks, scenario_of
from app.explorer.figures import GAIN, RATE, SERVICE, TPOT, TTFT, of_plan
from app.explorer.inputs.sidebar import TP_DEGREES
from app.explorer.inputs.widgets import segmented
from app.explorer.show import plain, show_chart, show_table
from app.explorer.state import FRONTIER_PARTS, Values
from app.explorer.views.drawing import charts
from perfmodel import Scenario, catalog, without_speculation
from perfmodel.planning import plan_label
from perfmodel.specs import SLO, parse_slo


def show() -> None:
    """Draw the view."""
    part = segmented("frontier_part", "Part", FRONTIER_PARTS, label_visibility="collapsed")
    if part == "traffic":
        from app.explorer.views import traffic

        traffic.show()
    else:
        _batches()


def _batches() -> None:
    """Every batch that fits at every TP, and on other machines."""
    state, values = st.session_state, st.session_state["values"]
    here = scenario_of(values).machine.name
    machines = [name for name in catalog.machine_names() if name != here]
    state["frontier_machines"] = [m for m in state["frontier_machines"] if m in machines]
    others = st.multiselect(
        "Other machines beside it, each at its best TP",
        machines,
        key="frontier_machines",
        placeholder="none",
        max_selections=3,
    )
    slo = parse_slo(state["slo"])
    curves = [*own_curves(values, slo), *(c for m in others for c in machine_curves(values, m))]
    if not curves:
        st.warning("Not even a batch of 1 fits on these GPUs.", icon=":material/block:")
        return
    scenario = scenario_of(values)
    point = point_curve(scenario, slo)
    if scenario.plan.speculates and not any(curve.speculates for curve in curves):
        st.info("The draft's acceptance is unknown, so only plain decoding is shown.")
    figure = charts.frontier(curves, slo, here=point, price_per_gpu_hour=state["price"])
    show_chart(figure, "frontier")
    if not state["price"]:
        st.caption("With a price per GPU hour, in the sidebar, the axis is the cost per token.")
    elif others:
        st.caption(f"Every GPU costs {state['price']:g} per hour here.")
    if point is not None:
        of_page = of_plan(values, state["objective"])
        named = (f"{name}: **{plain(of_page[name])}**" for name in (RATE, TPOT, TTFT, GAIN))
        batch = f"{scenario.workload.batch:,}"
        st.markdown(f"The plan of this page, at batch {batch}: {' · '.join(named)}")
    st.markdown(f"### The highest throughput of each plan ({SERVICE}), and its largest batch")
    show_table([_row(curve, slo) for curve in curves])


def own_curves(values: Values, slo: SLO) -> list[charts.ServingCurve]:
    """Plain decoding and the plan at each TP of the page's machine."""
    scenarios = _scenarios(values, scenario_of(values).draft_tp)
    curves = [charts.serving_curve(one, slo) for one in scenarios]
    return [curve for curve in curves if curve is not None]


def machine_curves(values: Values, machine: str) -> list[charts.ServingCurve]:
    """Plain decoding and the plan on another machine, each at the best TP."""
    stated = {k: v for k, v in values if k != "gpu" and not k.startswith("ring_")}
    elsewhere = tuple((stated | {"machine": machine, "tp": 1, "draft_tp": 1}).items())
    scenarios = _scenarios(elsewhere, scenario_of(values).draft_tp)
    slo, result = parse_slo(str(stated.get("slo", ""))), []
    for speculates in (False, True):
        of_kind = [one for one in scenarios if one.plan.speculates is speculates]
        curves = [curve for one in of_kind if (curve := charts.serving_curve(one, slo))]
        if curves:
            label = plan_label(of_kind[0]).rpartition(", γ=")[0] or "No speculation"
            result.append(charts.envelope(curves, f"{label}, {machine}", machine))
    return result


def _scenarios(values: Values, draft_tp: int) -> list[Scenario]:
    """The scenario without and with its draft at every TP that splits the target.

    A draft model has `draft_tp` ranks, or as many as a smaller TP allows.
    """
    scenario = scenario_of(values)
    most = scenario.machine.gpus_per_node
    experts, scenarios = scenario.target.experts, []
    for tp in (n for n in TP_DEGREES if n <= most and scenario.target.splits_over(n)):
        fixed = scenario.dp > 1 and tp != scenario.tp
        if fixed or (experts is not None and not experts.splits_over(tp, scenario.ep)):
            continue
        plan = scenario.plan
        if plan.draft != "none" and not plan.is_self and plan.method is None:
            assert scenario.draft is not None
            plan = replace(plan, draft_tp=most_ranks(scenario.draft, min(draft_tp, tp)))
        elif plan.is_self:
            plan = replace(plan, draft_tp=None)
        scenarios.append(replace(without_speculation(scenario), tp=tp))
        if plan.speculates:
            scenarios.append(replace(scenario, tp=tp, plan=plan))
    return scenarios


def point_curve(scenario: Scenario, slo: SLO) -> charts.ServingCurve | None:
    """The page's plan at its own batch and γ; None if it does not fit."""
    batch, gamma = float(scenario.workload.batch), float(scenario.plan.gamma)
    return charts.serving_curve(scenario, slo, batches=np.array([batch]), gammas=np.array([gamma]))


def _row(curve: charts.ServingCurve, slo: SLO) -> dict[str, object]:
    """A plan's point of highest throughput within the limits, and its largest batches."""
    row: dict[str, object] = {"plan": curve.label}
    if np.any(curve.meets):
        best = int(np.argmax(np.where(curve.meets, curve.per_gpu, -np.inf)))
        row |= {
            "tokens/s per GPU": round(float(curve.per_gpu[best])),
            "at batch": int(curve.batch[best]),
            "ms per token": round(1e3 * float(curve.tpot_s[best]), 1),
            "first token (s)": round(float(curve.ttft_s[best]), 2),
        }
    if slo == SLO():
        return row | {"largest batch": curve.largest_batch}
    return row | {"largest batch (in SLO)": f"{curve.largest_batch:,} ({curve.largest_within:,})"}
