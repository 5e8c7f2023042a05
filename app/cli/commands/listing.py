"""`specroof list`: what the catalog holds, with figures and sources; and the scenario's flags."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson, default_text, flag_name
from app.cli.output import console, print_json

if TYPE_CHECKING:
    from perfmodel import EngineProfile


class Kind(StrEnum):
    """What `list` can list."""

    gpus = "gpus"
    machines = "machines"
    models = "models"
    engines = "engines"
    scenarios = "scenarios"
    acceptance = "acceptance"
    flags = "flags"


def list_catalog(
    kind: Annotated[Kind, typer.Argument(help="What to list.")], as_json: AsJson = False
) -> None:
    """List the catalog with figures and sources, or the flags that describe a scenario."""
    entries = LISTS[kind]()
    if as_json:
        print_json(entries)
    elif kind is Kind.flags:
        print("\n".join(_markdown(entries)))
    else:
        from app.render.catalog_tables import print_list

        print_list(kind.value, entries, console())


def _gpus() -> list[dict[str, Any]]:
    from perfmodel import catalog

    gpus = [catalog.gpu(name) for name in catalog.gpu_names()]
    return [
        {
            "name": gpu.name,
            "architecture": gpu.architecture,
            "sm_count": gpu.sm_count,
            "peak_flops": gpu.peak_flops,
            "memory_bytes": gpu.memory_bytes,
            "hbm_bandwidth": gpu.hbm_bandwidth,
            "l2_bytes": gpu.l2_bytes,
            "efficiency": gpu.efficiency,
            "efficiency_origin": gpu.efficiency_origin,
            "source": gpu.source,
        }
        for gpu in gpus
    ]


def _machines() -> list[dict[str, Any]]:
    from perfmodel import catalog

    machines = [catalog.machine(name) for name in catalog.machine_names()]
    return [
        {
            "name": machine.name,
            "gpu": machine.gpu.name,
            "gpus_per_node": machine.gpus_per_node,
            "link": machine.link.kind,
            "link_bandwidth": machine.link.bandwidth,
            "source": machine.source,
        }
        for machine in machines
    ]


def _models() -> list[dict[str, Any]]:
    from perfmodel import catalog

    models = [catalog.model(name) for name in catalog.model_names()]
    return [
        {
            "name": model.name,
            "parameters": model.parameters,
            "layers": model.layers,
            "hidden": model.hidden,
            "query_heads": model.query_heads,
            "kv_heads": model.kv_heads,
            "max_context_tokens": model.max_context_tokens,
            "kv_bytes_per_token": model.kv_bytes_per_token_per_rank(1, "bf16"),
            "hub_id": model.hub_id,
            "source": model.source,
        }
        for model in models
    ]


def _engines() -> list[dict[str, Any]]:
    """Each profile, and again for every GPU or architecture that has values that differ."""
    from perfmodel import catalog
    from perfmodel.catalog.engines import engine_names, engine_profile

    gpus = [catalog.gpu(name) for name in catalog.gpu_names()]
    entries = []
    for name in engine_names():
        general = engine_profile(name)
        profiles = {"any": general}
        for gpu in gpus:
            profile = engine_profile(name, gpu)
            if profile.measured_on in ("", gpu.name) and profile != general:
                profiles.setdefault(profile.measured_on or gpu.architecture, profile)
        entries += [_engine(profile, hardware) for hardware, profile in profiles.items()]
    return entries


def _engine(profile: EngineProfile, hardware: str) -> dict[str, Any]:
    return {
        "name": profile.name,
        "hardware": hardware,
        "origin": profile.origin,
        "round_overhead_s": profile.round_overhead_s,
        "kernel_gap_s": profile.kernel_gap_s,
        "layer_overhead_s": profile.layer_overhead_s,
        "all_reduce": profile.all_reduce,
        "speedup_error": profile.speedup_error,
        "source": profile.source,
    }


def _scenarios() -> list[dict[str, Any]]:
    from perfmodel.catalog.scenarios import scenario_names, scenario_values

    return [{"name": name, **scenario_values(name)} for name in scenario_names()]


def _acceptance() -> list[dict[str, Any]]:
    from perfmodel.catalog.acceptance import measured_curves

    return [
        {
            "target": curve.target,
            "draft": curve.draft,
            "draft_policy": curve.draft_policy,
            "points": len(curve.points),
            "alpha_low": min(point.alpha for point in curve.points),
            "alpha_high": max(point.alpha for point in curve.points),
            "prompt_tokens": list(curve.context_range),
            "kv_budget": list(curve.budget_range),
            "text": curve.text,
            "source": curve.source,
        }
        for curve in measured_curves()
    ]


def _flags() -> list[dict[str, Any]]:
    from perfmodel import ScenarioInput

    return [
        {
            "name": name,
            "flag": flag_name(name),
            "meaning": field.description,
            "default": default_text(field),
        }
        for name, field in ScenarioInput.model_fields.items()
    ]


def _markdown(flags: list[dict[str, Any]]) -> list[str]:
    """The flags as the table of docs/reference/commands.md."""
    rows = [f"| `{flag['flag']}` | {flag['meaning']} | {flag['default']} |" for flag in flags]
    return ["| flag | meaning | default |", "|---|---|---|", *rows]


LISTS = {
    Kind.gpus: _gpus,
    Kind.machines: _machines,
    Kind.models: _models,
    Kind.engines: _engines,
    Kind.scenarios: _scenarios,
    Kind.acceptance: _acceptance,
    Kind.flags: _flags,
}
