"""All-reduce times measured between the GPUs of one machine: `collectives-specroof.toml`.

Entries of the GPU's public table stay where nothing was timed. "custom" is the faster of one-shot
and two-shot at each size, as the runtime chooses.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd

from calibration.fit.errors import Errors
from calibration.fit.tables.collective_fit import (
    catalog_text,
    leave_one_out,
    measured_entry,
    monotone,
    unspiked,
)
from calibration.records.kernels import KernelRecord
from perfmodel import GPU

CUSTOM_SHOTS = ("one_shot", "two_shot")
LEAST_SIZES = 4


def missing_collectives(records: Sequence[KernelRecord]) -> str | None:
    """What is missing for a fit, in a clause; None where there is enough."""
    if not records:
        return "all-reduce: no record (one GPU); the public table stays"
    most = max(len(sizes) for sizes in _series(records).values())
    if most >= LEAST_SIZES:
        return None
    return f"all-reduce: {most} message sizes; {LEAST_SIZES} are needed"


def fit_collectives(
    records: Sequence[KernelRecord], gpu: GPU, *, source: str
) -> tuple[str, Errors]:
    """The catalog file of records of op "all_reduce", and the errors of a size left out.

    `missing_collectives` must have returned None.
    """
    path = resources.files("perfmodel") / "catalog" / "efficiency" / gpu.efficiency
    text = (path / "collectives.toml").read_text(encoding="utf-8")
    table: dict[str, Any] = tomllib.loads(text)
    table.pop("residuals", None)
    errors = Errors("all-reduce", regions=lambda cell: (f"{cell['ranks']} ranks",))
    left: list[dict[str, Any]] = []
    for (algorithm, ranks), times in _series(records).items():
        if len(times) < LEAST_SIZES:
            continue
        size, raw = np.array(list(times), float), np.array(list(times.values()))
        time = monotone(unspiked(raw))
        entry = measured_entry("all_reduce", algorithm, ranks, size, time)
        same = ("operation", "algorithm", "ranks")
        table["measured"] = [entry] + [
            e for e in table["measured"] if any(e[k] != entry[k] for k in same)
        ]
        rows = list(leave_one_out("all_reduce", algorithm, ranks, size, raw, time))
        left += rows
        for row in rows:
            errors.add("size out", {"ranks": ranks}, row["error"])
    table["source"] = f"all-reduce as measured: {source}; the rest: {table['source']}"
    frame = pd.DataFrame(left, columns=["operation", "algorithm", "error"])
    return catalog_text(gpu.name, table, frame), errors


def _series(records: Sequence[KernelRecord]) -> dict[tuple[str, int], dict[float, float]]:
    """Seconds by rising message size, per (algorithm name of the curve, ranks)."""
    series: dict[tuple[str, int], dict[float, float]] = {}
    for r in records:
        algorithm = "custom" if r["algorithm"] in CUSTOM_SHOTS else str(r["algorithm"])
        sizes = series.setdefault((algorithm, int(r["ranks"])), {})
        size = float(r["message_bytes"])
        sizes[size] = min(r.seconds, sizes.get(size, np.inf))
    return {key: dict(sorted(sizes.items())) for key, sizes in series.items()}
