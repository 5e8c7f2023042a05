"""Report of measured acceptance: cells, fitted curves, and a comparison with counted runs.

The counted runs start from the windows whose index is `HELD_OUT` modulo 4. The curves they are
compared with are fitted without these windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibration.acceptance.cells import Cell, CellKey, cells
from calibration.acceptance.fit import RecordFit, fit_records, fits_a_curve
from calibration.records.acceptance import LAGS, DraftView, RecordSet
from calibration.records.counted import CountedRun
from perfmodel.acceptance import tokens_per_round_iid

HELD_OUT = 3  # windows with this index modulo 4 are not used in the fits of the comparison
GAMMAS = (2, 4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A counted run with predictions of its tokens per round, None if the records allow none.

    `curve` comes from the fitted curve, `windows` directly from the other windows of the cell.
    `early` counts only rounds that start within the first n generated tokens, where n is the number
    of scored tokens of a window. A SnapKV draft reads all generated tokens, so its acceptance rises
    with the length of a run.
    """

    run: CountedRun
    counted: float
    standard_error: float
    curve: float | None
    windows: float | None
    early: float
    early_standard_error: float

    @property
    def error(self) -> float | None:
        """Relative error of the curve's prediction."""
        return None if self.curve is None else self.curve / self.counted - 1.0

    @property
    def early_error(self) -> float | None:
        """Relative error of the curve's prediction for the early rounds."""
        return None if self.curve is None else self.curve / self.early - 1.0


@dataclass(frozen=True, slots=True)
class AcceptanceReport:
    """Cells of the records, curves fitted to them, and the comparison with counted runs."""

    header: Mapping[str, Any]
    cells: tuple[Cell, ...]
    fits: tuple[RecordFit, ...]
    compared: tuple[Compared, ...]

    def median_error(
        self, *, greedy: bool, early: bool = False, policy: str | None = None
    ) -> float | None:
        """Median absolute error of the curve over sampled or greedy runs; None without any."""
        errors = [
            row.early_error if early else row.error
            for row in self.compared
            if (row.run.temperature == 0) == greedy and policy in (None, row.run.view.policy)
        ]
        known = [abs(error) for error in errors if error is not None]
        return float(np.median(known)) if known else None

    @property
    def grid(self) -> list[Cell]:
        """Cells with the view settings that the curves were fitted to."""
        kinds = {kind_of(fit.cells[0].key.view) for fit in self.fits}
        return [cell for cell in self.cells if not kinds or kind_of(cell.key.view) in kinds]


def acceptance_report(records: RecordSet, runs: Sequence[CountedRun] = ()) -> AcceptanceReport:
    """The report of some records and counted runs.

    Raises `ConfigError` if the records have nothing to fit a curve to.
    """
    every_cell = tuple(cells(records.records))
    curves = {text: _curves(records, text) for text in sorted({run.text for run in runs})}
    fitted = any(fits_a_curve(records, cell) for cell in every_cell)
    within = int(records.header["scored_tokens"])
    return AcceptanceReport(
        records.header,
        every_cell,
        tuple(fit_records(records)) if fitted else (),
        tuple(
            _compare(run, every_cell, curves[run.text], within=within)
            for run in sorted(runs, key=_order)
        ),
    )


def _curves(records: RecordSet, text: str) -> dict[str, RecordFit]:
    """Curves of one text by policy, fitted without the windows that were run."""
    if not any(record.window.text == text for record in records.records):
        return {}
    fits = fit_records(records, texts=[text], leave_out=HELD_OUT)
    return {fit.curve.draft_policy: fit for fit in fits}


def _order(run: CountedRun) -> tuple[object, ...]:
    view = run.view
    place = (run.text, run.context_tokens, view.policy, view.kv_budget or 0, view.label)
    return (-run.temperature, run.gamma, *place)


