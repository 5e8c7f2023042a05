"""`specroof validate`: predictions beside measurements, published or one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

validate = typer.Typer(help="Compare predictions with measurements.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON (docs/json.md).")]


@validate.command("published")
def validate_published(
    tolerance: Annotated[
        float,
        typer.Option(
            metavar="PERCENT", min=0.0, help="Held-out mean absolute error allowed per phase."
        ),
    ] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Predict published step times, seen and held out; exit 4 outside the tolerance."""
    from app.cli.commands import validate as command

    raise typer.Exit(command.run_published(tolerance=tolerance, as_json=as_json))


@validate.command("draw")
def validate_draw(
    output: Annotated[Path, typer.Option(metavar="FILE", help="Case file to write.")],
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Another seed, another test.")] = 0,
    count: Annotated[int, typer.Option(metavar="N", min=1, max=10_000)] = 60,
    choices: Annotated[
        int, typer.Option(metavar="N", min=0, help="Scenarios that get every gamma.")
    ] = 5,
    gpu: Annotated[str, typer.Option(metavar="NAME")] = "h200",
    tp: Annotated[int, typer.Option(metavar="N", min=1, max=8)] = 1,
    memory_share: Annotated[
        float, typer.Option(metavar="X", min=0.1, max=1.0, help="Of the GPU's memory, at most.")
    ] = 0.85,
    rounds: Annotated[
        bool, typer.Option("--rounds", help="For the fit of the round's overhead instead.")
    ] = False,
) -> None:
    """Draw cases to time on a GPU with `specroof validate run`."""
    from app.cli.commands import validate as command
    from calibration.validate import SampleOptions

    options = SampleOptions(
        seed=seed, count=count, choices=choices, gpu=gpu, tp=tp, memory_share=memory_share
    )
    raise typer.Exit(command.run_draw(output, options, rounds=rounds))


@validate.command("run")
def validate_run(
    cases: Annotated[Path, typer.Option(metavar="FILE", help="From validate draw.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Records to write, or to continue.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(metavar="S", help="Time to spend.")] = 360.0,
    repeats: Annotated[int, typer.Option(metavar="N", min=1)] = 15,
    parts: Annotated[
        bool, typer.Option("--parts", help="Trace each pass by part; may slow what follows.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--list", help="Print pairs of models and cases; needs no GPU.")
    ] = False,
) -> None:
    """Time drawn cases on this GPU; with ranks: torchrun --no-python specroof validate run."""
    from app.cli.commands import validate as command

    raise typer.Exit(
        command.run_cases(cases, out, seconds=seconds, repeats=repeats, parts=parts, show=show)
    )


@validate.command("records")
def validate_records(
    records: Annotated[Path, typer.Argument(metavar="FILE", help="From validate run.")],
    engine: Annotated[str, typer.Option(metavar="NAME")] = "specroof",
    curves_of: Annotated[
        str | None,
        typer.Option(
            metavar="GPU",
            help="Carry the curves measured on this GPU, whatever the timed one's own say.",
            show_default=False,
        ),
    ] = None,
    peers: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Others' predictions of the same.", show_default=False),
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
        typer.Option(metavar="FILE", help="Renew the table between its marks.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare timed cases with their predictions; exit 4 outside the stated tolerances."""
    from app.cli.commands import validate as command

    raise typer.Exit(
        command.run_records(
            records,
            engine=engine,
            curves_of=curves_of,
            peers=peers,
            markdown=markdown,
            html=html,
            readme=readme,
            as_json=as_json,
        )
    )
