"""`specroof list`: what the catalog holds, with figures and sources."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import perfmodel
from app.cli.output import console, print_json
from perfmodel import scenario_names, scenario_values


def run_list(kind: str, *, as_json: bool) -> int:
    """Print one kind of catalog entry."""
    entries = _LISTS[kind]()
    if as_json:
        print_json(entries)
    else:
        from app.render.catalog_tables import print_list

        print_list(kind, entries, console())
    return 0


def _gpus() -> list[dict[str, Any]]:
    gpus = [perfmodel.catalog.gpu(name) for name in perfmodel.catalog.gpu_names()]
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
    machines = [perfmodel.catalog.machine(name) for name in perfmodel.catalog.machine_names()]
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
    models = [perfmodel.catalog.model(name) for name in perfmodel.catalog.model_names()]
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
    """Each profile, and again for every GPU or architecture that it holds other values for."""
    gpus = [perfmodel.catalog.gpu(name) for name in perfmodel.catalog.gpu_names()]
    entries = []
    for name in perfmodel.engine_names():
        general = perfmodel.engine_profile(name)
        found = {"any": general}
        for gpu in gpus:
            profile = perfmodel.engine_profile(name, gpu)
            if profile.measured_on in ("", gpu.name) and profile != general:
                found.setdefault(profile.measured_on or gpu.architecture, profile)
        entries += [_engine(profile, hardware) for hardware, profile in found.items()]
    return entries


def _engine(profile: perfmodel.EngineProfile, hardware: str) -> dict[str, Any]:
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
    return [{"name": name, **scenario_values(name)} for name in scenario_names()]


def _acceptance() -> list[dict[str, Any]]:
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
        for curve in perfmodel.measured_curves()
    ]


_LISTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "gpus": _gpus,
    "machines": _machines,
    "models": _models,
    "engines": _engines,
    "scenarios": _scenarios,
    "acceptance": _acceptance,
}
