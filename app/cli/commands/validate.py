"""`specroof validate`: compare predictions with measurements, in sample and held out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from app.cli.engine_errors import engine_errors
from app.cli.options import App, AsJson, HtmlFile, option, switch
from app.cli.output import console, has_width, print_json, write_text

validate_app = App(
    help="Compare predictions with measurements.",
    epilog="Example: specroof validate published",
)


@validate_app.command("published")
def validate_published(
    tolerance: Annotated[
        float,
        option("PERCENT", "Maximum mean absolute error of a phase on held-out rows.", min=0.0),
    ] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Compare predictions with published step times; exit 4 if an error exceeds the tolerance."""
    from app.render.tables import print_table, rows_table
    from calibration.validate import report_tables, served_tables, verdict
    from calibration.validate import validate_published as compare_published
    from perfmodel import OutsideTolerance

    report = compare_published()
    if as_json:
        print_json(report.to_dict() | {"tolerance_percent": tolerance})
    else:
        for header, rows in (
            *report_tables(report),
            *served_tables(report.served, report.faster),
        ):
            print_table(rows_table(header, rows), console())
            print()
        console().print(verdict(report))
    outside = report.outside(tolerance)
    if outside:
        raise OutsideTolerance(
            f"held-out mean error above {tolerance:g} % for {', '.join(outside)}"
        )


@validate_app.command("coverage")
def validate_coverage_of_intervals(as_json: AsJson = False) -> None:
    """Compare left-out measurements with their 90 % intervals; exit 4 if fewer than 85 % fit."""
    from calibration.validate import validate_coverage
    from perfmodel import OutsideTolerance

    report = validate_coverage()
    if as_json:
        print_json({"groups": report.rows(), "outside": report.outside()})
    else:
        _print_table(*report.table())
    if outside := report.outside():
        raise OutsideTolerance(f"90 % intervals contain too few: {', '.join(outside)}")


@validate_app.command("draw")
def validate_draw(
    output: Annotated[Path, option("FILE", "Case file to write.")],
    seed: Annotated[int, option("N", "Random seed.", min=0)] = 0,
    count: Annotated[int, option("N", "Number of cases.", min=1, max=10_000)] = 60,
    choices: Annotated[
        int, option("N", "Number of scenarios to draw with every gamma.", min=0)
    ] = 5,
    gpu: Annotated[str, option("NAME", "GPU from the catalog.")] = "h200",
    tp: Annotated[int, option("N", "GPUs that share the target.", min=1, max=8)] = 1,
    memory_share: Annotated[
        float, option("X", "Maximum share of GPU memory to fill.", min=0.1, max=1.0)
    ] = 0.85,
    rounds: Annotated[
        bool, switch("--rounds", "Instead, draw cases for fitting the round overhead.")
    ] = False,
) -> None:
    """Draw random cases to time on a GPU with `specroof validate run`."""
    from calibration.validate import (
        REPEATS,
        SampleOptions,
        by_pair,
        expected_seconds,
        sample_cases,
        sample_rounds,
    )

    options = SampleOptions(
        seed=seed, count=count, choices=choices, gpu=gpu, tp=tp, memory_share=memory_share
    )
    cases = sample_rounds(options) if rounds else sample_cases(options)
    write_text(output, cases.text())
    seconds = expected_seconds(cases, repeats=REPEATS, gpu=options.gpu)
    pairs = len(by_pair(cases.cases))
    print(f"{output}: {len(cases.cases)} cases of {pairs} model pairs, about {seconds:.0f} s")
    print(f"Run on a GPU: specroof validate run --cases {output} --out FILE.jsonl")


