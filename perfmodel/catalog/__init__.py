"""The catalog: GPUs, machines and models, read from the TOML files beside this one.

A figure there cannot exist without unit and source (`_schema.py`); files are read one at a time,
when asked for, and once. Any other dense model comes by the path of its `config.json`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfmodel.catalog._config_file import read_hf_config
from perfmodel.catalog._schema import (
    check_keys,
    count_entry,
    figure_entry,
    parse_toml,
    table_entry,
    text_entry,
    texts_entry,
)
from perfmodel.errors import ConfigError, unknown_name
from perfmodel.specs.gpu import GPU, Link, Machine
from perfmodel.specs.hf_config import from_hf_config, one_line, shown
from perfmodel.specs.model import ModelSpec

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = [
    "default_machine",
    "gpu",
    "gpu_from_toml",
    "gpu_names",
    "machine",
    "machine_from_toml",
    "machine_names",
    "model",
    "model_from_toml",
    "model_names",
]

LINK_KINDS = ("nvlink", "pcie", "infinity-fabric")

# Figures of a GPU file: the field of `GPU` that takes each, and its dimension.
_GPU_FIGURES = {
    "sm_count": ("sm_count", "count"),
    "dense_bf16": ("peak_flops", "compute"),
    "memory": ("memory_bytes", "size"),
    "hbm_bandwidth": ("hbm_bandwidth", "bandwidth"),
    "l2_cache": ("l2_bytes", "size"),
    "power": ("power_w", "power"),
    "datasheet_memory": ("datasheet_memory_bytes", "size"),
}
_OPTIONAL_GPU_FIGURES = {
    "dense_fp8": ("peak_flops_fp8", "compute"),
    "dense_int8": ("peak_ops_int8", "compute"),
}


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
    return _names("gpus")


def default_machine(gpu_name: str) -> Machine:
    """The machine that a GPU is usually found in.

    Raises
    ------
    ConfigError
        If the catalog lacks the GPU.
    """
    name = _known(gpu_name, "GPU", gpu_names())
    return machine(parse_toml(_text("gpus", name), f"gpus/{name}.toml")["default_machine"])


def gpu_from_toml(text: str, *, where: str) -> GPU:
    """A GPU from the text of its catalog file.

    Raises
    ------
    ConfigError
        If the text is not TOML, lacks a figure, holds an unknown key or unit, or states a figure
        without unit or source; `where` names the file in the message.
    """
    entries = parse_toml(text, where)
    check_keys(
        entries,
        where,
        required=("name", "architecture", "default_machine", "efficiency", *_GPU_FIGURES),
        optional=tuple(_OPTIONAL_GPU_FIGURES),
    )
    name = text_entry(entries, "name", where)
    figures = {
        field: figure_entry(entries, key, where, dimension)
        for key, (field, dimension) in (_GPU_FIGURES | _OPTIONAL_GPU_FIGURES).items()
        if key in entries
    }
    values: dict[str, Any] = {field: figure.value for field, figure in figures.items()}
    values["sm_count"] = count_entry(entries, "sm_count", where)
    values |= _efficiency(entries, name, where)
    text_entry(entries, "default_machine", where)
    return GPU(
        name=name,
        architecture=text_entry(entries, "architecture", where),
        figure_sources=tuple((field, figure.source) for field, figure in figures.items()),
        source="; ".join(dict.fromkeys(figure.source for figure in figures.values())),
        **values,
    )


def _efficiency(entries: dict[str, Any], gpu_name: str, where: str) -> dict[str, str]:
    """Name of the fitted curves, whether they are this GPU's own, and why these were chosen."""
    inside = f"{where}: efficiency"
    table = table_entry(entries, "efficiency", where)
    check_keys(table, inside, required=("of", "origin", "reason"))
    curves = text_entry(table, "of", inside)
    origin = text_entry(table, "origin", inside)
    expected = "fitted" if curves == gpu_name else "extrapolated"
    if origin != expected:
        raise ConfigError(
            f"{inside}: origin={shown(origin)} does not hold for {gpu_name} with the curves of "
            f"{curves}; use {expected}"
        )
    reason = text_entry(table, "reason", inside)
    return {"efficiency": curves, "efficiency_origin": origin, "efficiency_reason": reason}


@cache
def _gpu(name: str) -> GPU:
    where = f"gpus/{name}.toml"
    spec = gpu_from_toml(_text("gpus", name), where=where)
    _check_stem(spec.name, name, where)
    return spec


# ---- machines -------------------------------------------------------------------------------


def machine(name: str) -> Machine:
    """The machine of that name, in any case.

    Raises
    ------
    ConfigError
        If the catalog lacks it; the nearest names are suggested.
    """
    return _machine(_known(name, "machine", machine_names()))


