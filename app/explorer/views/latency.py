"""Latency: speed of one user against throughput, for speculative and plain decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import streamlit as st

from app import charts
from app.explorer.cached import scenario_of
from app.explorer.inputs.sidebar import TP_DEGREES
from app.explorer.show import show_chart, show_table
from perfmodel import Scenario, without_speculation
from perfmodel.specs import parse_slo
from perfmodel.units import format_seconds

BATCHES = np.array([2.0**k for k in range(11)])


def show() -> None:
    """Draw the view."""
    state = st.session_state
    scenario = scenario_of(state["values"])
    most = scenario.machine.gpus_per_node
    degrees = [n for n in TP_DEGREES if n <= most and scenario.target.splits_over(n)]
    state["curve_tps"] = [tp for tp in state["curve_tps"] if tp in degrees]
    wanted = st.multiselect(
        "Tensor parallelism (GPUs)",
        degrees,
        key="curve_tps",
        placeholder=f"{scenario.tp}, as in the sidebar",
    )
    known = _curves(scenario, wanted or [scenario.tp])
    if not known:
        st.warning("Not even a batch of 1 fits on these GPUs.", icon=":material/block:")
        return
    slo = parse_slo(state.get("slo", ""))
    figure = charts.latency_throughput(known, slo, price_per_gpu_hour=state.get("price", 0.0))
    show_chart(figure, "latency_throughput")
    if slo.ttft_s is not None:
        for curve in known:
            verdict = "meets" if curve.ttft_s <= slo.ttft_s else "misses"
            st.caption(
                f"{curve.label}, TP {curve.tp}: TTFT {format_seconds(curve.ttft_s)} {verdict} "
                f"{format_seconds(slo.ttft_s)}"
            )
    show_table(
        [
            {
                "curve": f"{curve.label}, TP {curve.tp}",
                "largest batch that fits": int(curve.batch[-1]),
                "tokens/s per GPU at it": f"{curve.per_gpu[-1]:,.0f}",
                "time/token at it": format_seconds(float(curve.tpot_s[-1])),
            }
            for curve in known
        ]
    )


def _curves(scenario: Scenario, degrees: Sequence[int]) -> list[charts.ServingCurve]:
    """Plain decoding and the plan at each TP, if a batch fits and the acceptance is known."""
    curves = []
    for tp in degrees:
        curves.append(charts.serving_curve(replace(without_speculation(scenario), tp=tp), BATCHES))
        if scenario.plan.speculates:
            plan = scenario.plan
            if not plan.is_self:
                plan = replace(plan, draft_tp=min(scenario.draft_tp, tp))
            curves.append(charts.serving_curve(replace(scenario, tp=tp, plan=plan), BATCHES))
    return [curve for curve in curves if curve is not None]
