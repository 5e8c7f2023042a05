"""`specroof calibrate fit-tables` and `fit-published`: fit the catalog to public measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import option
from app.cli.output import write_files

Output = Annotated[Path, option("DIR", "Catalog folder to write to.")]


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
        print("\n".join([*report.lines(), *(f"wrote {path}" for path in written)]), flush=True)


def fit_published(output: Output) -> None:
    """Fit MagicDec's engine profile and the published models' acceptance curves."""
    from calibration.acceptance import fit_published_curves
    from calibration.fit import fit_published_engine

    files, lines = fit_published_engine()
    curve_files, curve_lines = fit_published_curves()
    written = write_files(files | curve_files, output)
    print("\n".join([*lines, *curve_lines, *(f"wrote {path}" for path in written)]))
