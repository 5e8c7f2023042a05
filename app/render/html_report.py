"""The recommendation as one HTML file: text, tables and charts, with no request to anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from app.render.html_page import chart_element, html_page, plotly_needed
from app.render.tables import (
    PLAN_HEADER,
    facts,
    plan_rows,
    schedule_rows,
    sensitivity_rows,
    unmeasured_rows,
)
from perfmodel import (
    Recommendation,
    Scenario,
    estimate,
    format_tokens,
    prediction_dict,
)

if TYPE_CHECKING:
    pass


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
    charts = _charts(answer)
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
    return html_page("recommendation", "".join(sections), charts=bool(charts))


def _charts(answer: Recommendation) -> list[str]:
    """One element per chart; none where no acceptance is known."""
    studied = answer.studied
    if studied is None:
        return []
    with plotly_needed():
        from app import charts
    point = estimate(studied.scenario)
    figures = [charts.speedup_map(studied.scenario), charts.round_waterfall(point)]
    figures.append(charts.step_parts(point))
    if studied.scenario.plan.policy != "full":
        figures.append(charts.budget_map(studied.scenario))
    figures.append(charts.tornado(answer.sensitivities, studied.speedup))
    return [chart_element(figure) for figure in figures]


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
