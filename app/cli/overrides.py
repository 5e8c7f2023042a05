"""What a user stated, from three places: a scenario file, flags over it, CSV cells over both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perfmodel import ACCEPTANCE_KEYS, ConfigError, scenario_values

# A newly stated key drops what an earlier place said of the same thing, if its value differs.
SUPERSEDES: dict[str, tuple[str, ...]] = {
    "gpu": ("machine",),
    "machine": ("gpu",),
    "target": ACCEPTANCE_KEYS,
    "draft": ("draft_policy", "kv_budget", "gamma", "draft_tp", *ACCEPTANCE_KEYS),
    "draft_policy": ("kv_budget", *ACCEPTANCE_KEYS),
    **{key: tuple(k for k in ACCEPTANCE_KEYS if k != key) for key in ACCEPTANCE_KEYS},
}


def stated_values(scenario: str | None, flags: Mapping[str, str]) -> dict[str, Any]:
    """The scenario file's values with the flags laid over them.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a flag is empty.
    """
    for name, value in flags.items():
        if not value.strip() and name != "slo":
            raise ConfigError(f"--{name.replace('_', '-')} is empty; give a value or leave it out")
    return override({} if scenario is None else scenario_values(scenario), flags)


def override(base: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `new` laid over it; see `SUPERSEDES` for what a new key takes away."""
    dropped = {
        key
        for name, value in new.items()
        if str(base.get(name)) != str(value)
        for key in SUPERSEDES.get(name, ())
    }
    return {k: v for k, v in base.items() if k not in dropped} | dict(new)
