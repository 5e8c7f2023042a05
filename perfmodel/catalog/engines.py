"""Engine profiles: `catalog/engines/*.toml`, read into `EngineProfile`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from perfmodel import catalog
from perfmodel.catalog._files import names, table, user_table
from perfmodel.catalog._schema import build, build_rows
from perfmodel.errors import ConfigError, unknown_name
from perfmodel.specs.engine import EngineProfile, HostCosts
from perfmodel.specs.gpu import GPU
from perfmodel.specs.labels import Origin
from perfmodel.units import GB, US

# How the keys of a file end, by the ending of the field in SI units.
_UNITS = {"_s": ("_us", US), "_bytes": ("_GB", GB)}


def engine_names() -> list[str]:
    """Names of the engine profiles in the catalog."""
    return list(names("engines"))


def engine_profile(
    name: str, gpu: GPU | None = None, *, curves_of: str | None = None
) -> EngineProfile:
    """The profile `name`, with the values it holds for this GPU, or for none in particular.

    A name without its version, such as "vllm", stands for the newest one; a name that ends in
    .toml is the path of a profile, as `specroof calibrate engine` writes it.

    Where the engine was not measured on the GPU, the values of one of its architecture are
    transferred: of the one whose kernel tables serve it, if it is among them, else of the first in
    the file. Their curves go with them (`measured_on`).

    Parameters
    ----------
    curves_of : str, optional
        The measured GPU to transfer from, even where the GPU itself was measured.

    Raises
    ------
    ConfigError
        For an unknown engine, a file with an unknown key, or a GPU of `curves_of` on which the
        engine was not measured.
    """
    if name.endswith(".toml"):
        return _for_gpu(user_table(name, "an engine profile"), name, gpu, curves_of)
    return _catalog_profile(_newest(name), gpu, curves_of)


@cache
def _catalog_profile(name: str, gpu: GPU | None, curves_of: str | None) -> EngineProfile:
    return _for_gpu(table("engines", name), f"engines/{name}.toml", gpu, curves_of)


def _newest(name: str) -> str:
    """The catalog's name of an engine that is given with its version, or without it."""
    if name in engine_names():
        return name
    versions = {
        other: tuple(int(part) for part in version.split("."))
        for other in engine_names()
        for base, _, version in [other.rpartition("-")]
        if base == name and version.replace(".", "").isdecimal()
    }
    if not versions:
        raise unknown_name("engine", name, engine_names())
    return max(versions, key=lambda other: versions[other])


def _for_gpu(
    values: dict[str, Any], where: str, gpu: GPU | None, curves_of: str | None
) -> EngineProfile:
    """The profile of a file's entries on a GPU."""
    per_gpu, per_architecture = values.pop("gpu", {}), values.pop("architecture", {})
    if curves_of is not None and curves_of not in per_gpu:
        known = ", ".join(per_gpu) or "none"
        engine = values.get("name", where)
        raise ConfigError(f"engine {engine} was not measured on {curves_of!r}; measured: {known}")
    if gpu is None:
        return profile_from_table(values, file=where)
    measured = curves_of or _nearest_measured(gpu, list(per_gpu))
    if measured is None:
        values |= per_architecture.get(gpu.architecture, {})
    else:
        values |= per_gpu[measured] | {"measured_on": measured}
        if measured != gpu.name:
            values["origin"] = Origin.EXTRAPOLATED
    return profile_from_table(values, file=where)


def _nearest_measured(gpu: GPU, measured: list[str]) -> str | None:
    """The GPU itself, the one whose kernel tables it takes, or the first of its architecture."""
    for name in (gpu.name, gpu.efficiency):
        if name in measured:
            return name
    related = (n for n in measured if catalog.gpu(n).architecture == gpu.architecture)
    return next(related, None)


def profile_from_table(entries: Mapping[str, Any], *, file: str) -> EngineProfile:
    """One profile from a flat table whose keys carry their units, such as `kernel_gap_us`.

    Raises
    ------
    ConfigError
        If a key is unknown, missing or of the wrong type; `file` names the file in the message.
    """
    hosts = build_rows(HostCosts, entries.get("host", ()), f"{file}: host", _UNITS)
    return build(EngineProfile, {**entries, "host": hosts}, file, _UNITS)
