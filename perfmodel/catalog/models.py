"""Models of the catalog, and those of a user's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from perfmodel.catalog._config_file import read_hf_config
from perfmodel.catalog._files import names, table, text
from perfmodel.catalog._schema import Table, Text, parse_toml, read
from perfmodel.errors import ConfigError, printable, unknown_name
from perfmodel.specs.checkpoint.quantisation import without_quantisation
from perfmodel.specs.families import check_modelled, model_spec
from perfmodel.specs.model import ModelSpec, checkpoint_variant


def model(name_or_hub_id_or_path: str) -> ModelSpec:
    """A model by its catalog name, its hub id, or the path of its `config.json` or directory.

    Names and ids may be in upper or lower case. A catalog name takes precedence over a directory of
    the same name; write `./name` for the directory. Files are read again on every call. Raises
    `ConfigError` if neither such a model nor such a file exists, or the model is not supported.
    """
    wanted = name_or_hub_id_or_path
    if wanted.lower() in model_names():
        return _model(wanted.lower())
    if "/" in wanted and wanted.lower() in hub_ids():
        name, hub_id = hub_ids()[wanted.lower()]
        return replace(_model(name), hub_id=hub_id, checkpoint=hub_id)
    if _is_path(wanted):
        path = Path(wanted)
        config = read_hf_config(path)
        folder = path.parent if path.name == "config.json" else path
        name = printable(folder.resolve().name.removesuffix(".json"))
        return replace(_model_spec(config, name), source=printable(wanted))
    unknown = unknown_name("model", printable(wanted), model_names())
    raise ConfigError(f"{unknown.args[0].rstrip('?')}, or give the path of its config.json")


def model_names() -> tuple[str, ...]:
    """The names of all models, sorted."""
    return names("models")


def draft_models(target: ModelSpec) -> list[ModelSpec]:
    """The catalog models with a target's tokenizer and less than a third of its parameters."""
    same = [n for n, file in _model_files().items() if file.tokenizer == target.tokenizer]
    return [model for model in map(_model, same) if 3 * model.parameters < target.parameters]


class _ModelFile(Table):
    name: Text
    hub_ids: Annotated[list[Text], Field(min_length=1)]
    tokenizer: Text  # models with the same tokenizer can draft for each other
    source: Text
    null_fields: tuple[
        Text, ...
    ] = ()  # fields of `config` that are null, which TOML cannot express
    config: dict[str, Any]  # the model's `config.json`

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the model's `config.json`, including null ones."""
        fields = dict(self.config)
        for path in self.null_fields:
            parent, _, field = path.rpartition(".")
            if parent:
                fields[parent] = {**fields[parent], field: None}
            else:
                fields[field] = None
        return fields


def model_from_toml(content: str, *, where: str) -> ModelSpec:
    """A model from its catalog file; errors as in `gpu_from_toml` and `model_spec`."""
    file = read(_ModelFile, parse_toml(content, where), where)
    return replace(
        _model_spec(file.fields, file.name),
        hub_id=file.hub_ids[0],
        tokenizer=file.tokenizer,
        source=file.source,
    )


def _model_spec(config: Mapping[str, Any], name: str) -> ModelSpec:
    """The spec of a config, with the storage types of its checkpoint."""
    check_modelled(config, name)
    rest, quantisation = without_quantisation(config, name)
    spec = model_spec(rest, name=name)
    stored, floats = quantisation.stored(spec), _float_type(config)
    half = "fp16" if floats == "float16" and not any(stored) else ""
    return replace(
        spec,
        weight_dtype=stored.weights or half,
        expert_dtype=stored.experts if spec.experts else "",
        kv_dtype=stored.kv or half,
        cast_from=floats if floats in ("float32", "float64") else "",
        part_dtypes=stored.parts,
        scale_bytes=quantisation.scales,
    )


def _float_type(config: Mapping[str, Any]) -> str:
    """The type of unquantised weights that a config states, or its text decoder; else ""."""
    text = config.get("text_config")
    for fields in (text if isinstance(text, Mapping) else {}, config):
        stated = fields.get("dtype") or fields.get("torch_dtype")
        if isinstance(stated, str):
            return stated.removeprefix("torch.")
    return ""


def model_config(name_or_hub_id: str) -> dict[str, Any]:
    """The `config.json` of a catalog model; errors as in `model`."""
    name = model(name_or_hub_id).name
    if name not in model_names():
        raise unknown_name("model", printable(name_or_hub_id), model_names())
    return read(_ModelFile, table("models", name), f"models/{name}.toml").fields


@cache
def _model(name: str) -> ModelSpec:
    return model_from_toml(text("models", name), where=f"models/{name}.toml")


def instruct_id(name: str) -> str:
    """The hub id of a model's checkpoint that follows instructions; "" if none is known."""
    ids = (hub_id for owner, hub_id in hub_ids().values() if owner == name)
    return next((i for i in ids if checkpoint_variant(i) == "instruct"), "")


@cache
def hub_ids() -> dict[str, tuple[str, str]]:
    """For every hub id in lower case, the catalog name of its model, and the id as published."""
    owners: dict[str, tuple[str, str]] = {}
    for name, file in _model_files().items():
        for hub_id in file.hub_ids:
            if hub_id.lower() in owners:
                raise ConfigError(
                    f"models/{name}.toml: hub id {hub_id} also belongs to "
                    f"{owners[hub_id.lower()][0]}"
                )
            owners[hub_id.lower()] = (name, hub_id)
    return owners


@cache
def _model_files() -> dict[str, _ModelFile]:
    return {
        name: read(_ModelFile, table("models", name), f"models/{name}.toml")
        for name in model_names()
    }


def _is_path(name: str) -> bool:
    if name.endswith(".json") or name.startswith(("/", "./", "../")) or name in (".", ".."):
        return True
    try:
        return bool(name) and Path(name).is_dir()
    except OSError:  # too long for a file name
        return False
