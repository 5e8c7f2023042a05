"""The catalog: GPUs, machines and models, read from the TOML files of its folders.

A figure there cannot exist without unit and source (`_schema.py`); files are read one at a time,
when asked for, and once. Any other dense model comes by the path of its `config.json`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from perfmodel.catalog._config_file import read_hf_config
from perfmodel.catalog._files import names, table, text
from perfmodel.catalog._schema import (
    Bandwidth,
    Compute,
    Count,
    Figure,
    Size,
    Table,
    Text,
    parse_toml,
    read,
)
from perfmodel.errors import ConfigError, unknown_name
from perfmodel.specs.gpu import GPU, Link, Machine
from perfmodel.specs.hf_config import from_hf_config, one_line, shown
from perfmodel.specs.labels import Origin
from perfmodel.specs.model import ModelSpec

# ---- GPUs -----------------------------------------------------------------------------------


def gpu(name: str) -> GPU:
    """The GPU of that name, in any case.

    Raises
    ------
    ConfigError
        If the catalog lacks it; the nearest names are suggested.
    """
    return _gpu(_known(name, "GPU", gpu_names()))


def gpu_names() -> tuple[str, ...]:
    """Every GPU of the catalog, sorted."""
    return names("gpus")


def default_machine(gpu_name: str) -> Machine:
    """The machine that a GPU is usually found in; errors as `gpu`."""
    return machine(table("gpus", _known(gpu_name, "GPU", gpu_names()))["default_machine"])


class _Curves(Table):
    of: Text
    origin: Literal[Origin.FITTED, Origin.EXTRAPOLATED]
    reason: Text


class _GpuFile(Table):
    name: Text
    architecture: Text
    default_machine: Text
    efficiency: _Curves
    sm_count: Count
    dense_bf16: Compute
    memory: Size
    hbm_bandwidth: Bandwidth
    l2_cache: Size
    datasheet_memory: Size


def gpu_from_toml(content: str, *, where: str) -> GPU:
    """A GPU from its catalog file.

    Raises
    ------
    ConfigError
        If the content is not TOML, lacks a figure, holds an unknown key or unit, or states a figure
        without unit or source; `where` names the file in the message.
    """
    file = read(_GpuFile, parse_toml(content, where), where)
    curves = file.efficiency
    if (curves.origin == Origin.FITTED) != (curves.of == file.name):
        raise ConfigError(
            f"{where}: efficiency.origin={shown(str(curves.origin))} does not hold for {file.name} "
            f"with the curves of {curves.of}"
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
        datasheet_memory_bytes=file.datasheet_memory.si,
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
    """The machine of that name, in any case; errors as `gpu`."""
    return _machine(_known(name, "machine", machine_names()))


def machine_names() -> tuple[str, ...]:
    """Every machine of the catalog, sorted."""
    return names("machines")


class _LinkTable(Table):
    kind: Literal["nvlink", "pcie", "infinity-fabric"]
    bandwidth: Bandwidth


class _MachineFile(Table):
    name: Text
    gpu: Text
    gpus_per_node: Count
    link: _LinkTable


def machine_from_toml(content: str, *, where: str) -> Machine:
    """A machine from its catalog file, with its GPU from the catalog; errors as `gpu_from_toml`."""
    file = read(_MachineFile, parse_toml(content, where), where)
    bandwidth = file.link.bandwidth
    return Machine(
        name=file.name,
        gpu=gpu(file.gpu),
        link=Link(kind=file.link.kind, bandwidth=bandwidth.si, source=bandwidth.source),
        gpus_per_node=int(file.gpus_per_node.si),
        source=file.gpus_per_node.source,
    )


@cache
def _machine(name: str) -> Machine:
    return machine_from_toml(text("machines", name), where=f"machines/{name}.toml")


# ---- models ---------------------------------------------------------------------------------


def model(name_or_hub_id_or_path: str) -> ModelSpec:
    """The model of that catalog name or hub id (in any case), or of that `config.json`.

    A path is that of the file or of its directory; a catalog name wins over a directory of the
    same name, which is reached as `./name`. Paths are read anew on every call.

    Raises
    ------
    ConfigError
        If there is neither such a model nor such a file, or the file is not the config of a
        supported model.
    """
    wanted = name_or_hub_id_or_path
    if wanted.lower() in model_names():
        return _model(wanted.lower())
    if "/" in wanted and wanted.lower() in _hub_ids():
        return _model(_hub_ids()[wanted.lower()])
    if _is_path(wanted):
        path = Path(wanted)
        config = read_hf_config(path)
        holder = path.parent if path.name == "config.json" else path
        name = one_line(holder.resolve().name.removesuffix(".json"))
        return replace(from_hf_config(config, name=name), source=one_line(wanted))
    raise unknown_name("model", one_line(wanted), model_names())


def model_names() -> tuple[str, ...]:
    """Every model of the catalog, sorted."""
    return names("models")


class _ModelFile(Table):
    name: Text
    hub_ids: Annotated[list[Text], Field(min_length=1)]
    tokenizer: Text  # models of one tokenizer can draft for each other
    source: Text
    null_fields: tuple[Text, ...] = ()  # of `config`: those that are null, which TOML cannot write
    config: dict[str, Any]  # the model's `config.json`


def model_from_toml(content: str, *, where: str) -> ModelSpec:
    """A model from its catalog file; errors as `gpu_from_toml`, and those of `from_hf_config`."""
    file = read(_ModelFile, parse_toml(content, where), where)
    return replace(
        from_hf_config(file.config | dict.fromkeys(file.null_fields), name=file.name),
        hub_id=file.hub_ids[0],
        tokenizer=file.tokenizer,
        source=file.source,
    )


def model_config(name_or_hub_id: str) -> dict[str, Any]:
    """The `config.json` of a catalog model; errors as `model`."""
    name = model(name_or_hub_id).name
    if name not in model_names():
        raise unknown_name("model", one_line(name_or_hub_id), model_names())
    file = read(_ModelFile, table("models", name), f"models/{name}.toml")
    return file.config | dict.fromkeys(file.null_fields)


@cache
def _model(name: str) -> ModelSpec:
    return model_from_toml(text("models", name), where=f"models/{name}.toml")


@cache
def _hub_ids() -> dict[str, str]:
    """Catalog name of every hub id, in lower case; an id of two models is refused."""
    owners: dict[str, str] = {}
    for name in model_names():
        where = f"models/{name}.toml"
        for hub_id in read(_ModelFile, table("models", name), where).hub_ids:
            if hub_id.lower() in owners:
                raise ConfigError(f"{where}: hub id {hub_id} is also of {owners[hub_id.lower()]}")
            owners[hub_id.lower()] = name
    return owners


def _is_path(name: str) -> bool:
    if name.endswith(".json") or name.startswith(("/", "./", "../")) or name in (".", ".."):
        return True
    try:
        return bool(name) and Path(name).is_dir()
    except OSError:  # too long for a file name: no path
        return False


# ---- names ----------------------------------------------------------------------------------


def _known(name: str, kind: str, known: tuple[str, ...]) -> str:
    if name.lower() not in known:
        raise unknown_name(kind, one_line(name), known)
    return name.lower()
