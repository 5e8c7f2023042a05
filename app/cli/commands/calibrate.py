"""`specroof calibrate measure` and `fit`: time kernels, and fit curves to the records."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from app.cli.output import atomic_text, print_json, write_files
from calibration.fit import fit_inputs
from calibration.measure import chosen_groups, listing, measure_groups
from perfmodel import ConfigError


def run_measure(
    out: Path | None, *, seconds: float, every: int, groups: Sequence[str], show: bool
) -> int:
    """Time the kernels of these groups, or list them.

    Raises
    ------
    ConfigError
        If a group is unknown, the file is another run's, or torch or the GPU is missing.
    """
    plan = chosen_groups(groups, every=every)
    if show:
        print(listing(plan))
        return 0
    if out is None:
        raise ConfigError("--out FILE says where the records go")
    try:
        from runtime import provenance

        header = provenance(["specroof", *sys.argv[1:]])
        print(measure_groups(out, seconds, plan, header))
    except (ModuleNotFoundError, OSError) as error:
        raise ConfigError(str(error)) from error
    return 0


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
    return 0
