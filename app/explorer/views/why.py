"""Why: the round as a waterfall, every part of every pass, and the origin of each number."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from app import charts
from app.explorer.cached import point_of, prediction
from app.explorer.show import plain, show_chart, show_metrics, show_table
from app.render.html_report import origin_lines
from perfmodel.units import format_seconds


def show() -> None:
    """Draw the view."""
    values = st.session_state["values"]
    point, result = point_of(values), prediction(values)
    _numbers(result)
    if not result["feasible"]:
        st.warning(plain(result["reason"]), icon=":material/block:")
    left, right = st.columns(2)
    with left:
        show_chart(charts.round_waterfall(point), "round")
    with right:
        show_chart(charts.step_parts(point), "parts")
    show_chart(charts.roofline(point), "roofline")
    st.markdown("**Every part of every pass**, including those without arithmetic")
    show_table(
        [
            row | {"seconds": format_seconds(float(str(row["seconds"])))}
            for row in charts.part_rows(point)
        ],
        column_config={
            "share": st.column_config.NumberColumn("share of pass", format="percent"),
            "share_of_roof": st.column_config.NumberColumn("share of the roof", format="percent"),
            "seconds": "time",
        },
    )
    with st.expander("Where the numbers come from"):
        st.markdown("\n".join(f"- {plain(line)}" for line in origin_lines(point.scenario)))
    for note in result["notes"]:
        st.caption(plain(note))
    st.download_button(
        "Prediction as JSON",
        lambda: json.dumps(result, allow_nan=False),
        file_name="prediction.json",
        mime="application/json",
        key="prediction_json",
        on_click="ignore",
        icon=":material/download:",
    )


def _numbers(result: dict[str, Any]) -> None:
    """Show the prediction in six figures."""
    figures: list[tuple[str, str, str | None]] = [
        (label, format_seconds(result[key]), None)
        for label, key in (("T_T", "target_step_s"), ("T_V", "verify_s"), ("T_D", "draft_step_s"))
    ]
    tokens, tpot, speedup = (result[k] for k in ("tokens_per_round", "tpot_s", "speedup"))
    span = None
    if result["speedup_low"] is not None:
        span = f"90 % interval {result['speedup_low']:.2f}x to {result['speedup_high']:.2f}x"
    figures += [
        ("Tokens per round", "unknown" if tokens is None else f"{tokens:.2f}", None),
        ("Time per token", "unknown" if tpot is None else format_seconds(tpot), None),
        ("Speedup", "unknown" if speedup is None else f"{speedup:.2f}x", span),
    ]
    show_metrics(figures)
