"""`specroof export`: write a plan as an engine's configuration."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.commands.recommend import find_recommendation
from app.cli.options import (
    OF_PROMPTS,
    AsJson,
    ScenarioFile,
    option,
    parse_overrides,
    refuse_flags,
    switch,
)
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
    runs_on: Annotated[
        str, option("ENGINE", "With --recommended: as in `recommend`, such as vllm or vllm-0.26.")
    ] = "",
    objective: Annotated[
        str | None, option("throughput|latency", "With --recommended: as in `recommend`.")
    ] = None,
    rate: Annotated[
        float | None,
        option("RPS", "With --recommended: one replica of the fewest GPUs."),
    ] = None,
    acceptance_budget: Annotated[
        str | None, option("TOKENS|P%", "With --recommended: as in `recommend`.")
    ] = None,
    matrix: Annotated[
        bool, switch("--matrix", "Print which draft choices each engine can run.")
    ] = False,
    draft_checkpoint: Annotated[
        str, option("ID", "Hub id or folder of the draft, such as an EAGLE-3 head.")
    ] = "",
    max_model_len: Annotated[
        int | None,
        option(
            "TOKENS",
            "Longest request to serve. Default: what the models support and the KV cache holds.",
        ),
    ] = None,
    output: Annotated[Path | None, option("FILE", "Write to this file instead of stdout.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a plan as an engine's configuration."""
    from perfmodel import ConfigError
    from perfmodel.errors import unknown_name
    from perfmodel.reports import ENGINES, engine_label, export_notes, export_plan

    stated = {"to": to, "recommended": recommended, "output": output, **context.obj}
    stated |= {"draft_checkpoint": draft_checkpoint, "max_model_len": max_model_len}
    if matrix:
        refuse_flags(stated, stated, "with --matrix, which shows all engines; remove it")
        _print_matrix(as_json=as_json)
        return
    if to is None:
        raise ConfigError(
            f"no engine named; add --to with one of {', '.join(ENGINES)}, or use --matrix to see "
            f"what each of them can run"
        )
    if to not in ENGINES:
        raise unknown_name("engine", to, ENGINES)

    def completed(plan: ExportPlan) -> ExportPlan:
        return replace(plan, draft_checkpoint=draft_checkpoint, longest_tokens=max_model_len)

    if to == "specroof":
        only_engines = ("draft_checkpoint", "max_model_len")
        refuse_flags(
            stated, only_engines, "on a scenario file, which states no checkpoint or limit"
        )
    search = {"runs_on": runs_on or None, "objective": objective, "rate": rate}
    search |= {"acceptance_budget": acceptance_budget}
    search = {k: v for k, v in search.items() if v not in (None, "")}
    if search and not recommended:
        raise ConfigError(
            f"--{next(iter(search)).replace('_', '-')} only changes --recommended; add it, or "
            f"remove the former"
        )
    if recommended:
        plan = _recommended(context.obj, scenario, to, completed, search)
    else:
        names = ("slo",) if to == "specroof" else ("slo", *OF_PROMPTS)
        refuse_flags(stated, names, "on a given plan; add --recommended, or remove it")
        plan = completed(_given(context.obj, scenario, to))
    text = export_plan(engine=to, plan=plan)
    if output is not None:
        write_text(output, text)
    if as_json:
        notes = export_notes(engine=to, plan=plan)
        version = engine_label(to, plan)
        print_json({"engine": to, "version": version, "text": text, "notes": notes})
    elif output is None:
        print(text, end="")


def _given(flags: dict[str, str], scenario: str | None, engine: str) -> ExportPlan:
    """The plan of the scenario as given."""
    import perfmodel
    from perfmodel.reports import ExportPlan, check_fits

    values = parse_overrides(scenario, flags)
    chosen = perfmodel.parse_scenario(values, origin=scenario or "").scenario()
    check_fits(perfmodel.estimate(chosen))
    return ExportPlan.of_scenario(chosen, engine=engine)


