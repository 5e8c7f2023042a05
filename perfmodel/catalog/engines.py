"""Engine profiles: `catalog/engines/*.toml`, read into `EngineProfile`."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from functools import cache
from importlib import resources
from typing import Any

from perfmodel import catalog
from perfmodel.errors import ConfigError, unknown_name
from perfmodel.specs.engine import EngineProfile
from perfmodel.specs.gpu import GPU
from perfmodel.units import GB, US

_FOLDER = resources.files("perfmodel") / "catalog" / "engines"
# A key of an engine file, its unit, and the field it fills.
_SCALED = {
    "kernel_latency_us": ("kernel_latency_s", US),
    "kernel_gap_us": ("kernel_gap_s", US),
    "sampling_column_us": ("sampling_column_s", US),
    "layer_overhead_us": ("layer_overhead_s", US),
    "layer_overhead_per_sequence_us": ("layer_overhead_per_sequence_s", US),
    "step_overhead_us": ("step_overhead_s", US),
    "draft_step_overhead_us": ("draft_step_overhead_s", US),
    "round_overhead_us": ("round_overhead_s", US),
    "round_overhead_per_sequence_us": ("round_overhead_per_sequence_s", US),
    "round_overhead_per_draft_us": ("round_overhead_per_draft_s", US),
    "reserved_GB": ("reserved_bytes", GB),
    "workspace_GB": ("workspace_bytes", GB),
}
_PLAIN = {field.name for field in fields(EngineProfile)} - {f for f, _ in _SCALED.values()}


def engine_names() -> list[str]:
    """Names of the engine profiles in the catalog."""
    return sorted(f.name.removesuffix(".toml") for f in _FOLDER.iterdir() if f.name[0] not in "._")


@cache
def engine_profile(
    name: str, gpu: GPU | None = None, *, curves_of: str | None = None
) -> EngineProfile:
    """The profile `name`, with the values it holds for this GPU, or for none in particular.

    Where the engine was not measured on the GPU, the values of one of its architecture are carried
    to it: of the one whose kernel tables serve it, if it is among them, else of the first in the
    file. Their curves go with them (`measured_on`).

    Parameters
    ----------
    curves_of : str, optional
        The measured GPU to carry from, even where the GPU itself was measured.

    Raises
    ------
    ConfigError
        For an unknown engine, a file with an unknown key, or a GPU of `curves_of` on which the
        engine was not measured.
    """
    if name not in engine_names():
        raise unknown_name("engine", name, engine_names())
    table = tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    per_gpu, per_architecture = table.pop("gpu", {}), table.pop("architecture", {})
    if curves_of is not None and curves_of not in per_gpu:
        known = ", ".join(per_gpu) or "none"
        raise ConfigError(f"engine {name} was not measured on {curves_of!r}; measured: {known}")
    if gpu is None:
        return profile_from_table(table, file=f"{name}.toml")
    measured = curves_of or _nearest_measured(gpu, list(per_gpu))
    if measured is None:
        table |= per_architecture.get(gpu.architecture, {})
    else:
        table |= per_gpu[measured] | {"measured_on": measured}
        if measured != gpu.name:
            table["origin"] = "extrapolated"
    return profile_from_table(table, file=f"{name}.toml")


def _nearest_measured(gpu: GPU, measured: list[str]) -> str | None:
    """The GPU itself, the one whose kernel tables it takes, or the first of its architecture."""
    for name in (gpu.name, gpu.efficiency):
        if name in measured:
            return name
    alike = (n for n in measured if catalog.gpu(n).architecture == gpu.architecture)
    return next(alike, None)


def profile_from_table(table: dict[str, Any], *, file: str) -> EngineProfile:
    """One profile from a flat table whose keys carry their units."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key in _SCALED:
            field, unit = _SCALED[key]
            values[field] = value * unit
        elif key in _PLAIN:
            values[key] = value
        else:
            known = ", ".join(sorted(_PLAIN | _SCALED.keys()))
            raise ConfigError(f"{file}: unknown key {key!r}. Known: {known}.")
    return EngineProfile(**values)
