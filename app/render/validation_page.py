"""A validation run as one HTML file: charts, errors by region, and every case."""

from __future__ import annotations

import re
from collections import defaultdict
from html import escape

from app.render.html_page import chart_element, html_page, plotly_needed
from calibration.records import RowError
from calibration.validate import Comparison, comparison_markdown


def validation_html(comparison: Comparison) -> str:
    """The report's text.

    Raises
    ------
    ConfigError
        If plotly is not installed.
    """
    with plotly_needed():
        from app.charts.validation import error_by_phase, measured_scatter
    rows = [e.as_row(comparison.gpu, comparison.engine) for e in comparison.errors]
    rows = [row for row in rows if len(row.errors) == 3]
    by_target: dict[str, list[RowError]] = defaultdict(list)
    for row in rows:
        by_target[row.row.target].append(row)
    figures = [measured_scatter(rows), error_by_phase(by_target)]
    charts = "".join(chart_element(figure) for figure in figures)
    body = _body(comparison_markdown(comparison), f'<div class="charts">{charts}</div>')
    return html_page("predicted and measured", body)


def _body(text: str, charts: str) -> str:
    """The Markdown of a report as HTML, with the charts before its first section."""
    parts: list[str] = []
    for block in text.strip().split("\n\n"):
        if block.startswith("## ") and charts:
            parts.append(charts)
            charts = ""
        parts.append(_block(block))
    return "".join(parts)


def _block(block: str) -> str:
    if block.startswith("#"):
        level = len(block) - len(block.lstrip("#"))
        return f"<h{level}>{escape(block[level + 1 :])}</h{level}>"
    if block.startswith("- "):
        return f"<ul><li>{escape(block[2:])}</li></ul>"
    if block.startswith("|"):
        lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in block.splitlines()]
        head = "".join(f"<th>{escape(cell)}</th>" for cell in lines[0])
        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>"
            for line in lines[2:]
        )
        return f'<div class="scroll"><table><tr>{head}</tr>{rows}</table></div>'
    return "<p>" + re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(block)) + "</p>"
