"""A validation run as one HTML file: the summary, charts, errors by region, and every case."""

from __future__ import annotations

from collections import defaultdict

from app.render.html_page import html_page, require_plotly
from calibration.records import RowError
from calibration.validate import Comparison, comparison_markdown


def validation_html(comparison: Comparison) -> str:
    """The page's text.

    Raises
    ------
    ConfigError
        If plotly is not installed.
    """
    require_plotly()
    from app.charts.validation import error_by_phase, measured_scatter

    rows = [e.as_row(comparison.gpu, comparison.engine) for e in comparison.errors]
    rows = [row for row in rows if len(row.errors) == 3]
    by_target: dict[str, list[RowError]] = defaultdict(list)
    for row in rows:
        by_target[row.row.target].append(row)
    figures = [measured_scatter(rows), error_by_phase(by_target)]
    summary, heading, sections = comparison_markdown(comparison).partition("\n## ")
    return html_page("predicted and measured", summary, figures, heading + sections)
