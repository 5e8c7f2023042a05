"""HTML pages of a simulation, a fit, measured acceptance, and a validation run, as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from app.render.html_page import code, html_page, plain, table
from app.render.simulation_tables import closed_form_line, gain_line, run_rows, workload_line
from app.render.tables import scenario_line

if TYPE_CHECKING:
    from calibration.acceptance import AcceptanceReport
    from calibration.fit import FitReport
    from calibration.records import RowError
    from calibration.validate import Comparison


def simulation_html(result: Mapping[str, Any]) -> str:
    """A simulation: its figures as a table, and the timeline.

    `result` is its JSON form (docs/reference/json.md).
    """
    from app.charts.simulation import timeline

    gains = [plain(gain_line(gain)) for gain in result["gains"]]
    labels = [run["label"] for run in result["runs"]]
    text = ["# Simulation", code(scenario_line(result["scenario"]))]
    if result["workload"] is not None:
        text.append(plain(workload_line(result["workload"])))
    text += [*gains, plain(closed_form_line(result)), plain(result["evidence"]["sentence"])]
    text += [table(("", *labels), run_rows(result))]
    return html_page("simulation", "\n\n".join(text), [timeline(result)])


def fit_html(report: FitReport) -> str:
    """A fit of kernel curves: its errors by region."""
    from app.charts.residuals import residual_boxes

    figures = [residual_boxes(errors) for errors in report.errors if errors.cells]
    text = "\n".join(f"    {line}" for line in report.lines(width=120))
    return html_page("fit", f"# Fit of {plain(report.gpu)}", figures, text)


def acceptance_html(report: AcceptanceReport, lines: Sequence[str]) -> str:
    """Measured acceptance: charts, and the tables of the Markdown report in `lines`."""
    from app.charts.acceptance import measured_budgets, measured_positions

    by_budget = measured_budgets(report.grid, [fit.curve for fit in report.fits])
    by_position = measured_positions(report.grid)
    text = "\n".join(lines)
    return html_page("acceptance", "# Measured acceptance", [by_budget], [by_position], text)


def validation_html(comparison: Comparison) -> str:
    """A validation run: the summary, charts, errors by region, and every case."""
    from app.charts.validation import error_by_phase, measured_scatter
    from calibration.validate import comparison_markdown

    rows = [e.as_row(comparison.gpu, comparison.engine) for e in comparison.errors]
    rows = [row for row in rows if len(row.errors) == 3]
    by_target: dict[str, list[RowError]] = defaultdict(list)
    for row in rows:
        by_target[row.row.target].append(row)
    figures = [measured_scatter(rows), error_by_phase(by_target)]
    summary, heading, sections = comparison_markdown(comparison).partition("\n## ")
    return html_page("predicted and measured", summary, figures, heading + sections)
