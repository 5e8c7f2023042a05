"""Published step times beside predictions: signed errors per table, phase and held-out group."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources

import numpy as np

from perfmodel import EngineProfile, RoundEstimate, estimate, scenario_input

PHASES = ("target_step_s", "verify_s", "draft_step_s")
GOLDEN = resources.files("calibration") / "golden"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One measured configuration: what was run, and seconds as published."""

    table: str
    gpu: str
    target: str
    draft: str
    draft_policy: str
    kv_budget: int
    gamma: int
    tp: int
    draft_tp: int | None
    batch: int
    prefix_tokens: int
    tokens_per_round: float
    target_step_s: float
    verify_s: float
    draft_step_s: float
    tpot_s: float
    published_speedup: float
    source: str = field(repr=False, default="")

    @property
    def overhead_s(self) -> float:
        """What a round took beyond γ·T_D + T_V. [s]"""
        return self.tpot_s * self.tokens_per_round - self.gamma * self.draft_step_s - self.verify_s

    @property
    def speedup(self) -> float:
        """T_T over the time per token, from the published times."""
        return self.target_step_s / self.tpot_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RowError:
    """Signed relative errors of one row, predicted / published - 1."""

    row: PublishedRow
    errors: dict[str, float]


def magicdec_rows() -> list[PublishedRow]:
    """The 42 rows of MagicDec's tables 3a, 3b and 6."""
    text = (GOLDEN / "magicdec_step_times.csv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [_row(values) for values in csv.DictReader(lines)]


def predict_row(
    row: PublishedRow, profile: Callable[[EngineProfile], EngineProfile] | None = None
) -> RoundEstimate:
    """The prediction of one row with the `magicdec` profile, or one made from it by `profile`."""
    scenario = scenario_input(
        {
            "target": row.target,
            "draft": row.draft,
            "draft_policy": row.draft_policy,
            "kv_budget": row.kv_budget,
            "gamma": row.gamma,
            "gpu": row.gpu,
            "tp": row.tp,
            "draft_tp": row.draft_tp,
            "batch": row.batch,
            "prefix_tokens": row.prefix_tokens,
            "tokens_per_round": row.tokens_per_round,
            "engine": "magicdec",
        }
    ).scenario()
    if profile is not None:
        scenario = replace(scenario, engine=profile(scenario.engine))
    return estimate(scenario)


def row_error(row: PublishedRow, point: RoundEstimate) -> RowError:
    """Signed relative errors of T_T, T_V, T_D and the speedup."""
    draft = point.draft_step
    assert draft is not None
    predicted = {
        "target_step_s": float(point.target_step.total_s),
        "verify_s": float(point.verify.total_s),
        "draft_step_s": float(draft.total_s),
        "speedup": float(point.speedup),
    }
    return RowError(row=row, errors={k: v / getattr(row, k) - 1.0 for k, v in predicted.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSummary:
    """Errors of one phase over a group of rows, in percent."""

    rows: int
    mean_signed: float
    mean_absolute: float
    worst: float  # signed, largest in magnitude


def summarise(errors: Iterable[RowError], phase: str) -> ErrorSummary:
    """Mean signed, mean absolute and worst error of one phase, in percent."""
    values = 100.0 * np.array([e.errors[phase] for e in errors])
    return ErrorSummary(
        rows=len(values),
        mean_signed=float(values.mean()),
        mean_absolute=float(np.abs(values).mean()),
        worst=float(values[np.argmax(np.abs(values))]),
    )


def by_table(errors: Sequence[RowError]) -> dict[str, list[RowError]]:
    """Errors grouped by published table."""
    groups: dict[str, list[RowError]] = {}
    for error in errors:
        groups.setdefault(error.row.table, []).append(error)
    return groups


def _row(values: dict[str, str]) -> PublishedRow:
    gamma = int(values["gamma"])
    return PublishedRow(
        table=values["table"],
        gpu=values["gpu"],
        target=values["target"],
        draft=values["draft"],
        draft_policy=values["draft_policy"],
        kv_budget=int(values["kv_budget"]),
        gamma=gamma,
        tp=int(values["tp"]),
        draft_tp=int(values["draft_tp"]) if values["draft_tp"] else None,
        batch=int(values["batch"]),
        prefix_tokens=int(values["prefix_tokens"]),
        tokens_per_round=float(values["tokens_per_round"]),
        target_step_s=1e-3 * float(values["autoregressive_ms"]),
        verify_s=1e-3 * float(values["verify_ms"]),
        draft_step_s=1e-3 * float(values["draft_total_ms"]) / gamma,
        tpot_s=1e-3 * float(values["speculative_ms_per_token"]),
        published_speedup=float(values["speedup"]),
        source="MagicDec, arXiv 2408.11049 v5, appendix",
    )
