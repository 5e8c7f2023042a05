"""A simulation as one HTML file: figures as a table, and the timeline; nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from app.render.html_page import html_page, plotly_needed
from app.render.simulation_tables import REQUESTS, ROUNDS, gain_line
from app.render.tables import scenario_line


def simulation_html(result: Mapping[str, Any]) -> str:
    """The page's text, from the JSON form (docs/json.md).

    Raises
    ------
    ConfigError
        If plotly is not installed.
    """
    with plotly_needed():
        from app.charts.simulation import timeline
    chart = timeline(result).to_html(
        full_html=False, include_plotlyjs=False, config={"responsive": True}
    )
    cells = REQUESTS if result["level"] == "requests" else ROUNDS
    head = "".join(f"<th>{escape(run['label'])}</th>" for run in result["runs"])
    rows = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td>{escape(cell(run))}</td>" for run in result["runs"])
        + "</tr>"
        for name, cell in cells.items()
    )
    gains = "".join(f"<p>{escape(gain_line(gain))}</p>" for gain in result["gains"])
    body = (
        f"<h1>Simulation</h1><p><code>{escape(scenario_line(result['scenario']))}</code></p>"
        f'{gains}<div class="scroll"><table><tr><th></th>{head}</tr>{rows}</table></div>'
        f'<div class="chart"><h3>Timeline</h3>{chart}</div>'
    )
    return html_page("simulation", body)