def machine_names() -> tuple[str, ...]:
    """Every machine of the catalog, sorted."""
    return _names("machines")


def machine_from_toml(text: str, *, where: str) -> Machine:
    """A machine from the text of its catalog file; its GPU comes from the catalog.

    Raises
    ------
    ConfigError
        As `gpu_from_toml`, or if the catalog lacks the GPU or the kind of link is unknown.
    """
    entries = parse_toml(text, where)
    check_keys(entries, where, required=("name", "gpu", "gpus_per_node", "link"))
    inside = f"{where}: link"
    table = table_entry(entries, "link", where)
    check_keys(table, inside, required=("kind", "bandwidth"))
    kind = text_entry(table, "kind", inside)
    if kind not in LINK_KINDS:
        raise ConfigError(f"{inside}: kind={shown(kind)} unknown; use {', '.join(LINK_KINDS)}")
    bandwidth = figure_entry(table, "bandwidth", inside, "bandwidth")
    return Machine(
        name=text_entry(entries, "name", where),
        gpu=gpu(text_entry(entries, "gpu", where)),
        link=Link(kind=kind, bandwidth=bandwidth.value, source=bandwidth.source),
        gpus_per_node=count_entry(entries, "gpus_per_node", where),
        source=figure_entry(entries, "gpus_per_node", where, "count").source,
    )


@cache
def _machine(name: str) -> Machine:
    where = f"machines/{name}.toml"
    spec = machine_from_toml(_text("machines", name), where=where)
    _check_stem(spec.name, name, where)
    return spec


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
    raise _unknown("model", wanted, model_names())


def model_names() -> tuple[str, ...]:
    """Every model of the catalog, sorted."""
    return _names("models")


def model_from_toml(text: str, *, where: str) -> ModelSpec:
    """A model from the text of its catalog file.

    `[config]` holds the fields of the model's own `config.json` by their own names;
    `null_fields` lists those that are null there, which TOML cannot write. Models of one
    `tokenizer` can draft for each other.

    Raises
    ------
    ConfigError
        As `gpu_from_toml`, or if `[config]` is not that of a supported model.
    """
    entries = _model_entries(text, where)
    name = text_entry(entries, "name", where)
    config = table_entry(entries, "config", where)
    if "null_fields" in entries:
        config |= dict.fromkeys(texts_entry(entries, "null_fields", where))
    return replace(
        from_hf_config(config, name=name),
        hub_id=texts_entry(entries, "hub_ids", where)[0],
        tokenizer=text_entry(entries, "tokenizer", where),
        source=text_entry(entries, "source", where),
    )


def _model_entries(text: str, where: str) -> dict[str, Any]:
    entries = parse_toml(text, where)
    required = ("name", "hub_ids", "tokenizer", "source", "config")
    check_keys(entries, where, required=required, optional=("null_fields",))
    return entries


@cache
def _model(name: str) -> ModelSpec:
    where = f"models/{name}.toml"
    spec = model_from_toml(_text("models", name), where=where)
    _check_stem(spec.name, name, where)
    return spec


@cache
def _hub_ids() -> dict[str, str]:
    """Catalog name of every hub id, in lower case; an id of two models is refused."""
    names: dict[str, str] = {}
    for name in model_names():
        where = f"models/{name}.toml"
        for hub_id in texts_entry(_model_entries(_text("models", name), where), "hub_ids", where):
            if hub_id.lower() in names:
                raise ConfigError(f"{where}: hub id {hub_id} is also of {names[hub_id.lower()]}")
            names[hub_id.lower()] = name
    return names


def _is_path(text: str) -> bool:
    if text.endswith(".json") or text.startswith(("/", "./", "../")) or text in (".", ".."):
        return True
    try:
        return bool(text) and Path(text).is_dir()
    except OSError:  # too long for a file name: no path
        return False


# ---- files ----------------------------------------------------------------------------------


@cache
def _names(kind: str) -> tuple[str, ...]:
    entries = (entry.name for entry in _files().joinpath(kind).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in entries if name.endswith(".toml")))


def _text(kind: str, name: str) -> str:
    return _files().joinpath(kind, f"{name}.toml").read_text(encoding="utf-8")


@cache
def _files() -> Traversable:
    from importlib.resources import files  # takes 10 ms, a third of this package's import

    return files(__name__)


def _known(name: str, kind: str, names: tuple[str, ...]) -> str:
    if name.lower() not in names:
        raise _unknown(kind, name, names)
    return name.lower()


def _unknown(kind: str, name: str, names: tuple[str, ...]) -> ConfigError:
    return unknown_name(kind, one_line(name), names)


def _check_stem(name: str, stem: str, where: str) -> None:
    if name != stem:
        raise ConfigError(f"{where}: name={shown(name)} differs from the file's; use {stem}")
