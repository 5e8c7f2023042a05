"""`specroof sweep`: a grid of scenarios as a table of the best plans, CSV or JSON."""

from __future__ import annotations

import csv as csv_format
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import perfmodel
from app.cli.axes import parse_axis
from app.cli.output import atomic_text, console, json_line
from app.cli.overrides import stated_values
from perfmodel import ARRAY_AXES, LOOP_AXES, ConfigError, NoFeasiblePlan, Sweep

PROGRESS_EVERY = 10_000


def run_sweep(
    flags: dict[str, str], scenario: str | None, *, csv: str | None, as_json: bool
) -> int:
    """Print or write a sweep; 3 if no point of it is feasible."""
    found = _sweep(flags, scenario)
    if csv is not None and as_json:
        raise ConfigError("--csv and --json are two forms of the same rows; give one of them")
    if csv == "-":
        _write_csv(found, sys.stdout)
    elif csv is not None:
        with atomic_text(Path(csv)) as file:
            _write_csv(found, file)
    if as_json:
        _print_json(found)
    elif csv is None:
        from app.render.sweep_table import print_sweep

        print_sweep(found, console())
    if not any((block.code == 0).any() for block in found.blocks):
        reason = next(found.rows())["reason"]
        raise NoFeasiblePlan(f"no point of the sweep is feasible; the first: {reason}")
    return 0


def _sweep(flags: dict[str, str], scenario: str | None) -> Sweep:
    """The sweep that the flags ask for: every flag with more than one value is an axis."""
    stated = stated_values(scenario, flags)
    axes = {
        name: parse_axis(name, value)
        for name, value in flags.items()
        if name in ARRAY_AXES + LOOP_AXES and _is_list(name, value)
    }
    base = {name: value for name, value in stated.items() if name not in axes}
    found = perfmodel.sweep(base, axes)
    if all(block.scenario is None for block in found.blocks):
        raise ConfigError(found.blocks[0].reason)
    return found


def _is_list(name: str, value: str) -> bool:
    return "," in value or (":" in value and name != "target")


def _write_csv(found: Sweep, file: TextIO) -> None:
    """One line per point, as it is computed."""
    rows = _with_progress(found.rows(), found.points)
    first = next(rows)
    writer = csv_format.DictWriter(file, list(first), lineterminator="\n")
    writer.writeheader()
    writer.writerow(first)
    writer.writerows(rows)


def _print_json(found: Sweep) -> None:
    axes = {name: [int(v) for v in values] for name, values in found.axes.items()}
    print(f'{{"axes": {json_line(axes)}, "points": {found.points}, "rows": [')
    end = ""
    for row in _with_progress(found.rows(), found.points):
        print(end + json_line(row), end="")
        end = ",\n"
    print("\n]}")


def _with_progress(rows: Iterable[dict[str, Any]], points: int) -> Iterator[dict[str, Any]]:
    """The rows, with a count on stderr where that is a terminal."""
    shown = sys.stderr.isatty() and points > PROGRESS_EVERY
    for number, row in enumerate(rows):
        if shown and number % PROGRESS_EVERY == 0:
            print(f"\r{number:,} of {points:,} points", end="", file=sys.stderr)
        yield row
    if shown:
        print(f"\r{points:,} of {points:,} points", file=sys.stderr)
