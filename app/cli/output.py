"""Output: results on stdout, progress on stderr, and files."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console


LEAST_COLUMNS = 40


def json_line(value: Any) -> str:
    """A value as one line of strict JSON, without NaN and infinity."""
    return json.dumps(value, allow_nan=False)


def print_json(value: Any) -> None:
    """Print a value as JSON: indented on a terminal, otherwise on one line."""
    indent = 2 if sys.stdout.isatty() else None
    print(json.dumps(value, allow_nan=False, indent=indent))


def console() -> Console:
    """The console that prints tables, as wide as COLUMNS, the terminal, or else 120."""
    from rich.console import Console

    width = _columns() or (None if sys.stdout.isatty() else 120)
    return Console(width=width, highlight=False, markup=False, emoji=False)


def has_width() -> bool:
    """Whether stdout has a width: that of a terminal, or COLUMNS."""
    return sys.stdout.isatty() or _columns() is not None


def _columns() -> int | None:
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and len(columns) < 5 and int(columns):
        return max(int(columns), LEAST_COLUMNS)
    return None


class Progress(Protocol):
    """Updates the number of finished items and the label."""

    def __call__(self, done: int | None = None, /, *, label: str | None = None) -> None: ...


@contextmanager
def progress(label: str, total: int | None = None) -> Iterator[Progress | None]:
    """A transient progress bar on stderr, or None if stderr is not a terminal.

    `label` says what is counted, such as "requests"; without a `total`, the bar moves.
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


def write_text(path: Path, text: str) -> None:
    """Write a file; see `perfmodel.output_file`."""
    from perfmodel.output_file import output_text

    with output_text(path) as file:
        file.write(text)


def write_csv(path: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as CSV, to stdout if the path is `-`; without rows, nothing."""
    from perfmodel.output_file import output_text

    rows = iter(rows)
    first = next(rows, None)
    with nullcontext(sys.stdout) if path == "-" else output_text(path) as file:
        if first is not None:
            writer = csv.DictWriter(file, list(first), lineterminator="\n")
            writer.writeheader()
            writer.writerow(first)
            writer.writerows(rows)


def write_files(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write texts under `folder` by their relative paths; returns the files' paths.

    Creates the folder and those inside it, but not the one that contains it.
    """
    from perfmodel import ConfigError
    from perfmodel.errors import os_reason

    try:
        folder.mkdir(exist_ok=True)
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} cannot be created: {folder.parent} does not exist; create that folder first"
        ) from error
    except OSError as error:
        raise ConfigError(f"{folder} cannot be created: {os_reason(error)}") from error
    except ValueError as error:  # a null byte in the name
        raise ConfigError(f"{folder} cannot be created: {error}") from error
    for name, text in files.items():
        write_text(folder / name, text)
    return [folder / name for name in files]
