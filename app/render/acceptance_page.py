"""A report of measured acceptance as one HTML file: tables and charts, with nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from app.render.html_page import html_page, plotly_needed
from calibration.acceptance import AcceptanceReport


def acceptance_html(report: AcceptanceReport, lines: Sequence[str]) -> str:
    """The page's text; `lines` are the report in Markdown.

    Raises
    ------
    ConfigError
        If plotly is not installed.
    """
    with plotly_needed():
        from app.charts.acceptance import measured_budgets, measured_positions
    figures = (
        measured_budgets(report.grid, [fit.curve for fit in report.fits]),
        measured_positions(report.grid),
    )
    charts = "".join(
        f'<div class="chart">'
        f"{f.to_html(full_html=False, include_plotlyjs=False, config={'responsive': True})}</div>"
        for f in figures
    )
    body = f"<h1>Measured acceptance</h1>{charts}{_tables(lines)}"
    return html_page("measured acceptance", body)


def _tables(lines: Sequence[str]) -> str:
    """Headings, paragraphs and tables of the Markdown that the report writes."""
    parts: list[str] = []
    inside = False
    for line in lines:
        row = line.startswith("|")
        if row != inside:
            parts.append('<div class="scroll"><table>' if row else "</table></div>")
            inside = row
        if row and not line.startswith("|---"):
            cells = "".join(f"<td>{escape(cell.strip())}</td>" for cell in line.split("|")[1:-1])
            parts.append(f"<tr>{cells}</tr>")
        elif line.startswith("## "):
            parts.append(f"<h2>{escape(line[3:])}</h2>")
        elif line and not row:
            parts.append(f"<p>{escape(line)}</p>")
    return "".join([*parts, "</table></div>" if inside else ""])
