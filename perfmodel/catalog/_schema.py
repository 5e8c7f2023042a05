"""Checked reading of the catalog's TOML: no figure without unit and source, no unknown key.

A figure is an inline table, so that its unit and its source cannot be left out:

    hbm_bandwidth = { value = 2.039, unit = "TB/s", source = "NVIDIA A100 80GB datasheet, 2021" }
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perfmodel.errors import ConfigError
from perfmodel.specs.hf_config import one_line, shown
from perfmodel.units import GB, GIB, MB, MIB, TB, TFLOP

# What one unit of each dimension is in SI; a figure may carry only the units of its dimension.
UNITS: dict[str, dict[str, float]] = {
    "size": {"MB": MB, "MiB": MIB, "GB": GB, "GiB": GIB},
    "bandwidth": {"GB/s": GB, "TB/s": TB},
    "compute": {"TFLOP/s": TFLOP, "TOP/s": TFLOP},
    "power": {"W": 1.0},
    "count": {"1": 1.0},
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A positive number in SI units and the document that states it."""

    value: float
    source: str


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The entries of a TOML document.

    Raises
    ------
    ConfigError
        If `text` is malformed or nested too deeply; `where` names the file in the message.
    """
    import tomllib  # here and not above: naming what the catalog holds needs no parser

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = one_line(str(error))
        raise ConfigError(f"{where}: not valid TOML ({reason}); mend the line it names") from error
    except ValueError as error:  # tomllib lets int() speak: a number of thousands of digits
        raise ConfigError(f"{where}: a number is too long; write it in its own unit") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply; a catalog file has two levels") from error


def check_keys(
    entries: Mapping[str, Any],
    where: str,
    *,
    required: tuple[str, ...],
    optional: tuple[str, ...] = (),
) -> None:
    """Refuse a table that lacks a required key or holds one that nobody reads."""
    known = (*required, *optional)
    for key in entries:
        if key not in known:
            raise ConfigError(
                f"{where}: unknown key {shown(key)}; the keys here are {', '.join(known)}"
            )
    for key in required:
        if key not in entries:
            raise ConfigError(f"{where}: {key} is missing; add it")


def text_entry(entries: Mapping[str, Any], key: str, where: str) -> str:
    """A string that is not blank."""
    value = entries[key]
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {key}={shown(value)} must be text that is not empty")
    return value


def texts_entry(entries: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """A list of strings, at least one."""
    value = entries[key]
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise ConfigError(f"{where}: {key}={shown(value)} must be a list of at least one text")
    return tuple(value)


def table_entry(entries: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """A table inside a table."""
    value = entries[key]
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {key}={shown(value)} must be a table, [{key}]")
    return value


def figure_entry(entries: Mapping[str, Any], key: str, where: str, dimension: str) -> Figure:
    """A number with its unit and source, in SI units.

    Raises
    ------
    ConfigError
        If value, unit or source is missing, the unit is not one of the dimension's, or the value
        is not a positive finite number.
    """
    example = next(iter(UNITS[dimension]))
    entry = entries[key]
    if not isinstance(entry, dict):
        raise ConfigError(
            f"{where}: {key}={shown(entry)} has no unit and no source; write "
            f'{key} = {{ value = ..., unit = "{example}", source = "..." }}'
        )
    inside = f"{where}: {key}"
    check_keys(entry, inside, required=("value", "unit", "source"))
    value, unit = entry["value"], entry["unit"]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{inside}: value={shown(value)} must be a positive finite number")
    if not isinstance(unit, str) or unit not in UNITS[dimension]:
        known = ", ".join(UNITS[dimension])
        raise ConfigError(f"{inside}: unknown unit {shown(unit)}; use one of {known}")
    return Figure(value * UNITS[dimension][unit], text_entry(entry, "source", inside))


def count_entry(entries: Mapping[str, Any], key: str, where: str) -> int:
    """A figure that counts things."""
    value = figure_entry(entries, key, where, "count").value
    if not value.is_integer():
        raise ConfigError(f"{where}: {key}={shown(value)} must be a whole number")
    return int(value)
