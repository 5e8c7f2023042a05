"""Read TOML files: those of the catalog by kind and name, and those of users by path."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from perfmodel.catalog._schema import parse_toml
from perfmodel.errors import ConfigError, os_reason
from perfmodel.input_file import read_input

MAX_FILE_BYTES = 1_000_000


@cache
def names(kind: str) -> tuple[str, ...]:
    """Sorted file names, without suffix, of a folder such as "gpus" or "efficiency/h200"."""
    entries = (entry.name for entry in files(__package__).joinpath(kind).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in entries if name[0] not in "._"))


def text(kind: str, name: str) -> str:
    """The text of one file of the catalog."""
    return files(__package__).joinpath(kind, f"{name}.toml").read_text(encoding="utf-8")


def table(kind: str, name: str) -> dict[str, Any]:
    """The entries of one file of the catalog."""
    return parse_toml(text(kind, name), f"{kind}/{name}.toml")


def user_table(path: str | Path, kind: str) -> dict[str, Any]:
    """The entries of a user's TOML file; `kind` says in messages what it should contain.

    Raises `ConfigError` if the file is missing, too large, not UTF-8 or not TOML.
    """
    try:
        data = read_input(path, MAX_FILE_BYTES)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {os_reason(error)}") from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes; check that it is {kind}")
    if Path(path).suffix in (".yaml", ".yml", ".json"):
        raise ConfigError(f"{path}: {kind} must be in TOML, with lines such as tp = 8")
    try:
        return parse_toml(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from error
