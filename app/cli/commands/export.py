"""`specroof export`: write a plan as an engine's configuration."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.commands.recommend import find_recommendation
from app.cli.options import AsJson, ScenarioFile, option, parse_overrides, switch
from app.cli.output import console, print_json, write_text

if TYPE_CHECKING:
    from perfmodel.reports import ExportPlan


def export(
    context: typer.Context,
    scenario: ScenarioFile = None,
    to: Annotated[
        str | None, option("ENGINE", "Engine to export to: vllm, sglang, tensorrt-llm or specroof.")
    ] = None,
    recommended: Annotated[
        bool, switch("--recommended", "Export the plan that `recommend` chooses.")
    ] = False,
    matrix: Annotated[
        bool, switch("--matrix", "Print which draft choices each engine can run.")
    ] = False,
    output: Annotated[Path | None, option("FILE", "Write to this file instead of stdout.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a plan as an engine's configuration."""
    from perfmodel import ConfigError
    from perfmodel.errors import unknown_name
    from perfmodel.reports import ENGINES, export_plan

    if matrix:
        _print_matrix(as_json=as_json)
        return
    if to is None:
        raise ConfigError(
            f"no engine named; add --to with one of {', '.join(ENGINES)}, or use --matrix to see "
            f"what each of them can run"
        )
    if to not in ENGINES:
        raise unknown_name("engine", to, ENGINES)
    text = export_plan(engine=to, plan=_plan(context.obj, scenario, to, recommended=recommended))
    if output is not None:
        write_text(output, text)
    if as_json:
        print_json({"engine": to, "version": ENGINES[to], "text": text})
    elif output is None:
        print(text, end="")


def _plan(
    flags: dict[str, str], scenario: str | None, engine: str, *, recommended: bool
) -> ExportPlan:
    """The plan to export: the given one, or the recommended one."""
    import perfmodel
    from perfmodel.reports import ExportPlan, infeasible_reason

    schedule = None
    if recommended:
        answer, _ = find_recommendation(flags, scenario)
        chosen = answer.best.scenario
        if answer.schedule is not None and answer.speculates and engine == "vllm":
            schedule = answer.schedule.ranges(chosen.workload.prompt_tokens)
    else:
        values = parse_overrides(scenario, flags)
        chosen = perfmodel.parse_scenario(values, origin=scenario or "").scenario()
    if reason := infeasible_reason(perfmodel.estimate(chosen)):
        raise perfmodel.NoFeasiblePlan(reason)
    plan = ExportPlan.of_scenario(chosen, engine=engine)
    return replace(plan, gamma_schedule=schedule)


def _print_matrix(*, as_json: bool) -> None:
    """Print which draft choices each engine can run."""
    from perfmodel import parse_scenario
    from perfmodel.reports import ENGINES, ExportPlan, exportability

    base = {"target": "llama-3.1-8b", "tp": 8, "gpu": "h100-sxm"}
    choices = [
        ("none", "full"),
        *itertools.product(["self"], ["streamingllm", "snapkv", "full"]),
        *itertools.product(["llama-3.2-1b"], ["full", "streamingllm"]),
    ]
    rows = []
    for draft, policy in choices:
        plan = {} if draft == "none" else {"draft": draft, "draft_policy": policy, "gamma": 4}
        scenario = parse_scenario(base | plan).scenario()
        name = draft if draft in ("none", "self") else "a model"
        reasons = exportability(ExportPlan.of_scenario(scenario, engine="specroof"))
        rows.append({"draft": name, "draft_policy": policy, "reasons": reasons})
    if as_json:
        print_json({"engines": ENGINES, "choices": rows})
    else:
        from app.render.catalog_tables import print_matrix

        print_matrix(ENGINES, rows, console())