def _counted(run: CountedRun, within: int | None = None) -> tuple[float, float]:
    """Tokens per round and its standard error, for rounds that start in the first `within`
    tokens."""
    counts = []
    for sequence in run.accepted:
        tokens = np.array(sequence, dtype=np.float64) + 1.0
        begin = np.cumsum(tokens) - tokens
        counts.append(tokens if within is None else tokens[begin < within])
    # Rounds of one sequence are correlated, so the error is estimated from the sequences.
    totals, rounds = np.array([c.sum() for c in counts]), np.array([len(c) for c in counts])
    mean = float(totals.sum() / rounds.sum())
    spread = float(np.std(totals - mean * rounds, ddof=1)) if len(counts) > 1 else np.nan
    return mean, float(spread * np.sqrt(len(counts)) / rounds.sum())


def _compare(
    run: CountedRun, every_cell: Sequence[Cell], fits: Mapping[str, RecordFit], *, within: int
) -> Compared:
    by_key = {cell.key: cell for cell in every_cell}
    key = CellKey(text=run.text, context_tokens=run.context_tokens, view=run.view)
    cell = by_key.get(key)
    others = cell.only(i for i in cell.indices if i % 4 != HELD_OUT) if cell else None
    (mean, error), (early, early_error) = _counted(run), _counted(run, within)
    greedy = run.temperature == 0
    fit = fits.get(run.view.policy)
    curve = None
    if fit is not None and not greedy and kind_of(run.view) == kind_of(fit.cells[0].key.view):
        at = {"kv_budget_tokens": run.view.kv_budget or 1, "context_tokens": run.context_tokens}
        curve = float(tokens_per_round_iid(fit.curve.alpha(**at), run.gamma))
    return Compared(
        run=run,
        counted=mean,
        standard_error=error,
        early=early,
        early_standard_error=early_error,
        curve=curve,
        windows=_tokens_per_round(others, run.gamma, greedy=greedy),
    )


def _tokens_per_round(cell: Cell | None, gamma: int, *, greedy: bool) -> float | None:
    if cell is None or gamma > cell.gamma:
        return None
    return cell.tokens_greedy(gamma) if greedy else cell.tokens_consecutive(gamma)


def kind_of(view: DraftView) -> DraftView:
    """The view without its KV budget."""
    return replace(view, kv_budget=None)


def report_dict(report: AcceptanceReport) -> dict[str, Any]:
    """The report as plain data (docs/reference/json.md)."""
    return {
        "header": dict(report.header),
        "cells": [_cell_dict(cell) for cell in report.cells],
        "compared": [
            {
                "text": row.run.text,
                "context_tokens": row.run.context_tokens,
                "view": row.run.view.label,
                "gamma": row.run.gamma,
                "temperature": row.run.temperature,
                "counted": row.counted,
                "standard_error": None if np.isnan(row.standard_error) else row.standard_error,
                "early": row.early,
                "curve": row.curve,
                "windows": row.windows,
                "error": row.error,
                "early_error": row.early_error,
            }
            for row in report.compared
        ],
        "median_error": report.median_error(greedy=False),
        "median_early_error": report.median_error(greedy=False, early=True),
    }


def _cell_dict(cell: Cell) -> dict[str, Any]:
    low, high = cell.interval()
    view = cell.key.view
    return {
        "text": cell.key.text,
        "context_tokens": cell.key.context_tokens,
        "policy": view.policy,
        "kv_budget": view.kv_budget,
        "view": view.label,
        "page_tokens": view.page_tokens,
        "windows": cell.windows,
        "alpha": cell.alpha,
        "low": low,
        "high": high,
        "greedy": cell.greedy,
        "by_position": cell.by_position.tolist(),
        "conditional": cell.conditional.tolist(),
        "lag_correlations": dict(zip(map(str, LAGS), cell.lag_correlations.tolist(), strict=True)),
        "window_spread": cell.window_spread,
        "tokens_per_round": {
            str(gamma): {
                "iid": cell.tokens_iid(gamma),
                "along_text": cell.tokens_chained(gamma),
                "consecutive": cell.tokens_consecutive(gamma),
                "weighted": cell.tokens_weighted(gamma),
                "greedy": cell.tokens_greedy(gamma),
            }
            for gamma in GAMMAS
            if gamma <= cell.gamma
        },
    }
