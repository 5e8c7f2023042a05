"""The recommendation as a self-contained HTML page: text, tables and charts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from app.render.html_page import bullets, code, html_page, plain, table
from app.render.recommendation_tables import (
    PLAN_HEADER,
    UNMEASURED_HEADER,
    after_answer,
    facts,
    plan_rows,
    schedule_legend,
    schedule_rows,
    sensitivity_rows,
    unmeasured_rows,
)
from perfmodel import Recommendation, Scenario, estimate, prediction_dict
from perfmodel.units import format_tokens

if TYPE_CHECKING:
    import plotly.graph_objects as go


def report_html(answer: Recommendation, result: Mapping[str, Any]) -> str:
    """The page as text: charts of `answer`, and tables of its JSON form, `result`."""
    scenario = result["best"]["scenario"].items()
    before = [
        f"# {plain(result['answer'])}",
        plain(" ".join(after_answer(result))),
        " ".join(code(f"{key} = {value}") for key, value in scenario),
        "## Plans at full load" if result["full_load"] else "## Plans",
        table(PLAN_HEADER, plan_rows(result)),
        bullets(facts(result)),
    ]
    after = [
        *_more_tables(result),
        "## Where the numbers come from",
        bullets(origin_lines((answer.studied or answer.best).scenario)),
        "## Notes",
        bullets(result["notes"] or ["none"]),
    ]
    figures = _figures(answer)
    return html_page("recommendation", "\n\n".join(before), figures, "\n\n".join(after))


def _figures(answer: Recommendation) -> list[go.Figure]:
    """The charts; none if no draft's acceptance is known."""
    studied = answer.studied
    if studied is None:
        return []
    from app import charts

    point = estimate(studied.scenario)
    grid = charts.gain_grid(studied.scenario, answer.rule)
    figures = [charts.speedup_map(studied.scenario, grid), charts.round_waterfall(point)]
    figures.append(charts.step_parts(point))
    if studied.scenario.plan.policy != "full":
        figures.append(charts.budget_map(studied.scenario))
    figures.append(charts.tornado(answer.sensitivities, studied.gain, what="gain"))
    return figures


def _more_tables(result: Mapping[str, Any]) -> list[str]:
    parts: list[str] = []
    if result["unmeasured"]:
        parts += [
            "## Drafts without a measured acceptance, and the α that each needs",
            table(UNMEASURED_HEADER, unmeasured_rows(result["unmeasured"])),
        ]
    if result["sensitivities"]:
        changes = ("input", "change", "gain from", "to")
        parts += [
            "## Sensitivity to errors of the inputs",
            table(changes, sensitivity_rows(result)),
        ]
    schedule = result["gamma_schedule"]
    if schedule:
        header = ("batch", *(f"{format_tokens(t)} tokens" for t in schedule["prompt_tokens"]))
        parts += [
            f"## Best γ by batch and prompt ({schedule_legend(schedule)})",
            table(header, schedule_rows(schedule)),
        ]
    return parts


ORIGINS = {  # keys of `predict --json` in words
    "target_step_s": "T_T, a plain step",
    "verify_s": "T_V, verification",
    "draft_step_s": "T_D, a step of the draft",
    "overhead_s": "overhead of a round",
    "tokens_per_round": "tokens per round",
    "memory_bytes_per_gpu": "memory",
}


def origin_lines(scenario: Scenario) -> list[str]:
    """The origin of each predicted number, and the sources of the inputs."""
    prediction = prediction_dict(estimate(scenario))
    gpu, acceptance = scenario.machine.gpu, prediction["acceptance"]
    return [
        *(f"{ORIGINS[name]}: {origin}" for name, origin in prediction["origin"].items()),
        f"kernel efficiencies of {gpu.efficiency}, {gpu.efficiency_reason}",
        f"datasheet of {gpu.name}: {gpu.source}",
        f"acceptance: {acceptance['source']}",
        f"engine {scenario.engine.name}: {scenario.engine.source}",
    ]
