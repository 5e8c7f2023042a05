"""`specroof calibrate acceptance ...`: measured acceptance, its reports, curves and imports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.acceptance_options import MeasureOptions, measure
from app.cli.engine_errors import engine_errors
from app.cli.options import AsJson, field_flags
from app.cli.output import atomic_text, print_json

if TYPE_CHECKING:
    from calibration.records import RecordSet

Records = Annotated[
    list[Path], typer.Argument(metavar="RECORDS...", help="Files of acceptance records.")
]


@field_flags
def measure_acceptance(*, options: MeasureOptions, as_json: AsJson = False) -> None:
    """Measure how often drafts with a smaller KV budget are accepted, on real text."""
    with engine_errors():
        measure(options)
    acceptance_report([options.output], as_json=as_json)


def acceptance_report(
    records: Records,
    counted: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Counted speculative runs; repeat it.", show_default=False
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a page with charts.", show_default=False),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            min=0.0,
            help="With --counted: median error allowed, else exit 4.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tables of measured acceptance: budgets, positions, correlation, predicted against counted."""
    from calibration.acceptance import acceptance_report as make_report
    from calibration.acceptance import report_dict, report_lines
    from calibration.records import read_runs
    from perfmodel import ConfigError

    with engine_errors():
        for path in counted or ():
            if not path.is_file():
                raise ConfigError(f"{path}: no such file")
        runs = [run for path in counted or () for run in read_runs(path)]
        report = make_report(_read(records), runs)
        lines = report_lines(report)
    if html is not None:
        from app.render.acceptance_page import acceptance_html

        page = acceptance_html(report, lines)
        with atomic_text(html) as file:
            file.write(page)
    if as_json:
        print_json(report_dict(report))
    else:
        print("\n".join(lines))
    if tolerance is not None:
        _check_tolerance(report.median_error(greedy=False), tolerance)


def fit_acceptance(
    records: Records,
    output: Annotated[
        Path, typer.Option(metavar="FILE", help="Curves for --acceptance-curve, as TOML.")
    ],
    gamma: Annotated[
        int, typer.Option(metavar="N", min=1, help="Fit the tokens per round at this gamma.")
    ] = 4,
    text: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only these texts; repeat it.", show_default=False),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The target's name, if not its folder's.", show_default=False
        ),
    ] = None,
) -> None:
    """Fit curves of acceptance over KV budget and context to records."""
    from calibration.acceptance import curves_text, fit_records

    command = "specroof calibrate fit-acceptance"
    with engine_errors():
        fits = fit_records(_read(records), gamma=gamma, texts=text or None)
    named = [(replace(fit.curve, target=target) if target else fit.curve, fit.free) for fit in fits]
    if output.is_dir():
        for curve, free in named:
            name = f"{curve.target}--{curve.draft}--{curve.draft_policy}.toml"
            with atomic_text(output / name) as file:
                file.write(curves_text([(curve, free)], command=command))
    else:
        with atomic_text(output) as file:
            file.write(curves_text(named, command=command))
    for fit in fits:
        worst = max(abs(float(miss)) for miss in fit.residual)
        print(
            f"{fit.curve.draft_policy}: {len(fit.cells)} cells, fitted {', '.join(fit.free)}; "
            f"worst error in alpha {worst:.4f}"
        )


def import_acceptance(
    report: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Metrics of vLLM or SGLang, or records of specroof run --output."
        ),
    ],
    gamma: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Draft tokens per round, for SGLang's mean.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn what an engine reports into acceptance per draft position."""
    from calibration.acceptance import import_acceptance as read_counters

    counters = read_counters(report, gamma=gamma)
    rates = ",".join(f"{rate:.4g}" for rate in counters.per_position)
    if as_json:
        print_json(
            {
                "engine": counters.engine,
                "rounds": counters.rounds,
                "positional": counters.positional,
                "per_position": list(counters.per_position),
            }
        )
        return
    rounds = "" if counters.rounds is None else f", {counters.rounds:,} rounds"
    kind = "per position" if counters.positional else "one i.i.d. rate: a mean alone was reported"
    print(f"{counters.engine}{rounds}, {kind}")
    flag = "--acceptance-per-position" if counters.positional else "--acceptance"
    print(f"{flag} {rates}")


def _read(records: Sequence[Path]) -> RecordSet:
    from calibration.records import merged, read_acceptance

    return merged(read_acceptance(path) for path in records)


def _check_tolerance(error: float | None, tolerance: float) -> None:
    from perfmodel import ConfigError, OutsideTolerance

    if error is None:
        raise ConfigError("--tolerance needs counted runs that the records can predict")
    if 100 * error > tolerance:
        raise OutsideTolerance(
            f"median error of tokens per round {100 * error:.1f} %, above {tolerance:g} %"
        )
