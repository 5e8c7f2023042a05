"""`specroof export`: a plan as an engine's configuration, or the reason why it cannot run there."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import perfmodel
from app.cli.commands.recommend import find_recommendation
from app.cli.output import atomic_text, console, print_json
from app.cli.overrides import stated_values
from perfmodel import (
    ENGINES,
    ConfigError,
    ExportPlan,
    NoFeasiblePlan,
    Scenario,
    estimate,
    export_plan,
    exportability,
    infeasible_reason,
    unknown_name,
)


def run_export(
    flags: dict[str, str],
    scenario: str | None,
    *,
    to: str | None,
    recommended: bool,
    output: Path | None,
    as_json: bool,
) -> int:
    """Print or write the configuration.

    Raises
    ------
    ConfigError
        If no engine is named, or the engine cannot run the plan.
    NoFeasiblePlan
        If the GPUs cannot hold the plan.
    """
    if to is None:
        raise ConfigError(
            f"say where to: --to {', '.join(ENGINES)}; or --matrix for what each runs"
        )
    if to not in ENGINES:
        raise unknown_name("engine", to, ENGINES)
    if recommended:
        answer, _ = find_recommendation(flags, scenario)
        chosen, schedule = answer.best.scenario, None
        if answer.schedule is not None and answer.speculates and to == "vllm":
            schedule = answer.schedule.ranges(chosen.workload.prompt_tokens)
    else:
        chosen = perfmodel.parse_scenario(
            stated_values(scenario, flags), origin=scenario or ""
        ).scenario()
        schedule = None
    if reason := infeasible_reason(estimate(chosen)):
        raise NoFeasiblePlan(reason)
    plan = ExportPlan.of_scenario(chosen, engine=to)
    text = export_plan(engine=to, plan=replace(plan, gamma_schedule=schedule))
    if output is not None:
        with atomic_text(output) as file:
            file.write(text)
    if as_json:
        print_json({"engine": to, "version": ENGINES[to], "text": text})
    elif output is None:
        print(text, end="")
    return 0


def print_matrix(*, as_json: bool) -> int:
    """Print which engine runs which draft choice."""
    base = {"target": "llama-3.1-8b", "tp": 8, "gamma": 4, "gpu": "h100-sxm"}
    choices = [
        *itertools.product(["self"], ["streamingllm", "snapkv", "full"]),
        *itertools.product(["llama-3.2-1b"], ["full", "streamingllm"]),
    ]
    rows = [_support("none", "full", perfmodel.parse_scenario(base | {"gamma": 0}).scenario())]
    for draft, policy in choices:
        chosen = perfmodel.parse_scenario(
            base | {"draft": draft, "draft_policy": policy}
        ).scenario()
        rows.append(_support("self" if draft == "self" else "a model", policy, chosen))
    if as_json:
        print_json({"engines": ENGINES, "choices": rows})
    else:
        from app.render.catalog_tables import print_matrix as print_table

        print_table(ENGINES, rows, console())
    return 0


def _support(draft: str, policy: str, scenario: Scenario) -> dict[str, object]:
    reasons = exportability(ExportPlan.of_scenario(scenario, engine="specroof"))
    return {"draft": draft, "draft_policy": policy, "reasons": reasons}
