"""Errors of predictions on the records of vLLM 0.26, as docs/results publishes them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import calibration
from calibration.engines.judged import PointError
from calibration.engines.reading import read_engine_records
from calibration.engines.records import PointRecord
from perfmodel import catalog
from perfmodel.catalog.engines import engine_profile

MEASURED = Path(calibration.__file__).parent / "measured"
PROFILE = replace(engine_profile("vllm", catalog.gpu("h200")), default_graphs=True)
Figures = tuple[int, float, float]  # points, median absolute and worst error in percent
Blind = dict[tuple[str, str, int, int, int, int], float]  # target, method, γ, TP, batch, prompt


def record_path(name: str) -> Path:
    return MEASURED / f"engine-vllm-0.26-{name}.jsonl"


def figures(percents: Sequence[float]) -> Figures:
    return len(percents), float(np.median(np.abs(percents))), max(percents, key=abs)


def kind(record: PointRecord) -> str:
    method = record.point.setup.method
    return {"plain": "plain", "draft": "draft model"}.get(method, "rounds")


def by_kind(errors: Iterable[PointError]) -> dict[str, Figures]:
    found: dict[str, list[float]] = {}
    for error in errors:
        found.setdefault(kind(error.record), []).append(error.percent)
    return {name: figures(percents) for name, percents in found.items()}


def assert_published(found: dict[str, Figures], published: dict[str, Figures]) -> None:
    assert found.keys() == published.keys(), found
    for name, got in found.items():
        assert got == pytest.approx(published[name], abs=0.06), (name, got)


def blind_predictions(name: str, column: str = "predicted_s") -> Blind:
    """Seconds by point, from a file that was committed before the run."""
    path = MEASURED / f"predicted-vllm-0.26-h200-{name}.csv"
    with path.open(encoding="utf-8") as file:
        return {
            (
                *(r["target"], r["method"], int(r["gamma"]), int(r.get("tp", 1))),
                *(int(r["batch"]), int(r["prompt_tokens"])),
            ): float(r[column])
            for r in csv.DictReader(file)
        }


def blind_errors(record: str, expected: Blind) -> list[PointError]:
    """Errors of the predictions as committed; all points of the record were predicted."""
    errors = []
    for timed in read_engine_records([record_path(record)]).points:
        point, setup = timed.point, timed.point.setup
        key = (setup.target, setup.method, setup.gamma, setup.tp, point.batch, point.prompt_tokens)
        errors.append(PointError(record=timed, predicted_s=expected[key]))
    return errors
