"""Published step times, and the signed errors of their predictions."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import numpy as np

from perfmodel import EngineProfile, RoundEstimate, estimate, parse_scenario

PHASES = ("target_step_s", "verify_s", "draft_step_s")
GOLDEN = resources.files("calibration") / "golden"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One published configuration with its times in seconds; None if not published."""

    table: str
    engine: str
    gpu: str
    target: str
    tp: int
    batch: int
    prompt_tokens: int
    target_step_s: float
    machine: str | None = None  # by default that of the GPU
    draft: str = "none"
    draft_policy: str | None = None
    kv_budget: int | None = None
    gamma: int = 0
    draft_tp: int | None = None
    weight_dtype: str = "bf16"
    group_size: int = 0  # weights that share a scale and a zero point in bf16; 0 without groups
    verify_s: float | None = None
    draft_step_s: float | None = None
    tokens_per_round: float | None = None
    tpot_s: float | None = None

    @property
    def overhead_s(self) -> float:
        """Time of a round beyond γ·T_D + T_V; NaN without a published round. [s]"""
        round_parts = (self.tpot_s, self.tokens_per_round, self.verify_s, self.draft_step_s)
        if None in round_parts:
            return math.nan
        assert self.tpot_s and self.tokens_per_round and self.verify_s and self.draft_step_s
        return self.tpot_s * self.tokens_per_round - self.gamma * self.draft_step_s - self.verify_s

    @property
    def speedup(self) -> float:
        """Published T_T over the published time per token; NaN without the latter."""
        return math.nan if self.tpot_s is None else self.target_step_s / self.tpot_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RowError:
    """Signed relative errors of one row, predicted / published - 1."""

    row: PublishedRow
    errors: dict[str, float]


def magicdec_rows() -> list[PublishedRow]:
    """The 42 rows of tables 3a, 3b and 6 of the MagicDec paper."""
    return _golden("magicdec_step_times.csv", engine="magicdec")


def h200_rows() -> list[PublishedRow]:
    """12 rows: steps of plain torch and FlashInfer kernels in a CUDA graph on one H200."""
    plan = {"draft": "self", "draft_policy": "streamingllm", "tp": 1}
    return _golden("h200_graph_steps.csv", engine="plain-graph", **plan)


def gptfast_rows() -> list[PublishedRow]:
    """23 rows of gpt-fast: plain decoding of one sequence on A100 at TP 1 to 8.

    Nothing is fitted to them. The engine is `kernels`, since gpt-fast runs one compiled graph
    without a scheduler. The context is the prompt plus half of the generated tokens.
    """
    return _golden("gptfast_decode.csv", engine="kernels", batch=1, prompt_tokens=105)


_NAMES = {
    "prefix_tokens": "prompt_tokens",
    "autoregressive_ms": "target_step_s",
    "target_step_ms": "target_step_s",
    "verify_ms": "verify_s",
    "draft_step_ms": "draft_step_s",
    "draft_total_ms": "draft_step_s",
    "speculative_ms_per_token": "tpot_s",
    "tokens_per_s": "target_step_s",
}
_WHOLE = ("kv_budget", "gamma", "tp", "draft_tp", "batch", "prefix_tokens", "group_size")


def _golden(name: str, **given: Any) -> list[PublishedRow]:
    """The rows of a golden file; `given` are the fields that it has no column for."""
    text = (GOLDEN / name).read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return [PublishedRow(**given, **_fields(row)) for row in rows]


def _fields(row: dict[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for column, text in row.items():
        name = _NAMES.get(column, column)
        if not text or name == "speedup":
            continue
        if column in _WHOLE:
            fields[name] = int(text)
        elif column == "tokens_per_s":
            fields[name] = 1.0 / float(text)
        elif name.endswith("_s"):
            fields[name] = 1e-3 * float(text)
        else:
            fields[name] = float(text) if name == "tokens_per_round" else text
    if "draft_total_ms" in row:
        fields["draft_step_s"] /= fields["gamma"]
    return fields


def predict_row(
    row: PublishedRow, profile: Callable[[EngineProfile], EngineProfile] | None = None
) -> RoundEstimate:
    """The prediction of a row with its engine profile, optionally changed by `profile`."""
    scenario = parse_scenario(
        {
            "target": row.target,
            "draft": row.draft,
            "draft_policy": row.draft_policy,
            "kv_budget": row.kv_budget,
            "gamma": row.gamma,
            "gpu": row.gpu,
            "machine": row.machine,
            "tp": row.tp,
            "draft_tp": row.draft_tp,
            "batch": row.batch,
            "prompt_tokens": row.prompt_tokens,
            "tokens_per_round": row.tokens_per_round,
            "weight_dtype": row.weight_dtype,
            "engine": row.engine,
        }
    ).scenario()
    if row.group_size:
        scales = ((row.weight_dtype, 4.0 / row.group_size),)
        scenario = replace(scenario, target=replace(scenario.target, scale_bytes=scales))
    if profile is not None:
        scenario = replace(scenario, engine=profile(scenario.engine))
    return estimate(scenario)


def row_error(row: PublishedRow, point: RoundEstimate) -> RowError:
    """Signed relative errors of T_T, T_V, T_D and the speedup, as far as they are published.

    The predicted speedup is T_T over the time per token, like that of the row.
    """
    predicted = {"target_step_s": float(point.target_step.total_s)}
    if row.verify_s is not None:
        predicted["verify_s"] = float(point.verify.total_s)
    if row.draft_step_s is not None and point.draft_step is not None:
        predicted["draft_step_s"] = float(point.draft_step.total_s)
    if row.tpot_s is not None:
        predicted["speedup"] = float(point.target_step.total_s / point.tpot_s)
    return RowError(row=row, errors={k: v / getattr(row, k) - 1.0 for k, v in predicted.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSummary:
    """Errors of one phase over a group of rows, in percent."""

    rows: int
    mean_signed: float
    mean_absolute: float
    median_absolute: float
    worst: float  # signed, largest in magnitude


def summarise(errors: Iterable[RowError], phase: str) -> ErrorSummary:
    """Mean signed, mean and median absolute, and worst error of one phase, in percent."""
    values = 100.0 * np.array([e.errors[phase] for e in errors])
    return ErrorSummary(
        rows=len(values),
        mean_signed=float(values.mean()),
        mean_absolute=float(np.abs(values).mean()),
        median_absolute=float(np.median(np.abs(values))),
        worst=float(values[np.argmax(np.abs(values))]),
    )


def by_table(errors: Sequence[RowError]) -> dict[str, list[RowError]]:
    """Errors grouped by published table."""
    groups: dict[str, list[RowError]] = {}
    for error in errors:
        groups.setdefault(error.row.table, []).append(error)
    return groups
