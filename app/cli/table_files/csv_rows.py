"""Scenarios from CSV, one per row: columns are named like flags, and empty cells are skipped."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator

from perfmodel import ConfigError, ScenarioInput
from perfmodel.catalog.scenarios import FORMER_NAMES
from perfmodel.errors import os_reason, printable, unknown_name
from perfmodel.input_file import read_input

MAX_CSV_BYTES = 10_000_000


def csv_rows(source: str) -> Iterator[tuple[int, dict[str, str] | ConfigError]]:
    """Row numbers, from 1, and non-empty cells by column of a CSV file, or of stdin for `-`.

    For a row with too few or too many cells, the error takes the place of the cells. Raises
    `ConfigError` if the source is missing, too large, not UTF-8 or empty; if a column is unknown or
    appears twice; if there are no rows, or a quote is not closed.
    """
    name = "stdin" if source == "-" else source
    text = _text(source, name)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = _header(next(reader, []), name)
        number = 0
        for number, cells in enumerate((row for row in reader if row), start=1):
            yield number, _cells(header, cells)
    except csv.Error as error:
        raise ConfigError(f"{name}: line {reader.line_num} is not valid CSV: {error}") from error
    if number == 0:
        raise ConfigError(f"{name} has a header but no rows; add one per scenario")


def _cells(header: list[str], cells: list[str]) -> dict[str, str] | ConfigError:
    if len(cells) != len(header):
        return ConfigError(f"the row has {len(cells)} cells, but the header has {len(header)}")
    pairs = zip(header, (cell.strip() for cell in cells), strict=True)
    return {column: cell for column, cell in pairs if cell}


def _text(source: str, name: str) -> str:
    try:
        if source == "-":
            data = sys.stdin.buffer.read(MAX_CSV_BYTES + 1)
        else:
            data = read_input(source, MAX_CSV_BYTES)
    except FileNotFoundError as error:
        raise ConfigError(f"{name}: no such file") from error
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {os_reason(error)}") from error
    if len(data) > MAX_CSV_BYTES:
        raise ConfigError(f"{name} is larger than {MAX_CSV_BYTES:,} bytes; split it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    if "\0" in text:
        raise ConfigError(f"{name} contains a NUL character; give a text file")
    return text


def _header(cells: list[str], name: str) -> list[str]:
    written = [cell.strip().replace("-", "_") for cell in cells]
    header = [FORMER_NAMES.get(column, column) for column in written]
    if not any(header):
        raise ConfigError(f"{name}: the first line must name columns, such as target,batch,gamma")
    if len(cells) == 1 and any(mark in cells[0] for mark in ";\t"):
        raise ConfigError(f"{name}: the columns must be separated by commas")
    columns = list(ScenarioInput.model_fields)
    for column in header:
        if column not in columns:
            raise ConfigError(f"{name}: {unknown_name('column', printable(column), columns)}")
        if header.count(column) > 1:
            raise ConfigError(f"{name}: column {column!r} appears twice; remove one")
    return header
