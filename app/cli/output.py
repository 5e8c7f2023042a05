"""Output: JSON and tables on stdout, progress on stderr, files that appear once complete."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

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
    """The console that prints tables; 120 columns wide where stdout is not a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(width=width, highlight=False, markup=False, emoji=False)


class Progress(Protocol):
    """Takes how much is done, and what is being done."""

    def __call__(self, done: int | None = None, /, *, label: str | None = None) -> None: ...


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Progress | None]:
    """A progress bar on stderr, gone when done; None where stderr is not a terminal.

    Parameters
    ----------
    label
        What is counted, such as "requests".
    total
        How many there will be; None shows a bar that only moves.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as bars
    from rich.console import Console

    columns: list[bars.ProgressColumn] = [bars.TextColumn("{task.description}"), bars.BarColumn()]
    if total is not None:
        columns.append(bars.MofNCompleteColumn())
    # Rich would send what is printed to stdout meanwhile to stderr too.
    with bars.Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False
    ) as bar:
        task = bar.add_task(label, total=total)

        def update(done: int | None = None, /, *, label: str | None = None) -> None:
            bar.update(task, completed=done, description=label)

        yield update


@contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """A text file that appears under its name only once it is complete.

    Raises
    ------
    ConfigError
        If the file cannot be written. Missing folders are made.
    """
    from perfmodel import ConfigError

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