@validate_app.command("run")
def validate_run(
    cases: Annotated[Path, option("FILE", "Case file of `validate draw`.")],
    out: Annotated[Path | None, option("FILE", "File of records to write or continue.")] = None,
    seconds: Annotated[float, option("S", "Time limit in seconds.")] = 360.0,
    repeats: Annotated[int, option("N", "Timings per step; the median is recorded.", min=1)] = 15,
    parts: Annotated[
        bool, switch("--parts", "Also trace the parts of each pass; may slow down later timings.")
    ] = False,
    show: Annotated[
        bool, switch("--list", "List the model pairs and cases; needs no GPU.")
    ] = False,
) -> None:
    """Time drawn cases on this machine's GPUs, with one process per rank."""
    from calibration.records import read_cases
    from calibration.validate import StepRuntime, pair_lines, ranks_of, time_cases
    from perfmodel import ConfigError

    file = read_cases(cases)
    if show:
        print("\n".join(pair_lines(file)))
        return
    if out is None:
        raise ConfigError("no output file; add --out FILE")
    from runtime import InputError, RankFailed, launch_ranks, run_rank

    ranks = ranks_of(file)
    with engine_errors():
        if ranks > 1 and "RANK" not in os.environ:
            StepRuntime().check_device(ranks)
            launch_ranks([sys.executable, "-m", "app.cli.main", *sys.argv[1:]], ranks)
            return

        def time_rank() -> None:
            command = ["specroof", *sys.argv[1:]]
            try:
                summary, failed = time_cases(
                    file, out, command=command, seconds=seconds, repeats=repeats, parts=parts
                )
            except ConfigError as error:
                raise InputError(str(error)) from error
            if os.environ.get("RANK", "0") == "0":
                print(summary)
            if failed:
                raise RankFailed(f"{failed} cases failed", exit_code=4)

        code = run_rank(time_rank)
    if code:
        raise typer.Exit(code)


@validate_app.command("records")
def validate_records(
    records: Annotated[Path, typer.Argument(metavar="FILE", help="Records of `validate run`.")],
    engine: Annotated[str, option("NAME", "Engine profile to predict with.")] = "specroof",
    curves_of: Annotated[
        str | None, option("GPU", "Predict with another GPU's kernel curves, scaled by datasheet.")
    ] = None,
    peers: Annotated[
        Path | None, option("CSV", "Predictions of other tools for the same cases.")
    ] = None,
    markdown: Annotated[Path | None, option("FILE", "Also write a Markdown report.")] = None,
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare predictions with timed cases; exit 4 if an error exceeds its tolerance."""
    from app.render.tables import print_table, rows_table
    from calibration.records import read_steps
    from calibration.validate import (
        compare,
        comparison_dict,
        comparison_lines,
        comparison_markdown,
        comparison_table,
        read_peers,
    )
    from perfmodel import OutsideTolerance

    header, timed = read_steps(records)
    others = read_peers(peers) if peers else None
    comparison = compare(header, timed, engine=engine, curves_of=curves_of, peers=others)
    if markdown:
        write_text(markdown, comparison_markdown(comparison))
    if html:
        from app.render.pages import validation_html

        write_text(html, validation_html(comparison))
    if as_json:
        print_json(comparison_dict(comparison))
    else:
        title, lines = comparison_lines(comparison)
        console().print(title)
        print_table(rows_table(*comparison_table(comparison)), console())
        for line in lines:
            console().print(line)
    if outside := comparison.outside():
        raise OutsideTolerance("; ".join(outside))


@validate_app.command("traffic")
def validate_traffic(
    records: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Records of `calibrate traffic`.")
    ],
    engine: Annotated[
        str, option("NAME", "Engine profile to simulate with (default: that of the records).")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Compare served requests with their simulation; exit 4 if an error exceeds 10 %."""
    from calibration.traffic import (
        TABLE_TITLE,
        compare_runs,
        comparison_dict,
        comparison_table,
        read_traffic_records,
    )
    from perfmodel import OutsideTolerance

    compared = compare_runs(read_traffic_records(records), engine=engine)
    if as_json:
        print_json(comparison_dict(compared))
    else:
        console().print(TABLE_TITLE)
        _print_table(*comparison_table(compared))
    if outside := [clause for run in compared for clause in run.outside]:
        raise OutsideTolerance("; ".join(outside))


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first two columns name a row; in a pipe as Markdown, to be copied."""
    from app.render.tables import print_table, rows_table
    from calibration.records import markdown_table

    if not has_width():
        print(markdown_table(header, rows))
        return
    named = [(f"{first}; {second}", *cells) for first, second, *cells in rows]
    print_table(rows_table(header[1:], named), console())
