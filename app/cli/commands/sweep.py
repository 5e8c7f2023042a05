"""`specroof sweep`: predict a grid of scenarios as a table of the best plans, CSV or JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson, ScenarioFile, option, parse_overrides
from app.cli.output import console, json_line, progress, write_csv

if TYPE_CHECKING:
    from perfmodel import Sweep

PROGRESS_EVERY = 10_000


def sweep(
    context: typer.Context,
    scenario: ScenarioFile = None,
    csv: Annotated[str | None, option("FILE|-", "Write every point as CSV.", "--csv")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict a grid; flags take lists (1,8,64) and ranges (1:16, 4000:32000:4000, 64:4096:x2)."""
    from perfmodel import ConfigError, NoFeasiblePlan

    points = _sweep(context.obj, scenario)
    if csv is not None and as_json:
        raise ConfigError("--csv and --json print the same rows; give only one of them")
    if csv is not None:
        write_csv(csv, _rows(points, to_terminal=csv == "-" and sys.stdout.isatty()))
    elif as_json:
        _print_json(points)
    else:
        from app.render.sweep_table import print_sweep

        print_sweep(points, console())
    if not any((block.code == 0).any() for block in points.blocks):
        reason = next(points.rows())["reason"]
        raise NoFeasiblePlan(f"no point of the sweep is feasible (first point: {reason})")


def _sweep(flags: dict[str, str], scenario: str | None) -> Sweep:
    """The sweep over every flag that has a list or a range."""
    import perfmodel
    from app.cli.axes import parse_axis
    from perfmodel.planning import ARRAY_AXES, LOOP_AXES

    if flags.get("slo"):
        raise perfmodel.ConfigError(
            "--slo does not limit a sweep, which predicts every point; use `specroof recommend "
            "--slo`, or compare the column tpot_s with the limit"
        )
    if ":" in flags.get("draft", "") and "draft_policy" in flags:
        raise perfmodel.ConfigError(
            f"--draft {flags['draft']} and --draft-policy both name a policy; give one of them"
        )
    values = parse_overrides(scenario, flags)
    axes = {
        name: parse_axis(name, text)
        for name, text in flags.items()
        if name in ARRAY_AXES + LOOP_AXES and _is_list(name, text)
    }
    base = {name: value for name, value in values.items() if name not in axes}
    points = perfmodel.sweep(base, axes)
    if all(block.scenario is None for block in points.blocks):
        raise perfmodel.ConfigError(points.blocks[0].reason)
    return points


def _is_list(name: str, text: str) -> bool:
    return "," in text or (":" in text and name != "target")


def _print_json(points: Sweep) -> None:
    axes = {name: [int(v) for v in values] for name, values in points.axes.items()}
    print(f'{{"axes": {json_line(axes)}, "points": {points.points}, "rows": [')
    end = ""
    for row in _rows(points, to_terminal=sys.stdout.isatty()):
        print(end + json_line(row), end="")
        end = ",\n"
    print("\n]}")


def _rows(points: Sweep, *, to_terminal: bool) -> Iterator[dict[str, Any]]:
    """The rows of a sweep; a long one shows its progress, unless the rows go to a terminal."""
    if points.points <= PROGRESS_EVERY or to_terminal:
        yield from points.rows()
        return
    with progress("points", points.points) as update:
        for number, row in enumerate(points.rows()):
            if update is not None and number % PROGRESS_EVERY == 0:
                update(number)
            yield row
