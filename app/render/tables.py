"""Plain tables and text cells, shared by every printed result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from perfmodel.units import format_seconds


def scenario_line(scenario: Mapping[str, Any]) -> str:
    """A scenario on one line, as `key=value` words."""
    return "  ".join(f"{key}={value}" for key, value in scenario.items())


def print_notes(notes: Sequence[str], console: Console) -> None:
    """Print each note on a line."""
    for note in notes:
        console.print(f"note: {note}")


def plain_table(*columns: str, right: bool) -> Table:
    """A plain table whose first column is text; `right` aligns the others as numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if right and index else "left", no_wrap=not index)
    return table


def rows_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table of rows: the first cell is text, the others are numbers."""
    table = plain_table(*header, right=True)
    for row in rows:
        table.add_row(*row)
    return table


def number_text(value: float | None) -> str:
    """Two decimals, or "unknown"."""
    return "unknown" if value is None else f"{value:.2f}"


def seconds_text(value: float | None) -> str:
    """A time with its unit, or "unknown"."""
    return "unknown" if value is None else format_seconds(value)