def _recommended(
    flags: dict[str, str],
    scenario: str | None,
    engine: str,
    completed: Callable[[ExportPlan], ExportPlan],
    options: dict[str, Any],
) -> ExportPlan:
    """The recommended plan, or the fastest other one if the engine cannot run it.

    `options` are those of the search; with a rate, the plan is that of one replica of the smallest
    fleet. If the scenario has a profile of the engine, or `runs_on` is given, all plans of the
    search are plans that the engine runs, so the recommended plan is only replaced by MTP layers of
    the target's checkpoint, if the checkpoint of its head is not known.
    """
    from perfmodel import ConfigError
    from perfmodel.planning import with_memory_share
    from perfmodel.reports import ExportPlan, engine_label, exportability
    from perfmodel.specs import MOST_MEMORY_SHARE, named_version, profile_version
    from perfmodel.speculation import gamma_ranges

    runs_on = options.get("runs_on", "")
    version = named_version(runs_on) if runs_on else None
    answer, _ = find_recommendation(flags, scenario, **options)
    chosen, at = answer.best, answer.best.scenario
    if answer.fleet is not None:
        share = 1.0 if engine == "specroof" else MOST_MEMORY_SHARE
        fleet = with_memory_share(answer.fleet, answer.rule.limits, share)
        chosen, at = fleet.capacity.candidate, fleet.capacity.scenario
        print(
            f"{fleet.rate:g} requests/s need {fleet.replicas:,} of this configuration, on "
            f"{fleet.gpus:,} GPUs in all",
            file=sys.stderr,
        )
    best = completed(ExportPlan.of_scenario(at, engine=engine))
    if chosen.scenario.plan.speculates and engine == "vllm":
        ranges = gamma_ranges(at, answer.rule)
        scheduled = replace(best, gamma_schedule=ranges)
        best = best if exportability(scheduled)[engine] else scheduled
    if version is not None and version.label != engine_label(engine, best):
        is_other = version.engine != engine
        mend = f"--runs-on {engine}" if is_other else f"--engine {version.profile}"
        raise ConfigError(
            f"--runs-on {runs_on} is not what --to {engine} is written for, "
            f"{engine_label(engine, best)}; use {mend}"
        )
    reason = exportability(best)[engine]
    version = version or profile_version(best.scenario.engine.name)
    if reason is None:
        return best
    others = [c for c in answer.runners_up if c.tpot_s < answer.plain.tpot_s]
    others = [*sorted(others, key=lambda c: c.tpot_s), answer.plain]
    hint = "" if engine == "specroof" else f" --runs-on {engine} compares only plans that it runs."
    if version is not None and version.engine == engine:
        others, hint = [c for c in others if c.ships_draft], ""
    for other in others:
        plan = completed(ExportPlan.of_scenario(other.scenario, engine=engine))
        if exportability(plan)[engine] is None:
            print(
                f"{engine_label(engine, plan)} cannot run the best plan, {chosen.label}: "
                f"{reason} Exported instead: {other.label}, TP {other.scenario.tp}.{hint}",
                file=sys.stderr,
            )
            return plan
    return best


def _print_matrix(*, as_json: bool) -> None:
    """Print which draft choices each engine can run."""
    from perfmodel import parse_scenario
    from perfmodel.reports import ENGINES, ExportPlan, exportability
    from perfmodel.specs import METHODS

    base = {"target": "llama-3.1-8b", "tp": 8, "gpu": "h100-sxm", "batch": 16}
    choices = [
        ("none", "full"),
        *itertools.product(["self"], ["streamingllm", "snapkv", "full"]),
        *itertools.product(["llama-3.2-1b"], ["full", "streamingllm"]),
        *((name, "full") for name in METHODS),
    ]
    rows = []
    for draft, policy in choices:
        plan = {} if draft == "none" else {"draft": draft, "draft_policy": policy, "gamma": 4}
        scenario = parse_scenario(base | plan).scenario()
        name = "a model" if draft == "llama-3.2-1b" else draft
        checkpoint = "a checkpoint" if draft in METHODS else ""
        reasons = exportability(ExportPlan(scenario=scenario, draft_checkpoint=checkpoint))
        rows.append({"draft": name, "draft_policy": policy, "reasons": reasons})
    if as_json:
        print_json({"engines": ENGINES, "choices": rows})
    else:
        from app.render.catalog_tables import print_matrix

        print_matrix(ENGINES, rows, console())
