"""Scenarios in flat TOML files: those of `catalog/scenarios/` and those of users."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfmodel.catalog._files import names, table, user_table
from perfmodel.errors import ConfigError, unknown_name

# Key names of earlier versions, still accepted in scenario files, CSV columns and flags.
FORMER_NAMES = {"prefix_tokens": "prompt_tokens"}


def scenario_names() -> list[str]:
    """Names of the scenarios in the catalog."""
    return list(names("scenarios"))


def scenario_values(name_or_path: str) -> dict[str, Any]:
    """Flat values of a catalog scenario, given its name, or of a file, given its path.

    Raises `ConfigError` if neither exists, or the file is not a flat TOML table.
    """
    if name_or_path in scenario_names():
        return table("scenarios", name_or_path)
    if "/" not in name_or_path and not name_or_path.endswith(".toml"):
        raise unknown_name("scenario", name_or_path, scenario_names())
    return read_scenario(name_or_path)


def read_scenario(path: str | Path) -> dict[str, Any]:
    """Flat values of a scenario file.

    Raises `ConfigError` if the file is missing, empty, too large, not UTF-8 or not a flat table.
    """
    values = user_table(path, "a scenario")
    if not values:
        raise ConfigError(f'{path} states no value; write lines such as target = "llama-3.1-8b"')
    nested = [key for key, value in values.items() if isinstance(value, dict)]
    if nested:
        raise ConfigError(
            f"{path}: {nested[0]!r} is a table; a scenario file has only flat key = value lines"
        )
    return current_names(values, origin=str(path))


def current_names(values: Mapping[str, Any], *, origin: str = "") -> dict[str, Any]:
    """The same values, with keys of earlier versions renamed to the current ones.

    Raises `ConfigError` if a value is given under both names.
    """
    for old, new in FORMER_NAMES.items():
        if old in values and new in values:
            where = f"{origin}: " if origin else ""
            raise ConfigError(f"{where}{old} is the former name of {new}; give only {new}")
    return {FORMER_NAMES.get(key, key): value for key, value in values.items()}
