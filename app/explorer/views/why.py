"""Why: the round in figures and charts, and what tunes it, changes it, and stands behind it."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from app.explorer.cached import point_of, prediction
from app.explorer.figures import DECODE_TPOT, GAIN, HELP, SPEEDUP, TPOT, of_plan
from app.explorer.inputs.widgets import segmented
from app.explorer.show import plain, show_chart, show_metrics, show_table
from app.explorer.state import WHY_PARTS, Values
from app.explorer.views import change, tune
from app.explorer.views.drawing import charts
from app.render.html_report import origin_lines
from perfmodel import RoundEstimate
from perfmodel.units import format_seconds

SYMBOLS = {
    "T_T": "Target: seconds of a plain decoding step of the target, without speculation",
    "T_V": "Verify: seconds in which the target checks γ+1 tokens at once",
    "T_D": "Draft: seconds of one step of the draft",
    "Tokens per round": "Ω: accepted drafts of a round, plus one token of the target",
}


def show() -> None:
    """Draw the view."""
    values = st.session_state["values"]
    point, result = point_of(values), prediction(values)
    _numbers(values, result)
    if result["speedup"] is not None and point.scenario.plan.speculates:
        st.markdown(plain(formula(point)))
    if not result["feasible"]:
        st.warning(plain(result["reason"]), icon=":material/block:")
    part = segmented("why_part", "Part", WHY_PARTS, label_visibility="collapsed")
    {"round": _round, "tune": tune.show, "change": change.show, "origin": _origin}[part]()
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


def formula(point: RoundEstimate) -> str:
    """The speedup of decoding alone as its formula with the numbers of the prediction."""
    drafts, verify = float(point.draft_total_s), float(point.verify.total_s)
    times = " + ".join(map(format_seconds, (drafts, verify, float(point.overhead_s))))
    plain_s = format_seconds(float(point.plain_tpot_s))
    return (
        f"{SPEEDUP} = Ω · plain step / (γ·T_D + T_V + overhead) = "
        f"{float(point.tokens_per_round):.2f} · {plain_s} / ({times}) = {float(point.speedup):.2f}x"
    )


def _round() -> None:
    """The round as a waterfall, and every part of every pass."""
    point = point_of(st.session_state["values"])
    left, right = st.columns(2)
    with left:
        show_chart(charts.round_waterfall(point), "round")
    with right:
        show_chart(charts.step_parts(point), "parts")
    show_chart(charts.roofline(point), "roofline")
    st.markdown("### Every part of every pass, including those without arithmetic")
    shares = ("share", "share_of_roof")
    show_table(
        [
            row
            | {"seconds": format_seconds(float(str(row["seconds"])))}
            | {key: 100.0 * float(str(row[key])) for key in shares}
            for row in charts.part_rows(point)
        ],
        column_config={
            "share": st.column_config.NumberColumn("share of pass", format="%.0f %%"),
            "share_of_roof": st.column_config.NumberColumn("share of the roof", format="%.0f %%"),
            "seconds": "time",
        },
    )


def _origin() -> None:
    lines = origin_lines(point_of(st.session_state["values"]).scenario)
    st.markdown("\n".join(f"- {plain(line)}" for line in lines))


def _numbers(values: Values, result: dict[str, Any]) -> None:
    """Show the steps of the round, and what the plan gives with and without prompts."""
    objective = st.session_state["objective"]
    shown = of_plan(values, objective)
    steps = [("T_T", "target_step_s")]
    if dict(values)["draft"] != "none" and dict(values)["gamma"] > 0:
        steps += [("T_V", "verify_s"), ("T_D", "draft_step_s")]
    figures: list[tuple[str, str, str | None]] = [
        (label, format_seconds(result[key]), SYMBOLS[label]) for label, key in steps
    ]
    if len(steps) > 1:
        tokens = result["tokens_per_round"]
        text = "unknown" if tokens is None else f"{tokens:.2f}"
        figures.append(("Tokens per round", text, SYMBOLS["Tokens per round"]))
    show_metrics(figures)
    span = ""
    if result["speedup_low"] is not None:
        span = f"; 90 % interval {result['speedup_low']:.2f}x to {result['speedup_high']:.2f}x"
    show_metrics(
        [
            (DECODE_TPOT, shown[DECODE_TPOT], HELP[DECODE_TPOT]),
            (SPEEDUP, shown[SPEEDUP], HELP[SPEEDUP] + span),
            (TPOT, shown[TPOT], HELP[TPOT]),
            (GAIN, shown[GAIN], f"in {objective}, {HELP[GAIN]}"),
        ]
    )
