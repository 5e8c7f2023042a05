"""The report of measured acceptance as Markdown: the tables of docs/results/acceptance.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from calibration.acceptance.cells import Cell
from calibration.acceptance.fit import RecordFit
from calibration.acceptance.report import GAMMAS, SAMPLED, AcceptanceReport, Compared
from calibration.records.acceptance import LAGS

POSITIONS = (1, 2, 4, 8, 16)


def report_lines(report: AcceptanceReport) -> list[str]:
    """The whole report in Markdown."""
    header = report.header
    lines = [
        f"{header['model']}, draft {header['draft']}, temperature {header['temperature']:g}, "
        f"{header['dtype']}, {header['device']}; {header['scored_tokens']} scored tokens a window "
        f"in rounds of {header['gamma']}.",
        *_section("Acceptance by KV budget", _alpha_table(report.grid)),
        *_section("Windows a cell", _window_table(report.grid)),
        *_section("Greedy agreement", _alpha_table(report.grid, greedy=True)),
        *_section("Acceptance by position in a round", _position_table(report.grid)),
        *_section("How far from independent draws", _spread_table(report.grid)),
        *_section("Fitted curves", _fit_table(report.fits)),
    ]
    in_grid = {cell.key for cell in report.grid}
    others = [c for c in report.cells if c.key not in in_grid and SAMPLED not in c.key.text]
    full = [c.alpha for c in others if c.key.view.policy == "full"]
    if full and header["draft"] == "self":
        lines += ["", f"With the full cache α is {min(full):.7f} or more in {len(full)} cells."]
    within = int(header["scored_tokens"])
    lines += _section("Predicted against counted", _compared_table(report.compared, within))
    return lines + _median_lines(report, within)


def _median_lines(report: AcceptanceReport, within: int) -> list[str]:
    """Median errors of the curve on sampled runs, over all policies and per policy."""
    policies = sorted({row.run.view.policy for row in report.compared})
    lines = []
    for policy in (None, *policies):
        errors = [
            report.median_error(greedy=False, early=early, policy=policy) for early in (False, True)
        ]
        if errors[0] is not None and errors[1] is not None:
            lines.append(
                f"- {policy or 'all'}: {100 * errors[0]:.1f} % of whole runs, "
                f"{100 * errors[1]:.1f} % of their first {within} tokens"
            )
    return ["", "Median error of the curve:", "", *lines] if lines else []


def _section(title: str, table: list[str]) -> list[str]:
    return ["", f"## {title}", "", *table] if table else []


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    listed = [f"| {' | '.join(row)} |" for row in rows]
    if not listed:
        return []
    return [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *listed]


def _by_row(grid: Sequence[Cell]) -> dict[tuple[str, int, str], dict[int, Cell]]:
    rows: dict[tuple[str, int, str], dict[int, Cell]] = {}
    for cell in grid:
        key = (cell.key.text, cell.key.context_tokens, cell.key.view.policy)
        rows.setdefault(key, {})[cell.key.view.kv_budget or 0] = cell
    return rows


def _budget_header(grid: Sequence[Cell]) -> tuple[list[int], list[str]]:
    budgets = sorted({cell.key.view.kv_budget or 0 for cell in grid})
    return budgets, ["text", "context", "policy", *(f"{budget:,}" for budget in budgets)]


def _alpha_table(grid: Sequence[Cell], *, greedy: bool = False) -> list[str]:
    """Mean acceptance and half its 90 % interval, or greedy agreement."""
    budgets, header = _budget_header(grid)

    def shown(cell: Cell | None) -> str:
        if cell is None:
            return ""
        low, high = cell.interval()
        return f"{cell.greedy:.3f}" if greedy else f"{cell.alpha:.3f} ±{(high - low) / 2:.3f}"

    return _table(
        header,
        (
            [text, f"{context:,}", policy, *(shown(row.get(budget)) for budget in budgets)]
            for (text, context, policy), row in _by_row(grid).items()
        ),
    )


def _window_table(grid: Sequence[Cell]) -> list[str]:
    budgets, header = _budget_header(grid)
    return _table(
        header,
        (
            [text, f"{context:,}", policy]
            + [str(row[budget].windows) if budget in row else "" for budget in budgets]
            for (text, context, policy), row in _by_row(grid).items()
        ),
    )


def _position_table(grid: Sequence[Cell]) -> list[str]:
    """Mean Σ min(p, q), and in brackets given that all before were accepted."""
    shown = [i for i in POSITIONS if grid and i <= grid[0].gamma]
    rows = []
    for cell in grid:
        pairs = zip(cell.by_position, cell.conditional, strict=True)
        values = [f"{mean:.3f} ({given:.3f})" for mean, given in pairs]
        rows.append([*_name(cell), *(values[i - 1] for i in shown)])
    return _table(["text", "context", "view", *map(str, shown)], rows)


def _spread_table(grid: Sequence[Cell]) -> list[str]:
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
    return _table(
        [*header, *(f"Ω({g}) iid / along text / consecutive / weighted" for g in gammas)], rows
    )


def _fit_table(fits: Sequence[RecordFit]) -> list[str]:
    rows = []
    for fit in fits:
        curve = fit.curve
        numbers = (curve.level, curve.context_exponent, curve.budget_exponent)
        misses = (float(np.sqrt(np.mean(fit.residual**2))), float(np.abs(fit.residual).max()))
        rows.append(
            [
                curve.draft_policy,
                str(len(fit.cells)),
                *(f"{number:.4f}" for number in numbers),
                f"{curve.budget_offset:.0f}",
                f"{curve.fullness_exponent:.2f}",
                f"{curve.sigma:.3f}",
                *(f"{miss:.4f}" for miss in misses),
            ]
        )
    header = [
        "policy",
        "cells",
        "level",
        "context exponent",
        "budget exponent",
        "budget offset",
        "fullness exponent",
    ]
    return _table([*header, "sigma of ln(loss)", "rms in α", "worst"], rows)


def _compared_table(compared: Sequence[Compared], within: int) -> list[str]:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    def percent(error: float | None) -> str:
        return "" if error is None else f"{100 * error:+.1f}"

    sampled = any(row.sampled is not None for row in compared)
    rows = []
    for row in compared:
        run = row.run
        rows.append(
            [
                run.text,
                f"{run.context_tokens:,}",
                run.view.label,
                str(run.gamma),
                f"{run.temperature:g}",
                f"{row.counted:.3f} ±{row.standard_error:.3f}",
                shown(row.curve),
                percent(row.error),
                f"{row.early:.3f} ±{row.early_standard_error:.3f}",
                percent(row.early_error),
                shown(row.windows),
                *([shown(row.sampled)] if sampled else []),
            ]
        )
    header = ["text", "context", "view", "γ", "temperature", "counted", "curve", "error %"]
    header += [f"first {within} tokens", "error %", "other windows"]
    return _table(header + (["along sampled text"] if sampled else []), rows)


def _name(cell: Cell) -> list[str]:
    return [cell.key.text, f"{cell.key.context_tokens:,}", cell.key.view.label]
