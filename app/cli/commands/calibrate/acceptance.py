"""`specroof calibrate` commands that measure, report, fit and import acceptance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.acceptance_options import MeasureOptions, measure
from app.cli.engine_errors import engine_errors
from app.cli.options import AsJson, HtmlFile, field_flags, option
from app.cli.output import print_json, write_text

if TYPE_CHECKING:
    from calibration.records import RecordSet

Records = Annotated[
    list[Path], typer.Argument(metavar="RECORDS", help="Records of `calibrate acceptance`.")
]


@field_flags
def measure_acceptance(*, options: MeasureOptions, as_json: AsJson = False) -> None:
    """Measure on real text how often drafts with a limited KV budget are accepted."""
    with engine_errors():
        measure(options)
    acceptance_report([options.output], as_json=as_json)


def acceptance_report(
    records: Records,
    counted: Annotated[
        list[Path] | None, option("FILE", "Counted speculative runs; may be repeated.")
    ] = None,
    html: HtmlFile = None,
    tolerance: Annotated[
        float | None,
        option("PERCENT", "With --counted: exit 4 if the median error exceeds this.", min=0.0),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print tables of measured acceptance, and compare predictions with counted runs."""
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
        from app.render.pages import acceptance_html

        write_text(html, acceptance_html(report, lines))
    if as_json:
        print_json(report_dict(report))
    else:
        print("\n".join(lines))
    if tolerance is not None:
        _check_tolerance(report.median_error(greedy=False), tolerance)


def fit_acceptance(
    records: Records,
    output: Annotated[Path, option("FILE", "Curves to write (TOML), for --acceptance-curve.")],
    gamma: Annotated[
        int, option("N", "Gamma at which the tokens per round are fitted.", min=1)
    ] = 4,
    text: Annotated[
        list[str] | None, option("NAME", "Text to fit; may be repeated. All by default.")
    ] = None,
    target: Annotated[
        str | None, option("NAME", "Name of the target. Default: its folder's name.")
    ] = None,
) -> None:
    """Fit curves of acceptance over KV budget and context."""
    from calibration.acceptance import curves_text, fit_records

    command = "specroof calibrate fit-acceptance"
    with engine_errors():
        fits = fit_records(_read(records), gamma=gamma, texts=text or None)
    named = [(replace(fit.curve, target=target) if target else fit.curve, fit.free) for fit in fits]
    if output.is_dir():
        for curve, free in named:
            name = f"{curve.target}--{curve.draft}--{curve.draft_policy}.toml"
            write_text(output / name, curves_text([(curve, free)], command=command))
    else:
        write_text(output, curves_text(named, command=command))
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
            metavar="FILE",
            help="Metrics, log or benchmark result of vLLM, SGLang, TensorRT-LLM or llama.cpp, or "
            "rounds of `specroof run --output`.",
        ),
    ],
    gamma: Annotated[
        int | None,
        option("N", "Draft tokens per round; needed if the report only has a mean.", min=1),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert an engine's acceptance metrics to a flag for the other commands."""
    from calibration.acceptance import import_acceptance as read_counters

    counters = read_counters(report, gamma=gamma)
    acceptance = counters.acceptance()
    rates = ",".join(f"{rate:.4g}" for rate in counters.per_position)
    if as_json:
        print_json(
            {
                "engine": counters.engine,
                "rounds": counters.rounds,
                "positional": counters.positional,
                "per_position": list(counters.per_position),
                "low": acceptance.low,
                "high": acceptance.high,
                "tokens_per_round": counters.tokens_per_round,
                "gamma": counters.gamma,
            }
        )
        return
    rounds = "" if counters.rounds is None else f", {counters.rounds:,} rounds"
    if counters.positional:
        print(f"{counters.engine}{rounds}, per position")
        print(f"--acceptance-per-position {rates}")
        return
    print(
        f"{counters.engine}{rounds}, one i.i.d. rate of {rates} ({acceptance.low:.3f} to "
        f"{acceptance.high:.3f}), since only a mean was reported"
    )
    print(f"--tokens-per-round {counters.tokens_per_round:.6g} --gamma {counters.gamma}")


def _read(records: Sequence[Path]) -> RecordSet:
    from calibration.records import merged, read_acceptance

    return merged(read_acceptance(path) for path in records)


def _check_tolerance(error: float | None, tolerance: float) -> None:
    from perfmodel import ConfigError, OutsideTolerance

    if error is None:
        raise ConfigError("--tolerance needs --counted runs that match the records")
    if 100 * error > tolerance:
        raise OutsideTolerance(
            f"the median error of tokens per round is {100 * error:.1f} %, above {tolerance:g} %"
        )
