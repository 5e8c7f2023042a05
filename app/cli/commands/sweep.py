"""`specroof sweep`: predict a grid of scenarios as a table of the best plans, CSV or JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import OF_PROMPTS, AsJson, ScenarioFile, option, parse_overrides, refuse_flags
from app.cli.output import console, json_line, progress, write_csv

if TYPE_CHECKING:
    from perfmodel import Scenario, Sweep
    from perfmodel.planning import Block

PROGRESS_FROM = 10_000  # points


def sweep(
    context: typer.Context,
    scenario: ScenarioFile = None,
    where: Annotated[
        str, option("CONDITIONS", "Only points like speedup>1.2,tpot_s<0.03; columns of --csv.")
    ] = "",
    top: Annotated[int | None, option("N", "Only the N fastest feasible points.", min=1)] = None,
    csv: Annotated[str | None, option("FILE|-", "Write every point as CSV.", "--csv")] = None,
    parquet: Annotated[str | None, option("FILE", "Write every point as Parquet.")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict a grid; flags take lists (1,8,64) and ranges (1:16, 4000:32000:4000, 64:4096:x2)."""
    from perfmodel import ConfigError, NoFeasiblePlan
    from perfmodel.planning import Where

    outputs = [f"--{n}" for n, v in (("csv", csv), ("parquet", parquet), ("json", as_json)) if v]
    if len(outputs) > 1:
        raise ConfigError(f"{' and '.join(outputs)} give the same rows; give only one of them")
    if parquet and top:
        raise ConfigError("--top chooses few rows; write them with --csv or --json")
    points, wanted = _sweep(context.obj, scenario), Where.parse(where) if where else Where()
    watch = _Watch(points, to_terminal=sys.stdout.isatty() and (as_json or csv == "-"))
    if top:
        _print_rows(points, points.best(top, wanted, watch.pieces()), csv, as_json)
    elif csv is not None or parquet is not None:
        from app.cli.table_files.sweep_files import write_sweep_csv, write_sweep_parquet

        write = write_sweep_csv if csv is not None else write_sweep_parquet
        write(csv or parquet or "", watch.pieces(), wanted)
    elif as_json:
        _print_json(points, points.rows(wanted, watch.pieces()))
    else:
        from app.render.sweep_table import print_sweep

        print_sweep(points, console(), wanted, watch.pieces())
    if not outputs:
        from app.render.tables import print_notes

        reasons = (one.scenario.engine_obstacle for one in points.blocks if one.scenario)
        print_notes(list(filter(None, dict.fromkeys(reasons))), console())
    if not watch.feasible:
        raise NoFeasiblePlan(f"no point of the sweep is feasible (first point: {watch.reason})")


class _Watch:
    """Passes the pieces of a sweep on, shows progress, and notes whether a point is feasible."""

    def __init__(self, points: Sweep, *, to_terminal: bool) -> None:
        self.points, self.silent = points, to_terminal or points.points <= PROGRESS_FROM
        self.feasible, self.reason = False, ""

    def pieces(self) -> Iterator[Block]:
        if self.silent:
            yield from map(self._noted, self.points.pieces())
            return
        with progress("points", self.points.points) as update:
            done = 0
            for piece in self.points.pieces():
                yield self._noted(piece)
                done += piece.points
                if update is not None:
                    update(done)

    def _noted(self, piece: Block) -> Block:
        self.reason = self.reason or next(piece.rows())["reason"]
        self.feasible |= bool((piece.code == 0).any())
        return piece


def _sweep(flags: dict[str, str], scenario: str | None) -> Sweep:
    """The sweep over every flag that has a list or a range."""
    import perfmodel
    from app.cli.axes import parse_axis
    from perfmodel.planning import ARRAY_AXES, LOOP_AXES

    refuse_flags(
        flags, ["slo"], "on a sweep; use `specroof recommend --slo`, or --where with column tpot_s"
    )
    refuse_flags(
        flags, OF_PROMPTS, "on a sweep, which predicts decoding alone; use recommend or simulate"
    )
    if ":" in flags.get("draft", "") and "draft_policy" in flags:
        raise perfmodel.ConfigError(
            f"--draft {flags['draft']} and --draft-policy both name a policy; give one of them"
        )
    values = parse_overrides(scenario, flags)
    axes = {
        name: parse_axis(name, text)
        for name, text in flags.items()
        if name in ARRAY_AXES + LOOP_AXES and ("," in text or (":" in text and name != "target"))
    }
    base = {name: value for name, value in values.items() if name not in axes}
    points = perfmodel.sweep(base, axes)
    if all(block.scenario is None for block in points.blocks):
        raise perfmodel.ConfigError(points.blocks[0].reason)
    _refuse_unused(flags, [b.scenario for b in points.blocks if b.scenario is not None])
    return points


def _refuse_unused(flags: dict[str, str], scenarios: Iterable[Scenario]) -> None:
    """Refuse flags that no point of the sweep depends on."""
    scenarios = list(scenarios)
    if all(one.plan.kv_budget_tokens is None and not one.plan.budget_text for one in scenarios):
        refuse_flags(flags, ["kv_budget"], "on drafts that read the full cache")
    if all(one.tp == 1 for one in scenarios):
        refuse_flags(flags, ["ring_hop_us"], "at --tp 1, which has no all-reduce")
    if not any(one.uses_user_curve for one in scenarios):
        refuse_flags(flags, ["acceptance_curve"], "on these drafts, which it has no curve for")


def _print_rows(points: Sweep, rows: list[dict[str, Any]], csv: str | None, as_json: bool) -> None:
    """Few rows as CSV, JSON or a table."""
    if csv is not None:
        write_csv(csv, rows)
    elif as_json:
        _print_json(points, rows)
    else:
        from app.render.sweep_table import print_top

        print_top(rows, console())


def _print_json(points: Sweep, rows: Iterable[dict[str, Any]]) -> None:
    axes = {name: [int(v) for v in values] for name, values in points.axes.items()}
    print(f'{{"axes": {json_line(axes)}, "points": {points.points}, "rows": [')
    end = ""
    for row in rows:
        print(end + json_line(row), end="")
        end = ",\n"
    print("\n]}")
