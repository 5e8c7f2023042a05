"""The typer application: every command, assembled from `app.cli.commands`, one file each."""

from __future__ import annotations

from typing import Annotated

import typer

from app.cli.commands.calibrate.acceptance import (
    acceptance_report,
    fit_acceptance,
    import_acceptance,
    measure_acceptance,
)
from app.cli.commands.calibrate.engine import calibrate_engine
from app.cli.commands.calibrate.kernels import calibrate_app
from app.cli.commands.calibrate.traffic import calibrate_traffic
from app.cli.commands.explain import explain
from app.cli.commands.explore import explore
from app.cli.commands.export import export
from app.cli.commands.listing import list_catalog
from app.cli.commands.predict import predict
from app.cli.commands.recommend import recommend
from app.cli.commands.run import run_app
from app.cli.commands.simulate import simulate
from app.cli.commands.sweep import sweep
from app.cli.commands.validate import validate_app
from app.cli.options import App, ScenarioCommand

_app = App(
    name="specroof",
    pretty_exceptions_enable=False,
    epilog="Example: specroof recommend --target llama-3.1-8b --gpu h100-sxm --batch 16",
)
for command in (predict, sweep, simulate, recommend, export, explain):
    _app.command(cls=ScenarioCommand)(command)
_app.command("list")(list_catalog)
_app.command()(explore)
calibrate_app.command("engine")(calibrate_engine)
calibrate_app.command("acceptance")(measure_acceptance)
calibrate_app.command("traffic", cls=ScenarioCommand)(calibrate_traffic)
for report in (acceptance_report, fit_acceptance, import_acceptance):
    calibrate_app.command()(report)
_app.add_typer(calibrate_app, name="calibrate")
_app.add_typer(validate_app, name="validate")
_app.add_typer(run_app, name="run")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"specroof {version('specroof')}")
        raise typer.Exit


@_app.callback()
def specroof(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Will speculative decoding pay for your long-context LLM?"""


app = typer.main.get_command(_app)
