"""The acceptance report as Markdown, with the tables of docs/results/acceptance.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from calibration.acceptance.cells import Cell
from calibration.acceptance.fit import RecordFit
from calibration.acceptance.report import GAMMAS, AcceptanceReport, Compared
from calibration.records.acceptance import LAGS
from calibration.records.markdown import markdown_table

POSITIONS = (1, 2, 4, 8, 16)


def report_lines(report: AcceptanceReport) -> list[str]:
    """The report as lines of Markdown."""
    header, grid = report.header, report.grid
    scored = int(header["scored_tokens"])
    lines = [
        f"{header['model']}, draft {header['draft']}, temperature {header['temperature']:g}, "
        f"{header['dtype']}, {header['device']}; {scored} scored tokens per window in rounds of "
        f"{header['gamma']}.",
        *_section("Acceptance by KV budget", _budget_table(grid, _alpha)),
        *_section("Windows per cell", _budget_table(grid, lambda cell: str(cell.windows))),
        *_section("Greedy agreement", _budget_table(grid, lambda cell: f"{cell.greedy:.3f}")),
        *_section("Acceptance by position in a round", _position_table(grid)),
        *_section("Deviation from independent draws", _spread_table(grid)),
        *_section("Fitted curves", _fit_table(report.fits)),
    ]
    in_grid = {cell.key for cell in grid}
    full = [
        cell.alpha
        for cell in report.cells
        if cell.key not in in_grid and cell.key.view.policy == "full"
    ]
    if full and header["draft"] == "self":
        lines += ["", f"With the full cache, α is at least {min(full):.7f} in {len(full)} cells."]
    lines += _section("Predicted and counted tokens", _compared_table(report.compared, scored))
    return lines + _median_lines(report, scored)


def _median_lines(report: AcceptanceReport, scored: int) -> list[str]:
    """Median errors of the curve on sampled runs, for all policies and for each."""
    lines = []
    for policy in (None, *sorted({row.run.view.policy for row in report.compared})):
        whole, early = (
            report.median_error(greedy=False, early=early, policy=policy) for early in (False, True)
        )
        if whole is not None and early is not None:
            lines.append(
                f"- {policy or 'all'}: {100 * whole:.1f} % for whole runs, "
                f"{100 * early:.1f} % for their first {scored} tokens"
            )
    return ["", "Median error of the curve:", "", *lines] if lines else []


def _section(title: str, table: str) -> list[str]:
    return ["", f"## {title}", "", *table.splitlines()] if table else []


def _budget_table(grid: Sequence[Cell], shown: Callable[[Cell], str]) -> str:
    """One row per text, context length and policy, one column per KV budget."""
    rows: dict[tuple[str, str, str], dict[int, Cell]] = {}
    for cell in grid:
        key = (cell.key.text, f"{cell.key.context_tokens:,}", cell.key.view.policy)
        rows.setdefault(key, {})[cell.key.view.kv_budget or 0] = cell
    budgets = sorted({budget for row in rows.values() for budget in row})
    return markdown_table(
        ["text", "context", "policy", *(f"{budget:,}" for budget in budgets)],
        (
            [*key, *(shown(row[budget]) if budget in row else "" for budget in budgets)]
            for key, row in rows.items()
        ),
    )


def _alpha(cell: Cell) -> str:
    """Mean acceptance and half the width of its 90 % interval."""
    low, high = cell.interval()
    return f"{cell.alpha:.3f} ±{(high - low) / 2:.3f}"


def _position_table(grid: Sequence[Cell]) -> str:
    """Mean Σ min(p, q), and in brackets the mean if all previous drafts were accepted."""
    shown = [i for i in POSITIONS if grid and i <= grid[0].gamma]
    rows = []
    for cell in grid:
        pairs = zip(cell.by_position, cell.conditional, strict=True)
        values = [f"{mean:.3f} ({given:.3f})" for mean, given in pairs]
        rows.append([*_name(cell), *(values[i - 1] for i in shown)])
    return markdown_table(["text", "context", "view", *map(str, shown)], rows)


def _spread_table(grid: Sequence[Cell]) -> str:
    gammas = [gamma for gamma in GAMMAS if grid and gamma <= grid[0].gamma]
    rows = []
    for cell in grid:
        lags = dict(zip(LAGS, cell.lag_correlations, strict=True))
        readings = (
            cell.tokens_iid,
            cell.tokens_chained,
            cell.tokens_consecutive,
            cell.tokens_weighted,
        )
        tokens = [" / ".join(f"{read(gamma):.2f}" for read in readings) for gamma in gammas]
        spread = f"{cell.window_spread:.3f}"
        rows.append([*_name(cell), f"{lags[1]:+.2f}", f"{lags[4]:+.2f}", spread, *tokens])
    header = ["text", "context", "view", "lag 1", "lag 4", "between windows"]
    header += [f"Ω({gamma}) iid / along text / consecutive / weighted" for gamma in gammas]
    return markdown_table(header, rows)


def _fit_table(fits: Sequence[RecordFit]) -> str:
    numbers = {
        "level": ".4f",
        "context_exponent": ".4f",
        "budget_exponent": ".4f",
        "budget_offset": ".0f",
        "fullness_exponent": ".2f",
        "sigma": ".3f",
    }
    rows = []
    for fit in fits:
        errors = (float(np.sqrt(np.mean(fit.residual**2))), float(np.abs(fit.residual).max()))
        rows.append(
            [
                fit.curve.draft_policy,
                str(len(fit.cells)),
                *(format(getattr(fit.curve, name), form) for name, form in numbers.items()),
                *(f"{error:.4f}" for error in errors),
            ]
        )
    names = [name.replace("_", " ") for name in numbers if name != "sigma"]
    header = ["policy", "cells", *names, "sigma of ln(loss)", "rms in α", "worst"]
    return markdown_table(header, rows)


def _compared_table(compared: Sequence[Compared], scored: int) -> str:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    def percent(error: float | None) -> str:
        return "" if error is None else f"{100 * error:+.1f}"

    header = ["text", "context", "view", "γ", "temperature", "counted", "curve", "error %"]
    header += [f"first {scored} tokens", "error %", "other windows"]
    rows = (
        [
            row.run.text,
            f"{row.run.context_tokens:,}",
            row.run.view.label,
            str(row.run.gamma),
            f"{row.run.temperature:g}",
            f"{row.counted:.3f} ±{row.standard_error:.3f}",
            shown(row.curve),
            percent(row.error),
            f"{row.early:.3f} ±{row.early_standard_error:.3f}",
            percent(row.early_error),
            shown(row.windows),
        ]
        for row in compared
    )
    return markdown_table(header, rows)


def _name(cell: Cell) -> list[str]:
    return [cell.key.text, f"{cell.key.context_tokens:,}", cell.key.view.label]
