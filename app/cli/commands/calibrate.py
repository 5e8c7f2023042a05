"""`specroof calibrate fit`: records in, catalog files and their errors out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app.cli.output import atomic_text, print_json, write_files
from calibration.fit.inputs import fit_inputs
from calibration.records.steps import RecordError
from perfmodel import ConfigError


def run_fit(
    records: Sequence[Path],
    *,
    output: Path,
    gpu: str | None,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Fit, write the files, and print what was found and what is missing.

    Raises
    ------
    ConfigError
        If a record cannot be used, or there is too little to fit anything.
    """
    try:
        report = fit_inputs(records, gpu=gpu)
    except RecordError as error:
        raise ConfigError(str(error)) from error
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
    return 0
