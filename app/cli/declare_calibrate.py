"""`specroof calibrate`: one sub-command per file of measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.commands.fit_catalog import fit_published, fit_tables

calibrate = typer.Typer(help="Measure what predictions rest on, and fit it.", no_args_is_help=True)
calibrate.command("fit-tables")(fit_tables)
calibrate.command("fit-published")(fit_published)


@calibrate.command("measure")
def measure(
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Records to write, or to continue.", show_default=False),
    ] = None,
    seconds: Annotated[float, typer.Option(metavar="S", help="Time to spend.")] = 270.0,
    every: Annotated[int, typer.Option(metavar="N", min=1, help="One cell in so many.")] = 1,
    groups: Annotated[
        str, typer.Option(metavar="NAMES", help="Only these groups, separated by commas.")
    ] = "",
    show: Annotated[
        bool, typer.Option("--list", help="Print cells and estimated seconds; needs no GPU.")
    ] = False,
) -> None:
    """Time this GPU's kernels into a file of records; a run that was stopped continues."""
    from app.cli.commands import calibrate as command

    names = [name for name in groups.split(",") if name]
    raise typer.Exit(
        command.run_measure(out, seconds=seconds, every=every, groups=names, show=show)
    )


@calibrate.command("fit")
def fit(
    records: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECORDS...", help="Own records, or tables of others.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Where to write efficiency files.")
    ] = Path("efficiency"),
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Catalog name; found in own records.", show_default=False
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write charts of residuals.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON (docs/json.md).")] = False,
) -> None:
    """Fit efficiency curves to records; print residuals and what was left out."""
    from app.cli.commands import calibrate as command

    raise typer.Exit(command.run_fit(records, output=output, gpu=gpu, plot=plot, as_json=as_json))
