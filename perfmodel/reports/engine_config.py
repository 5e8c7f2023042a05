"""Write a plan as the configuration of an engine, or state why the engine cannot run it.

The flags were checked in November 2026: those of vLLM and SGLang with the argument parsers of the
versions in `engine_support`, those of TensorRT-LLM only by the names of its options. Nothing is
approximated: a plan that an engine cannot run exactly is refused.
"""

from __future__ import annotations

import json

from perfmodel import catalog
from perfmodel.errors import ConfigError, unknown_name
from perfmodel.flat_values import scenario_dict
from perfmodel.reports import engine_writers
from perfmodel.reports.engine_limits import obstacle, run_obstacle
from perfmodel.reports.export import ExportPlan
from perfmodel.specs.engine_support import VERSIONS, EngineVersion, version_of_profile

# The newest known version of each engine.
ENGINES = {one.engine: one.label for one in VERSIONS} | {"specroof": "specroof"}
_WRITERS = {
    "vllm": engine_writers.vllm,
    "sglang": engine_writers.sglang,
    "tensorrt-llm": engine_writers.tensorrt_llm,
}


def export_plan(*, engine: str, plan: ExportPlan) -> str:
    """The configuration of `plan` for an engine, as text that ends in a newline.

    "vllm" and "sglang" give a shell command, "tensorrt-llm" a YAML file, and "specroof" a scenario
    TOML. The first comment names the engine's version, which is the one of the scenario's engine
    profile if it is a profile of this engine; the last comments are commands that benchmark the
    engine with the plan's acceptance.

    Raises `ConfigError` if the engine is unknown or cannot run the plan.
    """
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    if reason := refusal(engine, plan):
        raise ConfigError(reason)
    lines = (
        _specroof(plan) if engine == "specroof" else _WRITERS[engine](_version(engine, plan), plan)
    )
    return "\n".join(lines) + "\n"


def export_notes(*, engine: str, plan: ExportPlan) -> list[str]:
    """What must be set up beside a serving engine's configuration, which also says it."""
    return [] if engine == "specroof" else engine_writers.pool_notes(_version(engine, plan), plan)


def exportability(plan: ExportPlan) -> dict[str, str | None]:
    """For each engine the reason why the plan is not exported to it, or None if it is."""
    return {
        engine: _specroof_obstacle(plan)
        if engine == "specroof"
        else obstacle(_version(engine, plan), plan)
        for engine in ENGINES
    }


def is_run_by(engine: str, plan: ExportPlan) -> bool:
    """Whether the engine runs the plan, even if its version is not exported to."""
    if engine == "specroof":
        return _specroof_obstacle(plan) is None
    return run_obstacle(_version(engine, plan), plan) is None


def refusal(engine: str, plan: ExportPlan) -> str | None:
    """Why the plan is not exported to the engine, as a sentence; None if it is."""
    reason, label = exportability(plan)[engine], engine_label(engine, plan)
    if reason is not None and is_run_by(engine, plan):
        return f"{label} runs this plan; no command is written for it, so use a newer engine."
    return reason and f"{label} cannot run this plan: {reason}"


def engine_label(engine: str, plan: ExportPlan) -> str:
    """Name and version of the engine to which a plan is exported."""
    return ENGINES[engine] if engine == "specroof" else _version(engine, plan).label


def _version(engine: str, plan: ExportPlan) -> EngineVersion:
    return version_of_profile(engine, plan.scenario.engine.name)


def _specroof_obstacle(plan: ExportPlan) -> str | None:
    method = plan.scenario.plan.method
    if method is None:
        return None
    return (
        f"its runtime has no built-in draft {method.name}; use another draft, or export to a "
        f"serving engine."
    )


def _specroof(plan: ExportPlan) -> list[str]:
    values = scenario_dict(plan.scenario)
    for key, spec in (("target", plan.scenario.target), ("draft", plan.scenario.draft)):
        if spec is not None and spec.hub_id and values[key] == spec.name:
            usual = spec.name not in catalog.model_names() or catalog.model(spec.name) == spec
            values[key] = spec.name if usual else spec.hub_id
    if plan.scenario.plan.draft == "none":
        values = {k: v for k, v in values.items() if not k.startswith("acceptance")}
    lines = ["# specroof scenario"]
    for key, value in values.items():
        text = json.dumps(value, ensure_ascii=False)
        note = f"  # including a sink of {plan.scenario.plan.sink_tokens}"
        lines += [f"{key} = {text}{note if key == 'kv_budget' else ''}"]
    for low, high, gamma in plan.gamma_schedule or ():
        lines += [f"# gamma schedule: batch {low} to {high}: gamma = {gamma}"]
    return lines
