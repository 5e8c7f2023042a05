"""A fit as one HTML file: its errors by region as charts, and as text."""

from __future__ import annotations

from app.render.html_page import html_page, plain, require_plotly
from calibration.fit import FitReport


def fit_html(report: FitReport) -> str:
    """The page's text.

    Raises
    ------
    ConfigError
        If plotly is not installed.
    """
    require_plotly()
    from app.charts.residuals import residual_boxes

    figures = [residual_boxes(errors) for errors in report.errors if errors.cells]
    text = "\n".join(f"    {line}" for line in report.lines())
    return html_page("fit", f"# Fit of {plain(report.gpu)}", figures, text)
