"""`specroof calibrate measure` and `calibrate fit`: kernel times, and the curves fitted to them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli.engine_errors import engine_errors
from app.cli.options import AsJson
from app.cli.output import atomic_text, print_json, write_files

calibrate_app = typer.Typer(
    help="Measure kernels and acceptance, and fit the curves that predictions use.",
    no_args_is_help=True,
)


@calibrate_app.command("measure")
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
    tp: Annotated[
        int, typer.Option(metavar="N", min=1, help="Time sums over N GPUs instead of kernels.")
    ] = 1,
    show: Annotated[
        bool, typer.Option("--list", help="Print cells and estimated seconds; needs no GPU.")
    ] = False,
) -> None:
    """Time this GPU's kernels into a file of records; a run that was stopped continues."""
    from calibration.measure import chosen_groups, listing, measure_groups
    from perfmodel import ConfigError

    if tp > 1:
        _measure_ranks(out, seconds, tp)
        return

    plan = chosen_groups([name for name in groups.split(",") if name], every=every)
    if show:
        print(listing(plan))
        return
    if out is None:
        raise ConfigError("--out FILE says where the records go")
    with engine_errors():
        from runtime import provenance, require_gpu

        require_gpu("timing kernels")
        header = provenance(["specroof", *sys.argv[1:]])
        try:
            print(measure_groups(out, seconds, plan, header))
        except OSError as error:
            raise ConfigError(str(error)) from error


def _measure_ranks(out: Path | None, seconds: float, tp: int) -> None:
    """One process per GPU, by this command or by torchrun."""
    from calibration.measure import measure_ranks
    from perfmodel import ConfigError

    if out is None:
        raise ConfigError("--out FILE says where the records go")
    with engine_errors():
        from runtime import InputError, launch_ranks, provenance, require_gpu, run_rank

        require_gpu("timing sums over GPUs")
        if "RANK" not in os.environ:
            launch_ranks([sys.executable, "-m", "app.cli.main", *sys.argv[1:]], tp)
            return

        def time_rank() -> None:
            header = provenance(["specroof", *sys.argv[1:]])
            try:
                summary = measure_ranks(out, seconds, header, ranks=tp)
            except (ConfigError, OSError) as error:
                raise InputError(str(error)) from error
            if os.environ["RANK"] == "0":
                print(summary)

        code = run_rank(time_rank)
    if code:
        raise typer.Exit(code)


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
    from calibration.fit import fit_inputs
    from perfmodel import ConfigError

    report = fit_inputs(records, gpu=gpu)
    if not report.files:
        raise ConfigError(f"too little to fit anything: {'; '.join(report.missing)}")
    written = write_files(report.files, output)
    if plot:
        from app.render.fit_page import fit_html

        with atomic_text(plot) as file:
            file.write(fit_html(report))
    if as_json:
        print_json(report.to_dict() | {"written": [str(path) for path in written]})
    else:
        print("\n".join([*report.lines(), *(f"wrote {path}" for path in written)]))
