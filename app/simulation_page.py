"""A simulation as one HTML file: figures as a table, and the timeline; nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from app.html_report import FIT, STYLE
from app.simulation_tables import REQUESTS, ROUNDS, gain_line
from app.tables import scenario_line
from perfmodel import ConfigError


def simulation_html(result: Mapping[str, Any]) -> str:
    """The page's text, from the JSON form (docs/json.md).

    Raises
    ------
    ConfigError
        If plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs

        from app.simulation_charts import timeline
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the HTML report needs plotly; install specroof with its extra: specroof[report]"
        ) from error
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
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,"><title>specroof: simulation</title>'
        f"<style>{STYLE}</style><script>{get_plotlyjs()};{FIT}</script></head>\n"
        f"<body><h1>Simulation</h1><p><code>{escape(scenario_line(result['scenario']))}</code></p>"
        f'{gains}<div class="scroll"><table><tr><th></th>{head}</tr>{rows}</table></div>'
        f'<div class="chart"><h3>Timeline</h3>{chart}</div></body></html>\n'
    )
