"""Where results go: JSON and tables on stdout, files written whole or not at all."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from perfmodel import ConfigError

if TYPE_CHECKING:
    from rich.console import Console


def json_line(value: Any) -> str:
    """One line of strict JSON: no NaN and no infinity."""
    return json.dumps(value, allow_nan=False)


def print_json(value: Any) -> None:
    """One object, indented for a terminal and in one line for a program."""
    indent = 2 if sys.stdout.isatty() else None
    print(json.dumps(value, allow_nan=False, indent=indent))


def console() -> Console:
    """Where tables for people go; a fixed width where stdout is no terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(width=width, highlight=False, markup=False, emoji=False)


@contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """A text file that appears under its name only once it is complete.

    Raises
    ------
    ConfigError
        If the folder does not exist or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder")
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from error
    part = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_files(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write texts by their path under `folder`; the files' paths."""
    written = []
    for name, text in files.items():
        with atomic_text(folder / name) as file:
            file.write(text)
        written.append(folder / name)
    return written


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
