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
from perfmodel import parse_scenario, speculation


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


def served_groups() -> tuple[ServedGroup, ...]:
    """The errors of InferenceX's rows, in the order of the file."""
    text = (GOLDEN / "inferencex_tpot.csv").read_text(encoding="utf-8").splitlines()
    return tuple(_groups(csv.DictReader(line for line in text if not line.startswith("#"))))


def served_table(groups: Iterable[ServedGroup]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table of the groups."""
    title = "errors in percent of the time per output token under load"
    rows = [
        [
            f"{g.target}, {g.tp} x {g.gpu}{f', EP {g.ep}' if g.ep > 1 else ''}, {g.engine}",
            str(g.rows),
            f"{g.median_signed:+.1f}",
            f"{g.median_absolute:.1f}",
            f"{g.worst:+.1f}",
        ]
        for g in groups
    ]
    return [title, "rows", "signed", "median", "worst"], rows


def tpot_error(row: dict[str, Any]) -> float:
    """Predicted over published time per output token of one row, minus 1."""
    columns = ("gpu", "target", "tp", "ep", "prompt_tokens", "output_tokens", "batch")
    values = {name: row[name] for name in columns} | {"weight_dtype": row["weight_dtype"]}
    predicted = speculation.service(parse_scenario(values).scenario()).tpot_s
    return float(predicted) / (1e-3 * float(row["tpot_ms"])) - 1.0


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
