"""`specroof validate`: predictions against measurements, in sample and held out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli.engine_errors import engine_errors
from app.cli.options import App, AsJson
from app.cli.output import atomic_text, print_json

validate_app = App(
    help="Compare predictions with measurements.",
    epilog="Example: specroof validate published",
)


@validate_app.command("published")
def validate_published(
    tolerance: Annotated[
        float,
        typer.Option(
            metavar="PERCENT", min=0.0, help="Held-out mean absolute error allowed per phase."
        ),
    ] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Predict published step times, in sample and held out; exit 4 outside the tolerance."""
    from calibration.validate import report_lines
    from calibration.validate import validate_published as compare_published
    from perfmodel import OutsideTolerance

    report = compare_published()
    if as_json:
        print_json(report.to_dict() | {"tolerance_percent": tolerance})
    else:
        print("\n".join(report_lines(report)))
    outside = report.outside(tolerance)
    if outside:
        raise OutsideTolerance(f"held-out mean error above {tolerance:g} %: {', '.join(outside)}")


@validate_app.command("draw")
def validate_draw(
    output: Annotated[Path, typer.Option(metavar="FILE", help="Case file to write.")],
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the cases.")] = 0,
    count: Annotated[
        int, typer.Option(metavar="N", min=1, max=10_000, help="Number of cases.")
    ] = 60,
    choices: Annotated[
        int, typer.Option(metavar="N", min=0, help="Scenarios that get every gamma.")
    ] = 5,
    gpu: Annotated[str, typer.Option(metavar="NAME", help="GPU of the catalog.")] = "h200",
    tp: Annotated[
        int, typer.Option(metavar="N", min=1, max=8, help="GPUs that share the target.")
    ] = 1,
    memory_share: Annotated[
        float, typer.Option(metavar="X", min=0.1, max=1.0, help="Most of the GPU's memory to fill.")
    ] = 0.85,
    rounds: Annotated[
        bool, typer.Option("--rounds", help="For the fit of the round's overhead instead.")
    ] = False,
) -> None:
    """Draw cases to time on a GPU with `specroof validate run`."""
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
    _write(output, cases.text())
    seconds = expected_seconds(cases, repeats=REPEATS, gpu=options.gpu)
    pairs = len(by_pair(cases.cases))
    print(f"{output}: {len(cases.cases)} cases of {pairs} pairs of models, about {seconds:.0f} s")
    print(f"On a GPU: specroof validate run --cases {output} --out FILE.jsonl")


@validate_app.command("run")
def validate_run(
    cases: Annotated[Path, typer.Option(metavar="FILE", help="From validate draw.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Records to write, or to continue.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(metavar="S", help="Time to spend.")] = 360.0,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, help="Timings of a step; the median counts.")
    ] = 15,
    parts: Annotated[
        bool, typer.Option("--parts", help="Trace each pass by part; may slow what follows.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--list", help="Print pairs of models and cases; needs no GPU.")
    ] = False,
) -> None:
    """Time drawn cases on this GPU; with ranks: torchrun --no-python specroof validate run."""
    from calibration.records import read_cases
    from calibration.validate import pair_lines, ranks_of, time_cases
    from perfmodel import ConfigError

    file = read_cases(cases)
    if show:
        print("\n".join(pair_lines(file)))
        return
    if out is None:
        raise ConfigError("--out FILE says where the records go")
    from runtime import InputError, launch_ranks, run_rank

    ranks = ranks_of(file)
    with engine_errors():
        if ranks > 1 and "RANK" not in os.environ:
            launch_ranks([sys.executable, "-m", "app.cli.main", *sys.argv[1:]], ranks)
            return
        outcome: list[tuple[str, int]] = []

        def time_rank() -> None:
            command = ["specroof", *sys.argv[1:]]
            try:
                outcome.append(
                    time_cases(
                        file, out, command=command, seconds=seconds, repeats=repeats, parts=parts
                    )
                )
            except ConfigError as error:
                raise InputError(str(error)) from error

        code = run_rank(time_rank)
    if code:
        raise typer.Exit(code)
    summary, failed = outcome[0]
    if os.environ.get("RANK", "0") == "0":
        print(summary)
    if failed:
        raise typer.Exit(4)


@validate_app.command("records")
def validate_records(
    records: Annotated[Path, typer.Argument(metavar="FILE", help="From validate run.")],
    engine: Annotated[
        str, typer.Option(metavar="NAME", help="Engine profile that predicts.")
    ] = "specroof",
    curves_of: Annotated[
        str | None,
        typer.Option(
            metavar="GPU",
            help="Carry over the curves measured on this GPU, even if the timed GPU has its own.",
            show_default=False,
        ),
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="Other tools' predictions of the same cases.", show_default=False
        ),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a report.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a report with charts.", show_default=False),
    ] = None,
    readme: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Replace the table between the file's marks.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare timed cases with their predictions; exit 4 outside the stated tolerances."""
    from calibration.records import read_steps
    from calibration.validate import (
        TABLE_START,
        compare,
        comparison_dict,
        comparison_lines,
        comparison_markdown,
        read_peers,
        readme_table,
        replace_table,
    )
    from perfmodel import ConfigError, OutsideTolerance

    header, timed = read_steps(records)
    others = read_peers(peers) if peers else None
    comparison = compare(header, timed, engine=engine, curves_of=curves_of, peers=others)
    if markdown:
        _write(markdown, comparison_markdown(comparison))
    if html:
        from app.render.validation_page import validation_html

        _write(html, validation_html(comparison))
    if readme:
        renewed = replace_table(_read(readme), readme_table(comparison))
        if renewed is None:
            raise ConfigError(f"{readme}: has no line {TABLE_START} to put the table after")
        _write(readme, renewed)
    if as_json:
        print_json(comparison_dict(comparison))
    else:
        print("\n".join(comparison_lines(comparison)))
    if outside := comparison.outside():
        raise OutsideTolerance("; ".join(outside))


def _read(path: Path) -> str:
    from perfmodel import ConfigError

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error


def _write(path: Path, text: str) -> None:
    with atomic_text(path) as file:
        file.write(text)
