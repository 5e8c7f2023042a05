"""Compare predicted with measured steps: sample cases, time them, report the errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibration import lazy_names

if TYPE_CHECKING:
    from calibration.validate.errors import Comparison as Comparison
    from calibration.validate.errors import compare as compare
    from calibration.validate.peers import read_peers as read_peers
    from calibration.validate.published_report import PublishedReport as PublishedReport
    from calibration.validate.published_report import report_lines as report_lines
    from calibration.validate.published_report import validate_published as validate_published
    from calibration.validate.report import TABLE_START as TABLE_START
    from calibration.validate.report import comparison_dict as comparison_dict
    from calibration.validate.report import comparison_lines as comparison_lines
    from calibration.validate.report import comparison_markdown as comparison_markdown
    from calibration.validate.report import readme_table as readme_table
    from calibration.validate.report import replace_table as replace_table
    from calibration.validate.run import REPEATS as REPEATS
    from calibration.validate.run import by_pair as by_pair
    from calibration.validate.run import pair_lines as pair_lines
    from calibration.validate.run import time_cases as time_cases
    from calibration.validate.sample import SampleOptions as SampleOptions
    from calibration.validate.sample import expected_seconds as expected_seconds
    from calibration.validate.sample import sample_cases as sample_cases
    from calibration.validate.sample import sample_rounds as sample_rounds

__getattr__ = lazy_names(
    __name__,
    errors=("Comparison", "compare"),
    peers=("read_peers",),
    published_report=("PublishedReport", "report_lines", "validate_published"),
    report=(
        "TABLE_START",
        "comparison_dict",
        "comparison_lines",
        "comparison_markdown",
        "readme_table",
        "replace_table",
    ),
    run=("REPEATS", "by_pair", "pair_lines", "time_cases"),
    sample=("SampleOptions", "expected_seconds", "sample_cases", "sample_rounds"),
)
