"""Fit prefill attention, measured in chunks, as a fraction of the GPU's peak FLOP/s.

As in the curve's lookup, a chunk over cached tokens is treated like the uncached prompt with the
same number of query-key pairs. The fraction is interpolated between measured sizes and constant
outside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.records.cells import flops
from calibration.records.kernels import KernelRecord
from perfmodel import GPU
from perfmodel.kernels import AttentionCurve, PrefillTable
from perfmodel.units import US

Array = NDArray[np.float64]

LATENCY_SHARE = 0.5  # largest share of latency in the time of the shortest chunk


def fit_prefill(
    records: Sequence[KernelRecord],
    published: AttentionCurve,
    latency_us: Mapping[int, float],
    gpu: GPU,
) -> tuple[PrefillTable, ...]:
    """One table per head dimension, from its records or, if there are none, as published.

    `latency_us` is the launch latency by head dimension.
    """
    by_dim: dict[int, list[KernelRecord]] = defaultdict(list)
    for record in records:
        by_dim[int(record["head_dim"])].append(record)
    tables = {table.head_dim: table for table in published.prefill} | {
        dim: _table(dim, chunks, latency_us.get(dim, 0.0) * US, gpu)
        for dim, chunks in by_dim.items()
    }
    return tuple(tables[dim] for dim in sorted(tables))


def _table(
    head_dim: int, records: Sequence[KernelRecord], latency_s: float, gpu: GPU
) -> PrefillTable:
    latency_s = min(latency_s, LATENCY_SHARE * min(r.seconds for r in records))
    shares: dict[float, dict[float, float]] = defaultdict(dict)
    heads = sorted({float(r["batch"] * r["query_heads"]) for r in records})
    for r in records:
        share = flops(r.cell) / (gpu.peak_flops * (r.seconds - latency_s))
        shares[r["query_heads"] / r["kv_heads"]][equal_prompt(r)] = share
    sizes = np.array(sorted({size for row in shares.values() for size in row}))
    rows = [
        np.exp(np.interp(np.log(sizes), np.log(sorted(row)), np.log([row[s] for s in sorted(row)])))
        for _, row in sorted(shares.items())
    ]
    # Only one head count was timed per group; its fraction is used for fewer heads, too.
    units = np.array([heads[0] / 2.0, heads[-1]])
    return PrefillTable(
        head_dim=head_dim,
        kernel_latency_us=latency_s / US,
        memory_efficiency=1.0,
        group_knots=np.array(sorted(shares)),
        unit_knots=units,
        token_knots=sizes,
        efficiency=np.repeat(np.array(rows)[:, None, :], len(units), axis=1).round(5),
    )


def equal_prompt(record: KernelRecord) -> float:
    """Tokens of the uncached prompt that has as many query-key pairs as this chunk."""
    new = float(record["query_tokens"])
    return float(np.sqrt(new**2 + 2.0 * new * (record["kv_tokens"] - new)))
