"""`specroof calibrate`: one sub-command per file of measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.commands.fit_catalog import fit_published, fit_tables

calibrate = typer.Typer(help="Measure what predictions rest on, and fit it.", no_args_is_help=True)
calibrate.command("fit-tables")(fit_tables)
calibrate.command("fit-published")(fit_published)
# `calibration.measure.run` reads these flags itself, so that it runs where typer is absent.
OWN_FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}


@calibrate.command("measure", context_settings=OWN_FLAGS, add_help_option=False)
def measure(context: typer.Context) -> None:
    """Time this GPU's kernels into a file of records; stop it and it goes on (--help)."""
    from calibration.measure.run import main

    raise typer.Exit(main(context.args))


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
