"""All-reduce timed between one's own GPUs: `collectives-specroof.toml`.

The entries of the GPU's published table stay where nothing was timed. "custom" is the faster of
one-shot and two-shot at each size, which is what the runtime takes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd

from calibration.fit.errors import Errors
from calibration.fit.tables.collective_fit import leave_one_out, monotone, toml_text, unspiked
from calibration.records.kernels import KernelRecord
from perfmodel import GPU
from perfmodel.units import US

OWN_SHOTS = ("one_shot", "two_shot")
LEAST_SIZES = 4


def fit_own_collectives(
    records: Sequence[KernelRecord], gpu: GPU, *, source: str
) -> tuple[str, Errors]:
    """The catalog file of records of op "all_reduce", and the errors of a size left out."""
    path = resources.files("perfmodel") / "catalog" / "efficiency" / gpu.efficiency
    text = (path / "collectives.toml").read_text(encoding="utf-8")
    table: dict[str, Any] = tomllib.loads(text)
    table.pop("residuals", None)
    errors = Errors("all-reduce", regions=lambda cell: (f"{cell['ranks']} ranks",))
    left: list[dict[str, object]] = []
    for (algorithm, ranks), times in _series(records).items():
        if len(times) < LEAST_SIZES:
            continue
        size, raw = np.array(list(times), float), np.array(list(times.values()))
        time = monotone(unspiked(raw))
        entry = {
            "operation": "all_reduce", "algorithm": algorithm, "ranks": ranks,
            "message_bytes": size.tolist(), "time_us": [float(f"{t / US:.4g}") for t in time],
        }  # fmt: skip
        same = ("operation", "algorithm", "ranks")
        table["measured"] = [entry] + [
            e for e in table["measured"] if any(e[k] != entry[k] for k in same)
        ]
        found = list(leave_one_out("all_reduce", algorithm, ranks, size, raw, time))
        left += found
        for row in found:
            errors.add("size out", {"ranks": ranks}, float(str(row["error"])))
    table["source"] = f"all-reduce among own ranks: {source}; the rest: {table['source']}"
    frame = pd.DataFrame(left, columns=["operation", "algorithm", "error"])
    return toml_text(gpu.name, table, frame), errors


def _series(records: Sequence[KernelRecord]) -> dict[tuple[str, int], dict[float, float]]:
    """Seconds by message size, rising, of each algorithm as the curve knows it and rank count."""
    found: dict[tuple[str, int], dict[float, float]] = {}
    for r in records:
        algorithm = "custom" if r["algorithm"] in OWN_SHOTS else str(r["algorithm"])
        sizes = found.setdefault((algorithm, int(r["ranks"])), {})
        size = float(r["message_bytes"])
        sizes[size] = min(r.seconds, sizes.get(size, np.inf))
    return {key: dict(sorted(sizes.items())) for key, sizes in found.items()}
