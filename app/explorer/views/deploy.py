"""Deploy: the plan as an engine's configuration, what each engine can run, and γ by batch."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from app import charts
from app.explorer.cached import point_of
from app.explorer.inputs.widgets import segmented
from app.explorer.show import plain, show_chart
from perfmodel import Scenario
from perfmodel.reports import ENGINES, ExportPlan, export_plan, exportability, infeasible_reason
from perfmodel.speculation import GammaSchedule, gamma_schedule

FILES = {"vllm": "sh", "sglang": "sh", "tensorrt-llm": "yaml", "specroof": "toml"}


def show() -> None:
    """Draw the view."""
    point = point_of(st.session_state["values"])
    scenario = point.scenario
    reason = infeasible_reason(point)
    if reason:
        st.warning(plain(reason), icon=":material/block:")
    engine = segmented("deploy_engine", "Engine", ENGINES)
    schedule = gamma_schedule(scenario) if scenario.plan.speculates else None
    _configuration(engine, scenario, schedule)
    st.markdown("**Which engines can run this plan**")
    reasons = exportability(ExportPlan.of_scenario(scenario, engine=str(engine)))
    lines = [
        f"- **{plain(ENGINES[name])}**: {'yes' if why is None else plain(why)}"
        for name, why in reasons.items()
    ]
    st.markdown("\n".join(lines))
    if schedule is not None:
        show_chart(charts.schedule_map(schedule), "gamma_schedule")


def _configuration(engine: str, scenario: Scenario, schedule: GammaSchedule | None) -> None:
    """Show the configuration and its benchmark command, or why the engine cannot run the plan."""
    plan = ExportPlan.of_scenario(scenario, engine=engine)
    if engine == "vllm" and schedule is not None and st.toggle("γ by batch", key="by_batch"):
        ranges = schedule.ranges(scenario.workload.prompt_tokens)
        plan = replace(plan, gamma_schedule=ranges or None)
    why = exportability(plan)[engine]
    if why is not None:
        st.info(f"**{plain(ENGINES[engine])} cannot run this plan**: {plain(why)}")
        return
    text = export_plan(engine=engine, plan=plan)
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("# Benchmark")), len(lines))
    language = {"sh": "bash"}.get(FILES[engine], FILES[engine])
    st.code("\n".join(lines[:start]), language=language, wrap_lines=True)
    st.download_button(
        "Download",
        text,
        file_name=f"plan.{FILES[engine]}",
        mime="text/plain",
        key="plan_file",
        on_click="ignore",
        icon=":material/download:",
    )
    if start < len(lines):
        st.markdown("**Benchmark command**, with this plan's acceptance for any weights")
        shown = [line.removeprefix("# ") for line in lines[start:]]
        st.code("\n".join(shown), language="bash", wrap_lines=True)
    elif engine == "specroof":
        st.markdown("**Check the prediction**")
        st.code("specroof predict --scenario plan.toml", language="bash")
