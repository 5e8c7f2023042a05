"""The line at the top of every view that names the scenario behind its numbers."""

from __future__ import annotations

import streamlit as st

from app.explorer.cached import prediction, scenario_of
from app.explorer.show import plain
from app.explorer.state import Values
from perfmodel import Scenario
from perfmodel.planning import plan_label
from perfmodel.specs import Origin

WORKLOAD = 4  # parts of the line before the plan


def show_plan_line(values: Values) -> None:
    """Show the line; its help text is what the predictions are based on."""
    words = plan_line(values)
    st.session_state["plan_words"] = " · ".join(words)
    parts = [plain(part) for part in words]
    result = prediction(values)
    based, source = result["evidence"]["sentence"], f"α: {result['acceptance']['source']}"
    with st.container(key="plan_line"):
        scenario, plan = " · ".join(parts[:WORKLOAD]), " · ".join(parts[WORKLOAD:])
        text = f"**Scenario:** {scenario}  \n**Plan of this page:** {plan}"
        st.markdown(text, help=plain(f"{based} {source}" if result["scenario"]["gamma"] else based))


def plan_line(values: Values) -> list[str]:
    """Target, machine, engine, workload, plan and acceptance, each in words."""
    scenario = scenario_of(values)
    engine = scenario.engine
    return [
        _target(scenario),
        f"{scenario.machine.name}, TP {scenario.tp}",
        f"engine {engine.name} ({engine.origin})",
        _workload(scenario),
        _plan(scenario),
        *_acceptance(values),
    ]


def _target(scenario: Scenario) -> str:
    experts = f", {scenario.expert_dtype} experts" if scenario.expert_dtype else ""
    parts = "".join(f", {dtype} {part}" for part, dtype in scenario.part_dtypes)
    types = f"{scenario.weight_dtype} weights{parts}{experts}, {scenario.kv_dtype} KV cache"
    return f"{scenario.target.name}, {types}"


def _workload(scenario: Scenario) -> str:
    work = scenario.workload
    text = f"batch {work.batch:,}, {work.prompt_tokens:,} prompt + {work.output_tokens:,} output"
    cached = f", {work.prefix_hit_rate:.0%} of each prompt cached" if work.prefix_hit_rate else ""
    return f"{text} tokens{cached}, {work.prefill} prefill"


def _plan(scenario: Scenario) -> str:
    plan = scenario.plan
    parts = [plan_label(scenario)]
    if plan.speculates and scenario.draft_tp != scenario.tp:
        parts.append(f"draft TP {scenario.draft_tp}")
    return ", ".join(parts)


def _acceptance(values: Values) -> list[str]:
    """α and its origin; nothing without a draft."""
    acceptance = prediction(values)["acceptance"]
    if acceptance["origin"] == "none":
        return []
    if acceptance["alpha"] is None:
        return ["α unknown (not measured for this draft)"]
    origin = acceptance["origin"]
    if origin == Origin.BORROWED:
        origin = acceptance["source"].partition(":")[0]
    return [f"α {acceptance['alpha']:.2f} ({origin})"]
