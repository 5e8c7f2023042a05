"""Sums measured between the GPUs of one machine: `collectives-specroof.toml`.

All-reduce entries of the GPU's public table stay where nothing was timed. "custom" is the faster of
one-shot and two-shot at each size, as the runtime chooses. The exchange, which the runtime makes in
the kernel of residual and norm, is fitted to what chains of a product and that kernel take longer
than the same chains without peers.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.fit.errors import Errors
from calibration.fit.tables.collective_fit import (
    catalog_text,
    leave_one_out,
    measured_entry,
    monotone,
    one_shot_error,
    unspiked,
)
from calibration.records.kernels import KernelRecord, KernelRecords
from calibration.records.toml_file import significant
from perfmodel import GPU, catalog
from perfmodel.kernels.collectives import Exchange
from perfmodel.units import US, Z90

CUSTOM_SHOTS = ("one_shot", "two_shot")
LEAST_SIZES = 4
LEAST_SUMS = 20  # chains timed with and without peers
EXCHANGE_BYTES = 8.0 * 2**20  # runtime.kernels.ops.SUM_BYTES: the largest between two ranks
ELEMENT_BYTES = 2.0
HUBER = 0.1  # relative error beyond which a chain counts less
MANY_RANKS = 8  # whose row time bounds the error of an extrapolation
Chain = tuple[int, int, int]  # tokens, hidden, depth of the product


def missing_collectives(records: KernelRecords) -> str | None:
    """What is missing for a fit, in a clause; None where there is enough."""
    reduces = records.of("all_reduce")
    if not reduces:
        return "all-reduce: no record (one GPU); the public table stays"
    most = max(len(sizes) for sizes in _series(reduces).values())
    if most < LEAST_SIZES:
        return f"all-reduce: {most} message sizes; {LEAST_SIZES} are needed"
    return None


def fit_collectives(records: KernelRecords, gpu: GPU) -> tuple[str, Errors, Exchange | None]:
    """The catalog file, the errors of a size left out and of the exchange, and the exchange.

    `missing_collectives` must have returned None.
    """
    path = resources.files("perfmodel") / "catalog" / "efficiency" / gpu.efficiency
    text = (path / "collectives.toml").read_text(encoding="utf-8")
    table: dict[str, Any] = tomllib.loads(text)
    table.pop("residuals", None)
    errors = Errors("sums over ranks", regions=lambda cell: (f"{cell['ranks']} ranks",))
    left: list[dict[str, Any]] = []
    for (algorithm, ranks), times in _series(records.of("all_reduce")).items():
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
    exchange = _fit_exchange(records, gpu, one_shot_error(table), errors)
    if exchange is not None:
        table["exchange"] = {
            "latency_us": significant(exchange.latency_s / US, 4),
            "row_us_per_KiB": significant(exchange.row_s_per_byte * 1024 / US, 4),
            "link_efficiency": round(exchange.link_efficiency, 4),
            "most_KiB": round(exchange.most_bytes / 1024),
            "gather_us": significant(exchange.gather_s / US, 4),
            "measured_ranks": [int(n) for n in exchange.measured_ranks],
            "error": round(exchange.error, 3),
        }
    table["source"] = f"sums as measured: {records.source}; the rest: {table['source']}"
    frame = pd.DataFrame(left, columns=["operation", "algorithm", "error"])
    return catalog_text(gpu.name, table, frame), errors, exchange


def rank_gap(records: KernelRecords, exchange: Exchange, gpu: GPU) -> float | None:
    """Seconds of a sum in a whole layer beyond the same sum after a product; None without layers.

    The median over layers, whose two sums take half of what the layer takes longer with peers.
    """
    link = catalog.default_machine(gpu.name).link.bandwidth
    layers: dict[tuple[Any, ...], dict[int, float]] = {}
    names = ("hidden", "ffn", "query_heads", "kv_heads", "batch", "query_tokens", "kv_tokens")
    for record in records.of("rank_layer"):
        key = tuple(record[name] for name in names)
        layers.setdefault(key, {})[record["ranks"]] = record.seconds
    gaps = []
    for (hidden, _, _, _, batch, query, _), times in layers.items():
        row_bytes = ELEMENT_BYTES * hidden
        for ranks in times.keys() - {1}:
            message = np.asarray(row_bytes * batch * query)
            if 1 in times and message <= exchange.largest_bytes(ranks):
                fused = float(exchange.at(message, row_bytes, ranks, link))
                gaps.append((times[ranks] - times[1]) / 2 - fused)
    return max(0.0, float(np.median(gaps))) if gaps else None


def choice_time(records: KernelRecords, gpu: GPU) -> tuple[float, float] | None:
    """(Latency [s], time over that of the logits' bytes at full rate) of a rank's best tokens."""
    from scipy.optimize import least_squares

    alone = [r for r in records.of("best") if r["ranks"] == 1]
    if len(alone) < LEAST_SIZES:
        return None
    moved = np.array([ELEMENT_BYTES * r["tokens"] * r["vocab"] for r in alone]) / gpu.hbm_bandwidth
    seconds = np.array([r.seconds for r in alone])
    solved = least_squares(
        lambda x: (x[0] * US + x[1] * moved) / seconds - 1.0,
        [2.0, 2.0],
        bounds=(0.0, np.inf),
        loss="huber",
        f_scale=HUBER,
    )
    return float(solved.x[0]) * US, float(solved.x[1])


def _fit_exchange(
    records: KernelRecords, gpu: GPU, public_error: float, errors: Errors
) -> Exchange | None:
    """Latency, time of a row and link efficiency, by robust least squares on relative errors."""
    from scipy.optimize import least_squares

    link = catalog.default_machine(gpu.name).link.bandwidth
    chains = _chains(records)
    rows = [
        (ranks, tokens, hidden, seconds - chains[1][tokens, hidden, depth], seconds)
        for ranks, timed in chains.items()
        for (tokens, hidden, depth), seconds in timed.items()
        if ranks > 1 and (tokens, hidden, depth) in chains.get(1, {})
    ]
    most = EXCHANGE_BYTES
    rows = [r for r in rows if ELEMENT_BYTES * r[1] * r[2] <= most / (r[0] - 1) ** 2]
    if len(rows) < LEAST_SUMS:
        return None
    counts = np.array(sorted({r[0] for r in rows}), float)
    ranks, tokens, hidden, extra, whole = np.array(rows, float).T
    peers, row_bytes = ranks - 1, ELEMENT_BYTES * hidden

    def predicted(x: NDArray[np.float64]) -> NDArray[np.float64]:
        sent = peers * tokens * row_bytes / (link * x[2])
        return np.asarray(x[0] * US + x[1] * US * row_bytes / 1024 * (peers + 1) / 2 + sent)

    solved = least_squares(
        lambda x: predicted(x) / extra - 1.0,
        [1.0, 0.1, 0.8],
        bounds=(0.0, [np.inf, np.inf, 1.0]),
        loss="huber",
        f_scale=HUBER,
    ).x
    for count, error, share in zip(ranks, predicted(solved) - extra, whole, strict=True):
        errors.add("exchange, of the chain", {"ranks": int(count)}, float(error / share))
    for count, error, time in zip(ranks, predicted(solved) - extra, extra, strict=True):
        errors.add("exchange alone", {"ranks": int(count)}, float(error / time))
    return Exchange(
        latency_s=float(solved[0]) * US,
        row_s_per_byte=float(solved[1]) * US / 1024,
        link_efficiency=float(solved[2]),
        most_bytes=most,
        gather_s=_gather(records),
        measured_ranks=counts,
        error=float(np.hypot(public_error, _row_span(solved, gpu))),
    )


def _row_span(values: NDArray[np.float64], gpu: GPU) -> float:
    """Standard error by the share of the row times that overlaps: 90 % span all and none.

    Of one row of 8 KiB among `MANY_RANKS`.
    """
    link, row = catalog.default_machine(gpu.name).link.bandwidth, 8192.0
    peers = MANY_RANKS - 1
    sent = peers * row / (link * values[2])
    least, most = (
        values[0] * US + values[1] * US * row / 1024 * times + sent for times in (1, peers)
    )
    return float(np.log(most / least) / 2 / Z90)


def _chains(records: KernelRecords) -> dict[int, dict[Chain, float]]:
    """Seconds of each chain of a product, a sum, residual and norm, per number of ranks."""
    chains: dict[int, dict[Chain, float]] = {}
    for r in records.of("sum_add_norm"):
        chains.setdefault(r["ranks"], {})[r["tokens"], r["hidden"], r["k"]] = r.seconds
    return chains


def _gather(records: KernelRecords) -> float:
    """Seconds that the choice of tokens takes longer with peers than without: the median."""
    times: dict[tuple[int, int], dict[int, float]] = {}
    for r in records.of("best"):
        times.setdefault((r["tokens"], r["vocab"]), {})[r["ranks"]] = r.seconds
    longer = [t[n] - t[1] for t in times.values() if 1 in t for n in t.keys() - {1}]
    return max(0.0, float(np.median(longer))) if longer else 0.0


def _series(records: Sequence[KernelRecord]) -> dict[tuple[str, int], dict[float, float]]:
    """Seconds by rising message size, per (algorithm name of the curve, ranks)."""
    series: dict[tuple[str, int], dict[float, float]] = {}
    for r in records:
        algorithm = "custom" if r["algorithm"] in CUSTOM_SHOTS else str(r["algorithm"])
        sizes = series.setdefault((algorithm, int(r["ranks"])), {})
        size = float(r["message_bytes"])
        sizes[size] = min(r.seconds, sizes.get(size, np.inf))
    return {key: dict(sorted(sizes.items())) for key, sizes in series.items()}
