"""`specroof calibrate measure` and `calibrate fit`: kernel times, and the curves fitted to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import AsJson
from app.cli.output import atomic_text, print_json

calibrate_app = typer.Typer(
    help="Measure kernels and acceptance, and fit the curves that predictions use.",
    no_args_is_help=True,
)
# `calibration.measure.run` parses its flags itself, so that it runs where typer is absent.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@calibrate_app.command("measure", context_settings=PASSED_ON, add_help_option=False)
def measure(context: typer.Context) -> None:
    """Time this GPU's kernels and write records; resumes where it stopped."""
    from calibration.measure.run import main

    raise typer.Exit(main(context.args))


@calibrate_app.command("fit")
def fit(
    records: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECORDS...",
            help="Records of calibrate measure, or published kernel tables.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Where to write efficiency files.")
    ] = Path("efficiency"),
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Catalog name; records of calibrate measure hold it already.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write charts of residuals.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit efficiency curves to records; print residuals and what was left out."""
    from calibration.fit.inputs import fit_inputs
    from calibration.fit.report import write_files
    from calibration.records.steps import RecordError
    from perfmodel import ConfigError

    try:
        report = fit_inputs(records, gpu=gpu)
    except RecordError as error:
        raise ConfigError(str(error)) from error
    if not report.files:
        raise ConfigError(f"too little to fit anything: {'; '.join(report.missing)}")
    written = write_files(report, output)
    if plot:
        from app.render.fit_page import fit_html

        with atomic_text(plot) as file:
            file.write(fit_html(report))
    if as_json:
        print_json(report.to_dict() | {"written": [str(path) for path in written]})
    else:
        print("\n".join([*report.lines(), *(f"wrote {path}" for path in written)]))
