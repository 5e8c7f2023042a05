"""A fit as one HTML file: its errors by region as charts, and as text."""

from __future__ import annotations

from html import escape

from app.render.html_page import chart_element, html_page, plotly_needed
from calibration.fit import FitReport


def fit_html(report: FitReport) -> str:
    """The page's text.

    Raises
    ------
    ConfigError
        If plotly is not installed.
    """
    with plotly_needed():
        from app.charts.residuals import residual_boxes
    charts = "".join(
        chart_element(residual_boxes(errors)) for errors in report.errors if errors.cells
    )
    text = "\n".join(report.lines())
    body = (
        f"<h1>Fit of {escape(report.gpu)}</h1>"
        f'<div class="charts">{charts}</div><pre class="scroll">{escape(text)}</pre>'
    )
    return html_page("fit", body)
