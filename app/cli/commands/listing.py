"""`specroof list`: entries of the catalog with figures and sources, and the scenario's flags."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson, default_text
from app.cli.output import console, has_width, print_json
from app.cli.output_checks import flag_name

if TYPE_CHECKING:
    from perfmodel import EngineProfile

Entries = list[dict[str, Any]]


def list_catalog(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="What to list: gpus, machines, models, engines, scenarios, acceptance or flags.",
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List catalog entries with figures and sources, or the flags that describe a scenario."""
    from perfmodel import ConfigError

    if kind not in LISTS:
        problem = f"KIND {kind!r} is not valid" if kind else "KIND is missing"
        raise ConfigError(f"{problem}; use one of {', '.join(LISTS)}")
    entries = LISTS[kind]()
    if as_json:
        print_json(entries)
    elif kind == "flags" and not has_width():
        print("\n".join(_markdown(entries)))
    else:
        from app.render.catalog_tables import print_list

        print_list(kind, entries, console())


def _attributes(entry: object, names: str) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in names.split()}


def _gpus() -> Entries:
    from perfmodel import catalog

    shown = (
        "name architecture sm_count peak_flops memory_bytes hbm_bandwidth l2_bytes efficiency "
        "efficiency_origin source"
    )
    return [_attributes(catalog.gpu(name), shown) for name in catalog.gpu_names()]


def _machines() -> Entries:
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


def _models() -> Entries:
    from perfmodel import catalog

    shown = (
        "name parameters active_parameters layers hidden query_heads kv_heads max_context_tokens"
    )
    return [
        {
            **_attributes(model, shown),
            "kv_bytes_per_token": model.kv_bytes_per_token_per_rank(1, "bf16"),
            **_attributes(model, "hub_id source"),
        }
        for model in map(catalog.model, catalog.model_names())
    ]


def _engines() -> Entries:
    """Each profile, and one more entry for every GPU or architecture with other values."""
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
    figures = (
        "origin round_overhead_s kernel_gap_s layer_overhead_s all_reduce speedup_error "
        "host_error source"
    )
    return {"name": profile.name, "hardware": hardware, **_attributes(profile, figures)}


def _scenarios() -> Entries:
    from perfmodel.catalog.scenarios import scenario_names, scenario_values

    return [{"name": name, **scenario_values(name)} for name in scenario_names()]


def _acceptance() -> Entries:
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


def _flags() -> Entries:
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


def _markdown(flags: Entries) -> list[str]:
    """The flags as the table of docs/reference/commands.md."""
    rows = [f"| `{flag['flag']}` | {flag['meaning']} | {flag['default']} |" for flag in flags]
    return ["| flag | meaning | default |", "|---|---|---|", *rows]


LISTS: dict[str, Callable[[], Entries]] = {
    "gpus": _gpus,
    "machines": _machines,
    "models": _models,
    "engines": _engines,
    "scenarios": _scenarios,
    "acceptance": _acceptance,
    "flags": _flags,
}
