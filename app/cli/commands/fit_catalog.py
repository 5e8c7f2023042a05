"""`specroof calibrate fit-tables` and `fit-published`: catalog files from public measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from app.cli.output import write_files

Output = Annotated[Path, typer.Option(metavar="DIR", help="Catalog to write into.")]


def fit_tables(
    tables: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="aiconfigurator's tables; downloaded if they are not."),
    ],
    output: Output,
    gpu: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only these GPUs; repeat it.", show_default=False),
    ] = None,
) -> None:
    """Fit products, attention and collectives to public kernel tables; print the errors."""
    from calibration.fit.tables.fit import fetch_missing, fit_tables
    from calibration.fit.tables.gpus import GPUS

    fetch_missing(tables)
    for name in gpu or GPUS:
        report = fit_tables(tables, name)
        written = write_files(report.files, output)
        print("\n".join([*report.lines(), *(f"wrote {path}" for path in written)]), flush=True)


def fit_published(output: Output) -> None:
    """Fit MagicDec's engine profile and the acceptance curves to published figures."""
    from calibration.acceptance import published_fit
    from calibration.fit import magicdec

    engine = magicdec.fit_magicdec()
    curves = published_fit.fit_all(published_fit.published_points())
    lines = ["engine magicdec", *(f"  {line}" for line in magicdec.report_lines(engine))]
    lines += published_fit.report_lines(curves)
    files = magicdec.catalog_files(engine) | published_fit.catalog_files(curves)
    written = write_files(files, output)
    print("\n".join([*lines, *(f"wrote {path}" for path in written)]))
