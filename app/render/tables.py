"""Plain tables and text cells, shared by every printed result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

from perfmodel.units import format_seconds

PADDING = 2  # columns between two cells
PROSE_WIDTH = 32  # a column with longer cells may be broken into lines, others may not
LEAST_PROSE = 20


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


def print_table(table: Table, console: Console) -> None:
    """Print a table; if it is too wide, in parts that repeat the first column. No cell is cut."""
    wanted = [max(map(cell_len, _cells(column))) + PADDING for column in table.columns]
    if sum(wanted) <= console.width:
        console.print(table)
        return
    for number, group in enumerate(_groups(table.columns, console.width)):
        if number:
            console.print()
        console.print(_part(table, [table.columns[0], *group]))


def _groups(columns: Sequence[Column], width: int) -> list[list[Column]]:
    """The columns after the first, in groups that fit next to it."""
    groups: list[list[Column]] = [[]]
    free = width - _least_width(columns[0])
    for column in columns[1:]:
        if groups[-1] and sum(map(_least_width, [*groups[-1], column])) > free:
            groups.append([])
        groups[-1].append(column)
    return groups


def _part(table: Table, columns: Sequence[Column]) -> Table:
    """A table of some of the columns."""
    part = Table(box=None, pad_edge=False, padding=(0, PADDING, 0, 0), header_style="bold")
    for column in columns:
        width = None if _is_prose(column) else _least_width(column) - PADDING
        part.add_column(column.header, justify=column.justify, overflow="fold", width=width)
    for cells in zip(*(column.cells for column in columns), strict=True):
        part.add_row(*cells)
    return part


def _cells(column: Column) -> list[str]:
    """The header and cells, each of which is a string."""
    return [str(column.header), *map(str, column.cells)]


def _is_prose(column: Column) -> bool:
    return max(map(cell_len, _cells(column))) > PROSE_WIDTH


def _least_width(column: Column) -> int:
    """The width with padding that a column needs so that no number or word is broken."""
    cells = [str(cell) for cell in column.cells]
    words = [word for text in _cells(column) for word in text.split()]
    longest = max(map(cell_len, [""] + (words if _is_prose(column) else cells + words)))
    return PADDING + (max(longest, LEAST_PROSE) if _is_prose(column) else longest)


def number_text(value: float | None) -> str:
    """Two decimals, or "unknown"."""
    return "unknown" if value is None else f"{value:.2f}"


def seconds_text(value: float | None) -> str:
    """A time with its unit, or "unknown"."""
    return "unknown" if value is None else format_seconds(value)
