"""A scenario's values from a file or the catalog, overridden by flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perfmodel import ConfigError
from perfmodel.catalog.scenarios import scenario_values
from perfmodel.flat_values import override


def parse_overrides(scenario: str | None, flags: Mapping[str, str]) -> dict[str, Any]:
    """The scenario file's values, overridden by the flags.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a flag is empty.
    """
    for name, value in flags.items():
        if not value.strip() and name != "slo":
            raise ConfigError(f"--{name.replace('_', '-')} is empty; give a value or leave it out")
    return override({} if scenario is None else scenario_values(scenario), flags)
