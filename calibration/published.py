"""Published step times beside predictions: signed errors per table, phase and held-out group."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources

import numpy as np

from perfmodel import EngineProfile, RoundEstimate, estimate, scenario_input

PHASES = ("target_step_s", "verify_s", "draft_step_s")
GOLDEN = resources.files("calibration") / "golden"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One measured configuration: what was run, and seconds as published."""

    table: str
    engine: str
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
    target_step_s: float
    verify_s: float
    draft_step_s: float
    tokens_per_round: float | None = None
    tpot_s: float | None = None

    @property
    def overhead_s(self) -> float:
        """What a round took beyond γ·T_D + T_V; NaN where no round was published. [s]"""
        if self.tpot_s is None or self.tokens_per_round is None:
            return math.nan
        return self.tpot_s * self.tokens_per_round - self.gamma * self.draft_step_s - self.verify_s

    @property
    def speedup(self) -> float:
        """T_T over the time per token, from the published times; NaN where there is none."""
        return math.nan if self.tpot_s is None else self.target_step_s / self.tpot_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RowError:
    """Signed relative errors of one row, predicted / published - 1."""

    row: PublishedRow
    errors: dict[str, float]


def magicdec_rows() -> list[PublishedRow]:
    """The 42 rows of MagicDec's tables 3a, 3b and 6."""
    return [_magicdec_row(values) for values in _golden("magicdec_step_times.csv")]


def h200_rows() -> list[PublishedRow]:
    """12 pairs of γ and KV budget: whole steps of plain kernels in a graph on one H200."""
    return [_h200_row(values) for values in _golden("h200_graph_steps.csv")]


def _golden(name: str) -> Iterable[dict[str, str]]:
    text = (GOLDEN / name).read_text(encoding="utf-8")
    return csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))


def predict_row(
    row: PublishedRow, profile: Callable[[EngineProfile], EngineProfile] | None = None
) -> RoundEstimate:
    """The prediction of one row with its engine's profile, or one made from it by `profile`."""
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
            "engine": row.engine,
        }
    ).scenario()
    if profile is not None:
        scenario = replace(scenario, engine=profile(scenario.engine))
    return estimate(scenario)


def row_error(row: PublishedRow, point: RoundEstimate) -> RowError:
    """Signed relative errors of T_T, T_V, T_D and, where one was published, the speedup."""
    draft = point.draft_step
    assert draft is not None
    predicted = {
        "target_step_s": float(point.target_step.total_s),
        "verify_s": float(point.verify.total_s),
        "draft_step_s": float(draft.total_s),
    }
    if row.tpot_s is not None:
        predicted["speedup"] = float(point.speedup)
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


def _magicdec_row(values: dict[str, str]) -> PublishedRow:
    gamma = int(values["gamma"])
    return PublishedRow(
        table=values["table"],
        engine="magicdec",
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
    )


def _h200_row(values: dict[str, str]) -> PublishedRow:
    return PublishedRow(
        table=values["table"],
        engine="specroof",
        gpu=values["gpu"],
        target=values["target"],
        draft="self",
        draft_policy="streamingllm",
        kv_budget=int(values["kv_budget"]),
        gamma=int(values["gamma"]),
        tp=1,
        draft_tp=None,
        batch=int(values["batch"]),
        prefix_tokens=int(values["prefix_tokens"]),
        target_step_s=1e-3 * float(values["target_step_ms"]),
        verify_s=1e-3 * float(values["verify_ms"]),
        draft_step_s=1e-3 * float(values["draft_step_ms"]),
    )
