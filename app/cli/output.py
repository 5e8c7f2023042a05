"""Output: results on stdout, progress on stderr, and files written atomically."""

from __future__ import annotations

import csv
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console


def json_line(value: Any) -> str:
    """A value as one line of strict JSON, without NaN and infinity."""
    return json.dumps(value, allow_nan=False)


def print_json(value: Any) -> None:
    """Print a value as JSON: indented on a terminal, otherwise on one line."""
    indent = 2 if sys.stdout.isatty() else None
    print(json.dumps(value, allow_nan=False, indent=indent))


def console() -> Console:
    """The console that prints tables; 120 columns wide if stdout is not a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 120
    return Console(width=width, highlight=False, markup=False, emoji=False)


class Progress(Protocol):
    """Updates the number of finished items and the label."""

    def __call__(self, done: int | None = None, /, *, label: str | None = None) -> None: ...


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Progress | None]:
    """A transient progress bar on stderr, or None if stderr is not a terminal.

    Parameters
    ----------
    label
        What is counted, such as "requests".
    total
        Number of items; None if it is unknown, which shows a moving bar.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as bars
    from rich.console import Console

    columns: list[bars.ProgressColumn] = [bars.TextColumn("{task.description}"), bars.BarColumn()]
    if total is not None:
        columns.append(bars.MofNCompleteColumn())
    # Without this, rich would redirect to stderr whatever is printed to stdout meanwhile.
    with bars.Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False
    ) as bar:
        task = bar.add_task(label, total=total)

        def update(done: int | None = None, /, *, label: str | None = None) -> None:
            bar.update(task, completed=done, description=label)

        yield update


@contextmanager
def atomic_text(path: Path) -> Iterator[TextIO]:
    """A text file that appears under its name only once it is complete; creates missing folders.

    Raises
    ------
    ConfigError
        If the file cannot be written.
    """
    from perfmodel import ConfigError
    from perfmodel.errors import os_reason

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {os_reason(error)}") from error
    part = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            yield file
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file that appears once it is complete."""
    with atomic_text(path) as file:
        file.write(text)


def write_csv(path: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as CSV, to stdout if the path is `-`."""
    rows = iter(rows)
    first = next(rows)
    with nullcontext(sys.stdout) if path == "-" else atomic_text(Path(path)) as file:
        writer = csv.DictWriter(file, list(first), lineterminator="\n")
        writer.writeheader()
        writer.writerow(first)
        writer.writerows(rows)


def write_files(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write texts under `folder` by their relative paths; returns the files' paths."""
    for name, text in files.items():
        write_text(folder / name, text)
    return [folder / name for name in files]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
