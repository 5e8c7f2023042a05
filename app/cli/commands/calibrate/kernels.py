"""`specroof calibrate measure`, `fit`, `fit-tables` and `fit-published`: from times to curves."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli.engine_errors import engine_errors
from app.cli.options import App, AsJson, option, switch
from app.cli.output import console, print_json, write_files, write_text

calibrate_app = App(
    help="Measure kernels and acceptance, and fit the curves that predictions use.",
    epilog="Example: specroof calibrate measure --out kernels.jsonl",
)
Output = Annotated[Path, option("DIR", "Catalog folder to write to.")]


@calibrate_app.command("measure")
def measure(
    out: Annotated[Path | None, option("FILE", "File of records to write or continue.")] = None,
    seconds: Annotated[float, option("S", "Time limit in seconds.")] = 270.0,
    every: Annotated[int, option("N", "Time only every Nth cell.", min=1)] = 1,
    groups: Annotated[
        str, option("NAMES", "Kernel groups to time, separated by commas; all by default.")
    ] = "",
    tp: Annotated[int, option("N", "Time all-reduces over N GPUs instead of kernels.", min=1)] = 1,
    show: Annotated[
        bool, switch("--list", "List the cells and the estimated time; needs no GPU.")
    ] = False,
) -> None:
    """Time the kernels of this GPU; an interrupted run continues where it stopped."""
    from calibration.measure import chosen_groups, listing, measure_groups
    from perfmodel import ConfigError

    if tp > 1:
        if groups or every > 1 or show:
            raise ConfigError("--tp times a fixed list of cells; drop --groups, --every and --list")
        _measure_ranks(out, seconds, tp)
        return
    plan = chosen_groups([name for name in groups.split(",") if name], every=every)
    if show:
        print(listing(plan))
        return
    if out is None:
        raise ConfigError("no output file; add --out FILE")
    with engine_errors():
        from runtime import provenance, require_gpu

        require_gpu("timing kernels")
        header = provenance(["specroof", *sys.argv[1:]])
        try:
            print(measure_groups(out, seconds, plan, header))
        except OSError as error:
            raise ConfigError(str(error)) from error


def _measure_ranks(out: Path | None, seconds: float, tp: int) -> None:
    """Time all-reduces in one process per GPU, started here or by torchrun."""
    from calibration.measure import measure_ranks
    from perfmodel import ConfigError

    if out is None:
        raise ConfigError("no output file; add --out FILE")
    with engine_errors():
        from runtime import InputError, launch_ranks, provenance, require_gpu, run_rank

        launching = "RANK" not in os.environ
        require_gpu("timing all-reduces", tp if launching else 1)
        if launching:
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
            metavar="RECORDS", help="Records of `calibrate measure`, or published kernel tables."
        ),
    ],
    output: Annotated[Path, option("DIR", "Folder for the fitted catalog files.")] = Path(
        "efficiency"
    ),
    gpu: Annotated[
        str | None, option("NAME", "GPU from the catalog; needed if the input does not name it.")
    ] = None,
    plot: Annotated[
        Path | None, option("FILE", "Also write a page with charts of the residuals.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit efficiency curves to records, and print their errors and what could not be fitted."""
    from calibration.fit import fit_inputs
    from perfmodel import ConfigError

    report = fit_inputs(records, gpu=gpu)
    if not report.files:
        raise ConfigError(f"not enough records to fit anything: {'; '.join(report.missing)}")
    written = write_files(report.files, output)
    if plot:
        from app.render.pages import fit_html

        write_text(plot, fit_html(report))
    if as_json:
        print_json(report.to_dict() | {"written": [str(path) for path in written]})
    else:
        print("\n".join([*report.lines(console().width), *(f"wrote {path}" for path in written)]))


@calibrate_app.command("fit-tables")
def fit_tables(
    tables: Annotated[
        Path, typer.Argument(metavar="DIR", help="aiconfigurator's tables; downloaded if missing.")
    ],
    output: Output,
    gpu: Annotated[
        list[str] | None, option("NAME", "GPU to fit; may be repeated. All by default.")
    ] = None,
) -> None:
    """Fit GEMM, attention and collective curves to public kernel tables, and print the errors."""
    from calibration.fit import fit_public_tables

    for report in fit_public_tables(tables, gpu or ()):
        written = write_files(report.files, output)
        print(
            "\n".join([*report.lines(console().width), *(f"wrote {path}" for path in written)]),
            flush=True,
        )


@calibrate_app.command("fit-published")
def fit_published(output: Output) -> None:
    """Fit MagicDec's engine profile and the published models' acceptance curves."""
    from calibration.acceptance import fit_published_curves
    from calibration.fit import fit_published_engine

    files, lines = fit_published_engine()
    curve_files, curve_lines = fit_published_curves()
    written = write_files(files | curve_files, output)
    print("\n".join([*lines, *curve_lines, *(f"wrote {path}" for path in written)]))
