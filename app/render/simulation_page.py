"""A simulation as one HTML file: its figures as a table, and the timeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.render.html_page import code, html_page, plain, require_plotly, table
from app.render.simulation_tables import gain_line, run_rows
from app.render.tables import scenario_line


def simulation_html(result: Mapping[str, Any]) -> str:
    """The page's text, from the JSON form (docs/reference/json.md).

    Raises
    ------
    ConfigError
        If plotly is not installed.
    """
    require_plotly()
    from app.charts.simulation import timeline

    gains = [plain(gain_line(gain)) for gain in result["gains"]]
    labels = [run["label"] for run in result["runs"]]
    text = ["# Simulation", code(scenario_line(result["scenario"])), *gains]
    text.append(table(("", *labels), run_rows(result)))
    return html_page("simulation", "\n\n".join(text), [timeline(result)])
