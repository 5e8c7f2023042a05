"""Decide, run it: a plan as an engine's configuration, who can run it, and γ by batch."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from app.explorer.cached import point_of
from app.explorer.inputs.serve_line import quantised_id
from app.explorer.inputs.session_files import shown_paths
from app.explorer.inputs.widgets import segmented, text, value_of
from app.explorer.show import plain, show_chart, show_error
from app.explorer.state import named_for
from perfmodel import ConfigError, Recommendation, RoundEstimate, estimate
from perfmodel.catalog.method_acceptance import published_head
from perfmodel.planning import plan_label
from perfmodel.reports import (
    ENGINES,
    ExportPlan,
    export_plan,
    exportability,
    infeasible_reason,
    refusal,
)
from perfmodel.specs import MethodKind
from perfmodel.speculation import Rule, gamma_ranges, gamma_schedule

PLANS = {"recommended": "recommended", "page": "plan of this page"}
FILES = {"vllm": "sh", "sglang": "sh", "tensorrt-llm": "yaml", "specroof": "toml"}


def show(answer: Recommendation) -> None:
    """Draw the section for the recommended plan or that of the page."""
    st.markdown("### Run it")
    page, best = point_of(st.session_state["values"]), estimate(answer.best.scenario)
    point = best
    if _name(page) != _name(best):
        chosen = segmented("export_plan", "Plan", PLANS)
        point = {"recommended": best, "page": page}[chosen]
    st.markdown(plain(_name(point)))
    reason = infeasible_reason(point)
    if reason:
        st.warning(plain(reason), icon=":material/block:")
    engine = segmented("deploy_engine", "Engine", ENGINES)
    scenario = point.scenario
    known = scenario.acceptance is not None or scenario.curve is not None
    is_drafting = scenario.plan.speculates and known
    schedule = gamma_schedule(scenario, answer.rule) if is_drafting else None
    try:
        _configuration(engine, point, answer.rule if is_drafting else None)
    except ConfigError as error:  # the name of a checkpoint
        show_error(error)
    if schedule is not None:
        with st.expander("Best γ by batch and prompt length", on_change="rerun") as opened:
            if opened.open:
                from app.explorer.views.drawing import charts

                show_chart(charts.schedule_map(schedule), "gamma_schedule")


def _name(point: RoundEstimate) -> str:
    scenario = point.scenario
    own = scenario.plan.speculates and scenario.draft_tp != scenario.tp
    draft_tp = f", draft TP {scenario.draft_tp}" if own else ""
    return f"{plan_label(scenario)}, TP {scenario.tp}{draft_tp}"


def with_checkpoint(plan: ExportPlan) -> ExportPlan:
    """The plan with the quantised checkpoint that was pasted, if its types are the plan's."""
    named, scenario = st.session_state["target_checkpoint"], plan.scenario
    found = quantised_id(named, scenario.target.name, scenario.weight_dtype)
    return replace(plan, target_checkpoint=found)


def _show_for(engine: str) -> None:
    st.session_state["deploy_engine"] = engine


def _named_head(method: str, label: str, usual: str) -> str:
    """Draw the box for a head of the target; one that is named for another draft is left out."""
    state = st.session_state
    owner = named_for(state["target"], method)
    is_own = not state["draft_checkpoint"] or state["draft_checkpoint_of"] == owner
    key = "draft_checkpoint" if is_own else "other_checkpoint"
    hint = usual or "hub id or folder"
    text(key, label, placeholder=hint, on_change=_name_head, args=(key, owner))
    return str(value_of(key)).strip()


def _name_head(key: str, owner: str) -> None:
    state = st.session_state
    state.update({"draft_checkpoint": state[key], "draft_checkpoint_of": owner})
    state["other_checkpoint"] = ""


def _is_refused(engine: str, plan: ExportPlan) -> bool:
    """Whether the plan is not exported to the engine; if so, show why, and the engines it is."""
    why = refusal(engine, plan)
    if why is None:
        return False
    st.info(plain(why))
    for other, obstacle in exportability(plan).items():
        if obstacle is None:
            label = f"Show it for {ENGINES[other]}"
            st.button(label, on_click=_show_for, args=(other,), key=f"show_for_{other}")
    return True


def _configuration(engine: str, point: RoundEstimate, rule: Rule | None) -> None:
    """Show the configuration and its benchmark command, or why the engine cannot run the plan."""
    scenario = point.scenario
    plan = with_checkpoint(ExportPlan.of_scenario(scenario, engine=engine))
    method = scenario.plan.method
    if _is_refused(engine, replace(plan, draft_checkpoint="a checkpoint" if method else "")):
        return
    if method is not None and method.kind is not MethodKind.LOOKUP:
        # The head whose acceptance is used, or the target if it contains its MTP head.
        usual = plan.draft_id or published_head(scenario.target.name, method.name)
        label = f"Checkpoint of the {method.label} draft"
        head = _named_head(method.name, label, usual) or usual
        if not head:
            st.info("Name the checkpoint of the trained draft to get the command.")
            return
        plan = replace(plan, draft_checkpoint=head)
    if engine == "vllm" and rule is not None and st.toggle("γ by batch", key="by_batch"):
        plan = replace(plan, gamma_schedule=gamma_ranges(scenario, rule) or None)
    if _is_refused(engine, plan):
        return
    exported = shown_paths(export_plan(engine=engine, plan=plan))
    lines = exported.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("# Benchmark")), len(lines))
    language = {"sh": "bash"}.get(FILES[engine], FILES[engine])
    st.code("\n".join(lines[:start]), language=language, wrap_lines=True)
    st.download_button(
        "Download",
        exported,
        file_name=f"plan.{FILES[engine]}",
        mime="text/plain",
        key="plan_file",
        on_click="ignore",
        icon=":material/download:",
    )
    if start < len(lines):
        command = lines[-1].removeprefix("# ").replace(" --", " \\\n  --")
        st.markdown("Benchmark it with this plan's acceptance, whatever the weights:")
        st.code(command, language="bash", wrap_lines=True)
    elif engine == "specroof":
        st.markdown("Check the prediction:")
        st.code("specroof predict --scenario plan.toml", language="bash")
