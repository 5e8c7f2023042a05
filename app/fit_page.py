"""A fit as one HTML file: its errors by region as charts, and as text."""

from __future__ import annotations

from html import escape

from app.html_report import FIT, STYLE, chart_element
from calibration.own_fit import FitReport
from perfmodel import ConfigError


def fit_html(report: FitReport) -> str:
    """The page's text.

    Raises
    ------
    ConfigError
        If plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs

        from app.charts.residuals import residual_boxes
    except ModuleNotFoundError as error:
        raise ConfigError(
            "charts need plotly; install specroof with its extra: specroof[report]"
        ) from error
    charts = "".join(
        chart_element(residual_boxes(errors)) for errors in report.errors if errors.found
    )
    text = "\n".join(report.lines())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,"><title>specroof: fit</title>'
        f"<style>{STYLE}</style><script>{get_plotlyjs()};{FIT}</script></head>\n"
        f"<body><h1>Fit of {escape(report.gpu)}</h1>"
        f'<div class="charts">{charts}</div><pre class="scroll">{escape(text)}</pre>'
        "</body></html>\n"
    )
