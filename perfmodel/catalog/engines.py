"""Read the engine profiles of `catalog/engines/*.toml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

from perfmodel import catalog
from perfmodel.catalog._files import names, table, user_table
from perfmodel.catalog._schema import build, build_rows, file_key
from perfmodel.errors import ConfigError, either, printable, unknown_name
from perfmodel.kernels import carried_share
from perfmodel.specs.draft_methods import METHODS
from perfmodel.specs.engine import EngineProfile, HostCosts
from perfmodel.specs.gpu import GPU
from perfmodel.specs.labels import Origin
from perfmodel.units import GB, US

# For the suffix of a field in SI units, the suffix of its key in a file and the unit of that key.
_UNITS = {"_s": ("_us", US), "_bytes": ("_GB", GB)}
# Least and most of the keys with these endings; the last one applies to all other numbers.
_LIMITS = {
    "sum_gap_us": (-10.0, 1e7),  # negative if it hides more of the next GEMM than it adds
    "_us": (0.0, 1e7),
    "_GB": (0.0, 1000.0),
    "prefill_compute_factor": (0.01, 100.0),
    "compute_factor": (0.01, 1.0),  # a share of the peak
    "_factor": (0.01, 100.0),
    "_error": (0.0, 2.0),
    "prefill_chunk_tokens": (1.0, 1e8),
    "": (0.0, 1e8),
}
ATTENTION_KERNELS = ("vllm", "flashinfer", "specroof")
HOST_METHODS = ("plain", "draft", *METHODS)
MAX_NAME = 100
GRAPH_SIZES = ("multiples", "mixed")
LINEAR_KERNELS = ("library", "specroof")
# How `specroof calibrate engine` obtains the measurements of each serving engine.
SERVING_ENGINES = {
    "vllm": "--out vllm.jsonl",
    "sglang": "--url URL --gpu GPU --out sglang.jsonl",
    "tensorrt-llm": "--import REPORT --method METHOD --out tensorrt-llm.jsonl",
}
ALL_REDUCES = ("best", "exchange", "ring", "nccl", "custom")


_PATCH = re.compile(r"(.+-[0-9]+\.[0-9]+)\.[0-9]+(?:\.?post[0-9]+)?")


def engine_names() -> list[str]:
    """Names of the engine profiles in the catalog."""
    return list(names("engines"))


def engine_profile(
    name: str, gpu: GPU | None = None, *, curves_of: str | None = None
) -> EngineProfile:
    """The profile `name` with its values for `gpu`, or with its general values.

    `name` without a version, such as "vllm", selects the newest version in the catalog, and a patch
    such as "vllm-0.7.2" the profile of its version. A name that ends in .toml is the path of a
    profile, such as one written by `specroof calibrate engine`.

    If the engine was not measured on the GPU, the values and kernel curves of a measured GPU of the
    same architecture are transferred (`measured_on`): preferably the one whose kernel tables the
    GPU uses, otherwise the first in the file; with `curves_of`, that GPU, even if `gpu` was
    measured too. Raises `ConfigError` for an unknown engine, a file with an unknown key, or if the
    engine was not measured on `curves_of`. Overheads of rounds and of several ranks may come from
    another GPU: the first of the architecture that has them.
    """
    if name.endswith(".toml"):
        return _for_gpu(user_table(name, "an engine profile"), name, gpu, curves_of)
    return _catalog_profile(_newest(name), gpu, curves_of)


@lru_cache(maxsize=256)  # GPUs of users are not limited in number
def _catalog_profile(name: str, gpu: GPU | None, curves_of: str | None) -> EngineProfile:
    return _for_gpu(table("engines", name), f"engines/{name}.toml", gpu, curves_of)


def _newest(name: str) -> str:
    """The catalog name of an engine or patch, with the newest version if `name` has none."""
    if name in engine_names():
        return name
    if (patch := _PATCH.fullmatch(name)) and patch[1] in engine_names():
        return patch[1]
    versions = {
        other: tuple(int(part) for part in version.split("."))
        for other in engine_names()
        for base, _, version in [other.rpartition("-")]
        if base == name and version.replace(".", "").isdecimal()
    }
    if not versions:
        raise _unknown_engine(name)
    return max(versions, key=lambda other: versions[other])


def _unknown_engine(name: str) -> ConfigError:
    """The error for a name without a profile, which for a serving engine states how to get one."""
    engine = next((e for e in SERVING_ENGINES if name.startswith(f"{e}-")), None)
    if engine is None:
        return unknown_name("engine", name, engine_names())
    known = [other for other in engine_names() if other.startswith(f"{engine}-")]
    return ConfigError(
        f"the catalog has no profile of {name}; use {either(known)}, or measure yours with "
        f"`specroof calibrate engine {SERVING_ENGINES[engine]}`"
    )


def _for_gpu(
    values: dict[str, Any], where: str, gpu: GPU | None, curves_of: str | None
) -> EngineProfile:
    """The profile on a GPU from the entries of a file."""
    per_gpu, per_architecture = values.pop("gpu", {}), values.pop("architecture", {})
    if curves_of is not None and curves_of not in per_gpu:
        known = ", ".join(per_gpu) or "none"
        engine = values.get("name", where)
        raise ConfigError(f"engine {engine} was not measured on {curves_of!r}; use one of {known}")
    if gpu is None:
        return profile_from_table(values, file=where)
    measured = curves_of or _nearest_measured(gpu, list(per_gpu))
    if measured is None:
        values |= per_architecture.get(gpu.architecture, {})
    else:
        values |= _overheads(per_gpu, measured) | per_gpu[measured] | {"measured_on": measured}
    if measured is not None and catalog.gpu(measured).architecture != gpu.architecture:
        values.pop("attention_tail_share", None)  # of that architecture's attention kernel
    if values.get("measured_on", gpu.name) != gpu.name:
        values["origin"] = Origin.EXTRAPOLATED
    profile = profile_from_table(values, file=where)
    if measured is None or measured == gpu.name:
        return profile
    share = carried_share(profile.attention_tail_share, catalog.gpu(measured), gpu)
    return replace(profile, attention_tail_share=share)


def _overheads(per_gpu: Mapping[str, Mapping[str, Any]], measured: str) -> dict[str, Any]:
    """Overheads of rounds, ranks and sampling, from the first GPU of the architecture with them."""
    kinds = ("round_", "model_draft_", "plain_host_", "rank_", "sum_", "sampling_")
    for name, section in per_gpu.items():
        values = {key: section[key] for key in section if key.startswith(kinds)}
        if values and catalog.gpu(name).architecture == catalog.gpu(measured).architecture:
            return values
    return {}


def _nearest_measured(gpu: GPU, measured: list[str]) -> str | None:
    """The GPU itself, the one whose kernel tables it uses, or the first of its architecture."""
    for name in (gpu.name, gpu.efficiency):
        if name in measured:
            return name
    related = (n for n in measured if catalog.gpu(n).architecture == gpu.architecture)
    return next(related, None)


def profile_from_table(entries: Mapping[str, Any], *, file: str) -> EngineProfile:
    """A profile from a flat table whose keys state their units, such as `kernel_gap_us`.

    A `ConfigError` names `file` and the key that is unknown, missing or of the wrong type.
    """
    hosts = build_rows(HostCosts, entries.get("host", ()), f"{file}: host", _UNITS)
    profile = build(EngineProfile, {**entries, "host": hosts}, file, _UNITS)
    _check_limits(profile, file)
    if profile.measured_on and not profile.timed_tp:
        raise ConfigError(
            f"{file}: timed_tp is empty, but the engine was measured on {profile.measured_on}; "
            f"state the numbers of ranks that were timed"
        )
    if profile.name != printable(profile.name) or len(profile.name) > MAX_NAME:
        raise ConfigError(
            f"{file}: name={printable(profile.name[:40])!r} is not valid; use at most {MAX_NAME} "
            f"printable characters"
        )
    for index, costs in enumerate(hosts):
        _check_limits(costs, file)
        if costs.method not in HOST_METHODS:
            raise ConfigError(f"{file}: host: {unknown_name('method', costs.method, HOST_METHODS)}")
        if costs.method in {other.method for other in hosts[:index]}:
            raise ConfigError(f"{file}: host: method {costs.method!r} appears twice; keep one")
        if costs.graph_sizes not in GRAPH_SIZES:
            raise ConfigError(
                f"{file}: host: {unknown_name('graph_sizes', costs.graph_sizes, GRAPH_SIZES)}"
            )
    known = {"attention_kernels": ATTENTION_KERNELS, "linear_kernels": LINEAR_KERNELS,
             "all_reduce": ALL_REDUCES}  # fmt: skip
    for key, names_of in known.items():
        if getattr(profile, key) not in names_of:
            raise ConfigError(f"{file}: {unknown_name(key, getattr(profile, key), names_of)}")
    return profile


def _check_limits(part: EngineProfile | HostCosts, file: str) -> None:
    """Refuse a coefficient that no engine can have."""
    for field in fields(part):
        value = getattr(part, field.name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        key, unit = file_key(field.name, _UNITS)
        least, most = next(limits for ending, limits in _LIMITS.items() if key.endswith(ending))
        if not least <= value / (unit or 1.0) <= most:
            raise ConfigError(
                f"{file}: {key}={value / (unit or 1.0):g} is not possible; it must be from "
                f"{least:g} to {most:g}"
            )
