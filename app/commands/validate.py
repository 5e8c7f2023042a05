"""`specroof validate`: predicted against measured, in sample and held out."""

from __future__ import annotations

import sys
from pathlib import Path

from app.output import atomic_text, print_json
from calibration.draw_cases import DrawOptions, draw_cases, expected_seconds
from calibration.published_report import report_lines, validate_published
from calibration.validate_run import REPEATS, by_pair
from perfmodel import OutsideTolerance


def run_published(*, tolerance: float, as_json: bool) -> int:
    """Print the errors on published rows.

    Raises
    ------
    OutsideTolerance
        If the held-out mean absolute error of a phase exceeds `tolerance` percent.
    """
    report = validate_published()
    if as_json:
        print_json(report.to_dict() | {"tolerance_percent": tolerance})
    else:
        print("\n".join(report_lines(report)))
    outside = report.outside(tolerance)
    if outside:
        raise OutsideTolerance(f"held-out mean error above {tolerance:g} %: {', '.join(outside)}")
    return 0


def run_draw(output: Path, options: DrawOptions) -> int:
    """Draw cases, write them, and say how long they will take.

    Raises
    ------
    ConfigError
        If nothing fits, or the file cannot be written.
    """
    cases = draw_cases(options)
    with atomic_text(output) as file:
        file.write(cases.text())
    seconds = expected_seconds(cases, repeats=REPEATS, gpu=options.gpu)
    pairs = len(by_pair(cases.cases))
    print(f"{output}: {len(cases.cases)} cases of {pairs} pairs of models, about {seconds:.0f} s")
    print(f"python -m calibration.validate_run --cases {output} --out FILE.jsonl", file=sys.stderr)
    return 0
