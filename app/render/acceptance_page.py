"""Measured acceptance as one HTML file: charts, and the tables of its Markdown report."""

from __future__ import annotations

from collections.abc import Sequence

from app.render.html_page import html_page, require_plotly
from calibration.acceptance import AcceptanceReport


def acceptance_html(report: AcceptanceReport, lines: Sequence[str]) -> str:
    """The page's text; `lines` are the report in Markdown.

    Raises
    ------
    ConfigError
        If plotly is not installed.
    """
    require_plotly()
    from app.charts.acceptance import measured_budgets, measured_positions

    by_budget = measured_budgets(report.grid, [fit.curve for fit in report.fits])
    by_position = measured_positions(report.grid)
    text = "\n".join(lines)
    return html_page("acceptance", "# Measured acceptance", [by_budget], [by_position], text)
