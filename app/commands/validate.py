"""`specroof validate`: predicted against measured, in sample and held out."""

from __future__ import annotations

from app.output import print_json
from calibration.published_report import report_lines, validate_published
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
