"""Read a `config.json`, which must be one JSON object in plain UTF-8."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

from perfmodel.errors import ConfigError, os_reason, printable, shown
from perfmodel.input_file import distinct
from perfmodel.specs.checkpoint.quantisation import without_quantisation

MAX_CONFIG_BYTES = 4_000_000  # some list every quantised module
# Files next to config.json in which quantised checkpoints state their format.
QUANTIZATION_FILES = {  # and the method that each implies
    "hf_quant_config.json": "modelopt",
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
}


def read_hf_config(path: Path) -> dict[str, Any]:
    """The fields of a `config.json`, given its path or that of its directory.

    If a file next to it states a quantisation, the result has a `quantization_config`. Raises
    `ConfigError` if the file does not exist, exceeds `MAX_CONFIG_BYTES`, or is not one JSON object
    in UTF-8 without byte order mark, with distinct keys and finite numbers.
    """
    where = printable(str(path))
    config = _parse(_read_text(path, where), where)
    folder = path if path.is_dir() else path.parent
    for name, method in QUANTIZATION_FILES.items():
        file = folder / name
        if file.is_file() and (path.is_dir() or path.name == "config.json"):
            place = printable(str(file))
            stated = _parse(_read_text(file, place), place)
            beside = {"quantization_config": {"quant_method": method} | stated}
            if config.get("quantization_config") is None:
                config |= beside
            else:
                _check_same(config, beside, place)
    return config


def _check_same(config: dict[str, Any], beside: dict[str, Any], place: str) -> None:
    """Refuse a file that states other storage types than the config next to it."""
    try:
        first, second = (
            " and ".join(dict.fromkeys(filter(None, stored.types))) or "none"
            for _, stored in (without_quantisation(one, "") for one in (config, config | beside))
        )
    except ConfigError:  # of an unsupported format, which is reported when the model is made
        return
    if first != second:
        raise ConfigError(
            f"{place} states {second} as the type of quantised weights, but config.json states "
            f"{first}; remove the wrong one"
        )


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        config = json.loads(text, object_pairs_hook=distinct, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        place = f"{error.msg}, line {error.lineno} column {error.colno}"
        raise ConfigError(f"{where}: not valid JSON ({printable(place)})") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply for a config.json") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {printable(str(error))}") from error
    if not isinstance(config, dict):
        raise ConfigError(
            f"{where}: a config.json must be an object of fields, not {shown(config)}"
        )
    return config


def _read_text(path: Path, where: str) -> str:
    try:
        file = path / "config.json" if path.is_dir() else path
        if not file.is_file():
            raise ConfigError(f"{where}: no config.json found; give its path or its directory")
        with file.open("rb") as stream:
            content = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {os_reason(error)}") from error
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{where}: too large for a config.json (over {MAX_CONFIG_BYTES:,} bytes)")
    if content.startswith(BOM_UTF8):
        raise ConfigError(
            f"{where}: begins with a byte order mark, which transformers refuses; save it as "
            f"plain UTF-8"
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where}: not UTF-8 text (byte {error.start}); check that it is a config.json"
        ) from error


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number; every field must be finite")
