"""The recommendation as one HTML file: text, tables and charts, with no request to anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from app.tables import (
    PLAN_HEADER,
    facts,
    plan_rows,
    schedule_rows,
    sensitivity_rows,
    unmeasured_rows,
)
from perfmodel import (
    ConfigError,
    Recommendation,
    Scenario,
    estimate,
    format_tokens,
    prediction_dict,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

# A chart is drawn when its own element is parsed, before the grid around it has its final width.
FIT = "addEventListener('load', () => dispatchEvent(new Event('resize')))"
STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1280px; margin: 0 auto;
       padding: 1rem }
h1 { font-size: 1.4rem; line-height: 1.3 } h2 { font-size: 1.1rem; margin-top: 2rem }
.charts { display: grid; gap: 1rem;
          grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)) }
.chart { min-width: 0; border: 1px solid #ddd; border-radius: 6px; overflow: hidden }
.chart h3 { font-size: 1rem; margin: .7rem 1rem 0 }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #eee;
         white-space: nowrap }
th:first-child, td:first-child { text-align: left }
code { background: #f4f4f4; padding: .1rem .3rem; border-radius: 3px; overflow-wrap: anywhere }
li { overflow-wrap: anywhere }
"""


def report_html(answer: Recommendation, result: Mapping[str, Any]) -> str:
    """The report's text.

    Parameters
    ----------
    answer : Recommendation
        What the charts are drawn from.
    result : mapping
        Its JSON form (docs/json.md), which the tables show.

    Raises
    ------
    ConfigError
        If plotly is not installed.
    """
    script, charts = _charts(answer)
    sections = [
        f"<h1>{escape(result['sentence'])}</h1>",
        f"<p>{_scenario(result['best']['scenario'])}</p>",
        "<h2>Plans</h2>",
        _table(PLAN_HEADER, plan_rows(result)),
        _list(facts(result)),
        f'<div class="charts">{"".join(charts)}</div>',
        *_more_tables(result),
        "<h2>Where the numbers come from</h2>",
        _list(origin_lines((answer.studied or answer.best).scenario)),
        "<h2>Notes</h2>",
        _list(result["notes"] or ["none"]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,"><title>specroof: recommendation</title>'
        f"<style>{STYLE}</style><script>{script};{FIT}</script></head>\n"
        f"<body>{''.join(sections)}</body></html>\n"
    )


def _charts(answer: Recommendation) -> tuple[str, list[str]]:
    """plotly.js itself, and one element per chart; no chart where no acceptance is known."""
    studied = answer.studied
    if studied is None:
        return "", []
    try:
        from plotly.offline import get_plotlyjs

        from app import charts
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the HTML report needs plotly; install specroof with its extra: specroof[report]"
        ) from error
    point = estimate(studied.scenario)
    figures = [charts.speedup_map(studied.scenario), charts.round_waterfall(point)]
    figures.append(charts.step_parts(point))
    if studied.scenario.plan.policy != "full":
        figures.append(charts.budget_map(studied.scenario))
    figures.append(charts.tornado(answer.sensitivities, studied.speedup))
    return get_plotlyjs(), [chart_element(figure) for figure in figures]


def chart_element(figure: go.Figure) -> str:
    """A figure under its title, which as text wraps on a narrow screen."""
    title = figure.layout.title.text
    figure.update_layout(title_text="", margin_t=10)
    element = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"responsive": True, "displayModeBar": False},
    )
    return f'<div class="chart"><h3>{escape(title)}</h3>{element}</div>'


def _more_tables(result: Mapping[str, Any]) -> list[str]:
    parts: list[str] = []
    if result["unmeasured"]:
        parts += [
            "<h2>Draft choices without a measured acceptance, and the α each needs</h2>",
            _table(("plan", "TP", "α to break even"), unmeasured_rows(result["unmeasured"])),
        ]
    if result["sensitivities"]:
        changes = ("input", "change", "speedup from", "to")
        parts += ["<h2>If an input is off</h2>", _table(changes, sensitivity_rows(result))]
    schedule = result["gamma_schedule"]
    if schedule:
        header = ("batch", *(f"{format_tokens(t)} tokens" for t in schedule["prefix_tokens"]))
        parts += [
            "<h2>Best γ over batch and prefix (0: decode plainly; a dot: does not fit)</h2>",
            _table(header, schedule_rows(schedule)),
        ]
    return parts


def origin_lines(scenario: Scenario) -> list[str]:
    """Origin of each number of a plan, and its sources."""
    prediction = prediction_dict(estimate(scenario))
    gpu, acceptance = scenario.machine.gpu, prediction["acceptance"]
    return [
        *(f"{name}: {origin}" for name, origin in prediction["origin"].items()),
        f"kernel efficiencies: those of {gpu.efficiency}, {gpu.efficiency_reason}",
        f"datasheet of {gpu.name}: {gpu.source}",
        f"acceptance: {acceptance['source']}",
        f"engine {scenario.engine.name}: {scenario.engine.source}",
    ]


def _scenario(scenario: Mapping[str, Any]) -> str:
    return " ".join(f"<code>{escape(f'{k} = {v}')}</code>" for k, v in scenario.items())


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _list(lines: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
