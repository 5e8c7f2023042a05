"""Predicted against published times per output token of engines that serve requests.

The published times are means over whole runs with a constant number of requests in the system, in
which prompts share the GPUs. They are compared with `perfmodel.speculation.service`, with the
overheads of this project's engine. Nothing is fitted to them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.records.published import GOLDEN
from perfmodel import Interval, Scenario, parse_scenario, speculation


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedGroup:
    """Errors of the time per output token over the rows of one engine, GPU, target, TP and EP.

    In percent, predicted over published: signed median, median absolute, and signed worst.
    """

    engine: str
    gpu: str
    target: str
    tp: int
    ep: int
    rows: int
    median_signed: float
    median_absolute: float
    worst: float

    def line(self) -> str:
        """The group as a line of the report."""
        gpus = f"{self.tp} x {self.gpu}{f', EP {self.ep}' if self.ep > 1 else ''}"
        errors = f"{self.median_signed:+8.1f}{self.median_absolute:7.1f}{self.worst:+7.1f}"
        return f"  {self.target:14s}{gpus:19s}{self.engine:28s}{self.rows:5d}{errors}"


def served_groups() -> tuple[ServedGroup, ...]:
    """The errors of InferenceX's rows, in the order of the file."""
    return tuple(_groups(served_rows()))


def served_rows() -> Iterator[dict[str, Any]]:
    """InferenceX's rows."""
    text = (GOLDEN / "inferencex_tpot.csv").read_text(encoding="utf-8").splitlines()
    return csv.DictReader(line for line in text if not line.startswith("#"))


def served_lines(groups: Iterable[ServedGroup]) -> list[str]:
    """The groups as text."""
    title = "Time per output token of engines under load, errors in percent"
    head = f"{title:66s} rows  signed median  worst"
    return [head, *(group.line() for group in groups)]


def tpot_error(row: dict[str, Any]) -> float:
    """Predicted over published time per output token of one row, minus 1."""
    predicted = speculation.service(_scenario(row)).tpot_s
    return float(predicted) / (1e-3 * float(row["tpot_ms"])) - 1.0


def served_tpot(row: dict[str, Any], engine: str) -> Interval:
    """Predicted time per output token of one row by an engine profile. [s]"""
    return speculation.service_tpot(_scenario(row, engine=engine))


def _scenario(row: dict[str, Any], **values: str) -> Scenario:
    columns = ("gpu", "target", "tp", "ep", "prompt_tokens", "output_tokens", "batch")
    of_row = {name: row[name] for name in columns} | {"weight_dtype": row["weight_dtype"]}
    return parse_scenario(of_row | values).scenario()


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[ServedGroup]:
    errors: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("engine", "gpu", "target", "tp", "ep"))
        errors.setdefault(key, []).append(100.0 * tpot_error(row))
    for (engine, gpu, target, tp, ep), values in errors.items():
        yield ServedGroup(
            engine=engine,
            gpu=gpu,
            target=target,
            tp=int(tp),
            ep=int(ep),
            rows=len(values),
            median_signed=float(np.median(values)),
            median_absolute=float(np.median(np.abs(values))),
            worst=max(values, key=abs),
        )
