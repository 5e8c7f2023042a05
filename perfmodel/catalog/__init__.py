"""The catalog: GPUs, machines and models, read from the TOML files in its folders.

Every figure in it has a unit and a source (`_schema.py`). Each file is read once, when it is first
needed. Other models are read from their `config.json`, and other GPUs from a TOML file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Literal

from perfmodel.catalog._files import names, table, text, user_table
from perfmodel.catalog._schema import (
    Bandwidth,
    Compute,
    Count,
    Duration,
    Figure,
    Size,
    Table,
    Text,
    parse_toml,
    read,
)
from perfmodel.catalog.models import draft_models as draft_models
from perfmodel.catalog.models import hub_ids as hub_ids
from perfmodel.catalog.models import instruct_id as instruct_id
from perfmodel.catalog.models import model as model
from perfmodel.catalog.models import model_config as model_config
from perfmodel.catalog.models import model_from_toml as model_from_toml
from perfmodel.catalog.models import model_names as model_names
from perfmodel.errors import ConfigError, printable, shown, unknown_name
from perfmodel.specs.gpu import GPU, Link, Machine
from perfmodel.specs.labels import Origin

MAX_NAME = 60  # characters of the name of a GPU that a user describes

# ---- GPUs -----------------------------------------------------------------------------------


def gpu(name_or_path: str) -> GPU:
    """The GPU with that name, in upper or lower case, or of a file whose name ends in .toml.

    Raises `ConfigError` if the name is unknown, or the file is not valid (`machine_of_gpu_file`).
    """
    if name_or_path.endswith(".toml"):
        return default_machine(name_or_path).gpu
    return _gpu(_known(name_or_path, "GPU", gpu_names()))


def gpu_names() -> tuple[str, ...]:
    """The names of all GPUs, sorted."""
    return names("gpus")


def default_machine(gpu_name_or_path: str) -> Machine:
    """The machine in which a GPU is usually found, or of a GPU's file; errors as in `gpu`."""
    name = gpu_name_or_path
    if name.endswith(".toml"):
        return machine_of_gpu_file(user_table(name, "a GPU"), where=name)
    return machine(_default_machine_name(_known(name, "GPU", gpu_names())))


@cache
def _default_machine_name(gpu_name: str) -> str:
    return str(table("gpus", gpu_name)["default_machine"])


class _Curves(Table):
    of: Text
    origin: Literal[Origin.FITTED, Origin.EXTRAPOLATED]
    reason: Text


class _GpuTable(Table):
    name: Text
    architecture: Text
    efficiency: _Curves
    sm_count: Count
    dense_bf16: Compute
    memory: Size
    hbm_bandwidth: Bandwidth
    l2_cache: Size


class _GpuFile(_GpuTable):
    default_machine: Text
    datasheet_memory: Size


def gpu_from_toml(content: str, *, where: str) -> GPU:
    """A GPU from the content of its catalog file.

    Raises `ConfigError` if the content is not TOML, lacks a figure, has an unknown key or unit, or
    states a figure without unit or source; `where` is the file named in the message.
    """
    file = read(_GpuFile, parse_toml(content, where), where)
    sheet = _described(file, where)
    return replace(sheet, datasheet_memory_bytes=file.datasheet_memory.si)


def _described(file: _GpuTable, where: str) -> GPU:
    curves = file.efficiency
    if (curves.origin == Origin.FITTED) != (curves.of == file.name):
        raise ConfigError(
            f"{where}: efficiency.origin={shown(str(curves.origin))} contradicts "
            f"efficiency.of={shown(curves.of)}; curves are fitted if they were measured on "
            f"the GPU itself, otherwise extrapolated"
        )
    sources = (value.source for _, value in file if isinstance(value, Figure))
    return GPU(
        name=file.name,
        architecture=file.architecture,
        sm_count=int(file.sm_count.si),
        peak_flops=file.dense_bf16.si,
        memory_bytes=file.memory.si,
        hbm_bandwidth=file.hbm_bandwidth.si,
        l2_bytes=file.l2_cache.si,
        efficiency=curves.of,
        efficiency_origin=curves.origin,
        efficiency_reason=curves.reason,
        source="; ".join(dict.fromkeys(sources)),
    )


@cache
def _gpu(name: str) -> GPU:
    return gpu_from_toml(text("gpus", name), where=f"gpus/{name}.toml")


# ---- machines -------------------------------------------------------------------------------


def machine(name: str) -> Machine:
    """The machine with that name, in upper or lower case; `ConfigError` if it is unknown."""
    return _machine(_known(name, "machine", machine_names()))


def machine_names() -> tuple[str, ...]:
    """The names of all machines, sorted."""
    return names("machines")


class _LinkTable(Table):
    kind: Literal["nvlink", "pcie", "infinity-fabric"]
    bandwidth: Bandwidth
    ring_hop: Duration | None = None
    ring_bandwidth: Bandwidth | None = None


class _Node(Table):
    gpus_per_node: Count
    link: _LinkTable


class _MachineFile(_Node):
    name: Text
    gpu: Text


class _UserGpuFile(_GpuTable):
    machine: _Node


def machine_from_toml(content: str, *, where: str) -> Machine:
    """A machine from the content of its catalog file; errors as in `gpu_from_toml`."""
    file = read(_MachineFile, parse_toml(content, where), where)
    return _node(file, file.name, gpu(file.gpu))


def machine_of_gpu_file(entries: Mapping[str, Any], *, where: str) -> Machine:
    """The machine of a GPU that a user describes; `where` is the path of the file.

    The entries are those of a GPU in the catalog, with a table `machine` (`gpus_per_node`, `link`)
    instead of `default_machine`. The kernel curves are those of a measured GPU. Raises
    `ConfigError` as `gpu_from_toml`, or if the name is that of a GPU in the catalog.
    """
    file = read(_UserGpuFile, entries, where)
    if file.name != printable(file.name) or len(file.name) > MAX_NAME:
        raise ConfigError(f"{where}: name={shown(file.name)} is not one line of text")
    if file.name.lower() in gpu_names():
        raise ConfigError(f"{where}: name={shown(file.name)} is a GPU of the catalog; use another")
    measured = names("efficiency")
    if file.efficiency.of not in measured:
        unknown = unknown_name("efficiency.of", printable(file.efficiency.of), measured)
        raise ConfigError(f"{where}: {unknown}")
    sheet = replace(_described(file, where), path=where)
    return _node(file.machine, f"{int(file.machine.gpus_per_node.si)}x{file.name}", sheet)


def _node(file: _Node, name: str, gpu: GPU) -> Machine:
    link, hop, rate = file.link, file.link.ring_hop, file.link.ring_bandwidth
    sources = (figure.source for figure in (link.bandwidth, hop, rate) if figure is not None)
    return Machine(
        name=name,
        gpu=gpu,
        link=Link(
            kind=link.kind,
            bandwidth=link.bandwidth.si,
            source="; ".join(dict.fromkeys(sources)),
            ring_hop_s=None if hop is None else hop.si,
            ring_bandwidth=None if rate is None else rate.si,
        ),
        gpus_per_node=int(file.gpus_per_node.si),
        source=file.gpus_per_node.source,
    )


@cache
def _machine(name: str) -> Machine:
    return machine_from_toml(text("machines", name), where=f"machines/{name}.toml")


# ---- names ----------------------------------------------------------------------------------


def _known(name: str, kind: str, known: tuple[str, ...]) -> str:
    if name.lower() not in known:
        raise unknown_name(kind, printable(name), known)
    return name.lower()
