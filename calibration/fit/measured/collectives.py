"""Fit all-reduces measured between the GPUs of one machine: `collectives-specroof.toml`.

Entries of the GPU's public table are kept if nothing was timed for them. "custom" is the faster of
one-shot and two-shot at each size, like the runtime's choice. The exchange is the runtime's
all-reduce inside the residual and norm kernel. It is fitted to the difference between the times of
chains (a GEMM followed by that kernel) with and without peers.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from perfmodel.kernels import Exchange
from perfmodel.units import US

CUSTOM_SHOTS = ("one_shot", "two_shot")
LEAST_SIZES = 4
LEAST_CHAINS = 20  # timed with and without peers
EXCHANGE_BYTES = 8.0 * 2**20  # runtime.kernels.ops.SUM_BYTES: largest message of two ranks
BUFFER_BYTES = 64.0 * 2**20  # runtime.parallel.all_reduce.AllReduceLimits.workspace_bytes
ELEMENT_BYTES = 2.0
HUBER = 0.1  # relative error beyond which a chain has less weight
Chain = tuple[int, int, int]  # tokens, hidden, inputs of the GEMM
Entry = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """The time of one chain, and how much longer it takes than without peers."""

    ranks: int
    tokens: int
    row_bytes: float
    extra_s: float
    chain_s: float


def missing_collectives(records: KernelRecords) -> str | None:
    """What is missing for a fit, as a clause; None if the records suffice."""
    reduces = records.of("all_reduce")
    if not reduces:
        return "all-reduce: no record (one GPU); the public table is kept"
    most = max(len(sizes) for sizes in _series(reduces).values())
    if most < LEAST_SIZES:
        return f"all-reduce: {most} message sizes; {LEAST_SIZES} are needed"
    return None


def fit_collectives(records: KernelRecords, gpu: GPU) -> tuple[str, Errors, Exchange | None]:
    """The catalog file, the errors of left-out sizes and of the exchange, and the exchange.

    `missing_collectives` must have returned None.
    """
    path = resources.files("perfmodel") / "catalog" / "efficiency" / gpu.efficiency
    text = (path / "collectives.toml").read_text(encoding="utf-8")
    table: dict[str, Any] = tomllib.loads(text)
    table.pop("residuals", None)
    public_error = one_shot_error(table)
    errors = Errors("all-reduce", regions=lambda cell: (f"{cell['ranks']} ranks",))
    left: list[dict[str, Any]] = []
    for (algorithm, ranks), times in _series(records.of("all_reduce")).items():
        if len(times) < LEAST_SIZES:
            continue
        size, raw = np.array(list(times), float), np.array(list(times.values()))
        time = monotone(unspiked(raw))
        entry = measured_entry("all_reduce", algorithm, ranks, size, time)
        table["measured"] = _with_entry(table, entry)
        rows = list(leave_one_out("all_reduce", algorithm, ranks, size, raw, time))
        left += rows
        for row in rows:
            errors.add("size out", {"ranks": ranks}, row["error"])
    timed = {ranks for _, ranks in _series(records.of("all_reduce"))}
    for ranks in _chains(records).keys() - timed - {1}:
        if (large := _large_messages(records, table, ranks)) is not None:
            table["measured"] = _with_entry(table, large)
    exchange = _fit_exchange(records, gpu, public_error, errors)
    if exchange is not None:
        table["exchange"] = {
            "latency_us": significant(exchange.latency_s / US, 4),
            "peer_latency_us": significant(exchange.peer_latency_s / US, 4),
            "row_us_per_KiB": significant(exchange.row_s_per_byte * 1024 / US, 4),
            "link_efficiency": round(exchange.link_efficiency, 4),
            "link_efficiency_of_many": round(exchange.link_efficiency_of_many, 4),
            "most_KiB": round(exchange.most_bytes / 1024),
            "buffer_KiB": round(exchange.buffer_bytes / 1024),
            "gather_us": significant(exchange.gather_s / US, 4),
            "measured_ranks": [int(n) for n in exchange.measured_ranks],
            "error": round(exchange.error, 3),
        }
    table["source"] = f"sums as measured: {records.source}; the rest: {table['source']}"
    frame = pd.DataFrame(left, columns=["operation", "algorithm", "error"])
    return catalog_text(gpu.name, table, frame), errors, exchange


def rank_gap(
    records: KernelRecords, exchange: Exchange, gpu: GPU, alone: Callable[[KernelRecord], float]
) -> float | None:
    """Seconds that an all-reduce takes longer in a layer than in a chain; None without layers.

    The median over layers. A layer has two all-reduces, so each takes half of the time that the
    layer takes longer than by `alone`, its predicted time without peers.
    """
    link = catalog.default_machine(gpu.name).link.bandwidth
    gaps = []
    for record in records.of("rank_layer"):
        row_bytes, ranks = ELEMENT_BYTES * record["hidden"], record["ranks"]
        message = np.asarray(row_bytes * record["batch"] * record["query_tokens"])
        if ranks > 1 and message <= exchange.largest_bytes(ranks):
            fused = float(exchange.at(message, row_bytes, ranks, link))
            gaps.append((record.seconds - alone(record)) / 2 - fused)
    return max(0.0, float(np.median(gaps))) if gaps else None


def _fit_exchange(
    records: KernelRecords, gpu: GPU, public_error: float, errors: Errors
) -> Exchange | None:
    """The exchange fitted to all numbers of ranks; adds its errors to `errors`.

    Its error at other numbers of ranks is that of predicting the largest timed number from the
    others, or `public_error` if only one number was timed.
    """
    rows = _exchanged(records)
    if len(rows) < LEAST_CHAINS:
        return None
    gather, fitted = _gather(records), _exchange_of(rows, gpu)
    counts = sorted({row.ranks for row in rows})
    for row in rows:
        off = _seconds_of(fitted, row, gpu) - row.extra_s
        errors.add("exchange in chain", {"ranks": row.ranks}, off / row.chain_s)
        errors.add("exchange alone", {"ranks": row.ranks}, off / row.extra_s)
    error = public_error
    if len(counts) > 1:
        fewer = _exchange_of([row for row in rows if row.ranks < counts[-1]], gpu)
        left_out = [row for row in rows if row.ranks == counts[-1]]
        ratios = [_seconds_of(fewer, row, gpu) / row.extra_s for row in left_out]
        for row, ratio in zip(left_out, ratios, strict=True):
            errors.add("ranks left out", {"ranks": row.ranks}, ratio - 1.0)
        error = float(np.sqrt(np.mean(np.log(ratios) ** 2)))
    return replace(fitted, gather_s=gather, measured_ranks=np.array(counts, float), error=error)


def _exchange_of(rows: Sequence[Exchanged], gpu: GPU) -> Exchange:
    """An exchange by robust least squares on relative errors.

    If only two ranks were timed, additional peers are assumed to behave like the first.
    """
    from scipy.optimize import least_squares

    def exchange(x: NDArray[np.float64]) -> Exchange:
        return Exchange(
            latency_s=float(x[0]) * US,
            row_s_per_byte=float(x[1]) * US / 1024,
            link_efficiency=float(x[2]),
            peer_latency_s=float(x[3]) * US if several else 0.0,
            link_efficiency_of_many=float(x[4]) if several else float(x[2]),
            most_bytes=EXCHANGE_BYTES,
            buffer_bytes=BUFFER_BYTES,
            gather_s=0.0,
            measured_ranks=np.empty(0),
            error=0.0,
        )

    def misfit(x: NDArray[np.float64]) -> NDArray[np.float64]:
        trial = exchange(x)
        return np.array([_seconds_of(trial, row, gpu) / row.extra_s - 1.0 for row in rows])

    several = any(row.ranks > 2 for row in rows)
    start = [1.0, 0.1, 0.8, 0.1, 0.8][: 5 if several else 3]
    highest = [np.inf, np.inf, 1.0, np.inf, 1.0][: len(start)]
    solved = least_squares(misfit, start, bounds=(1e-3, highest), loss="huber", f_scale=HUBER)
    return exchange(solved.x)


def _seconds_of(exchange: Exchange, row: Exchanged, gpu: GPU) -> float:
    link = catalog.default_machine(gpu.name).link.bandwidth
    message = np.asarray(row.tokens * row.row_bytes)
    return float(exchange.at(message, row.row_bytes, row.ranks, link))


def _exchanged(records: KernelRecords, *, too_large: bool = False) -> list[Exchanged]:
    """Chains timed with and without peers whose message is exchanged, or is too large for it."""
    chains, rows = _chains(records), []
    for ranks, timed in chains.items():
        for (tokens, hidden, depth), seconds in timed.items():
            alone = chains.get((1 if ranks > 1 else 0), {}).get((tokens, hidden, depth))
            row_bytes = ELEMENT_BYTES * hidden
            larger = tokens * row_bytes > EXCHANGE_BYTES / max(1, ranks - 1) ** 2
            if alone is not None and larger == too_large:
                rows.append(
                    Exchanged(
                        ranks=ranks,
                        tokens=tokens,
                        row_bytes=row_bytes,
                        extra_s=seconds - alone,
                        chain_s=seconds,
                    )
                )
    return rows


def _large_messages(records: KernelRecords, table: Mapping[str, Any], ranks: int) -> Entry | None:
    """The "custom" entry for `ranks` if all-reduces were only timed in chains.

    The table's times are kept up to the largest exchange; larger messages take the time that the
    chains took longer with peers.
    """
    longer: dict[float, list[float]] = {}
    for row in _exchanged(records, too_large=True):
        if row.ranks == ranks:
            longer.setdefault(row.tokens * row.row_bytes, []).append(row.extra_s)
    known = [e for e in table["measured"] if _names(e) == ("all_reduce", "custom", ranks)]
    if len(longer) < LEAST_SIZES or not known:
        return None
    old = zip(known[0]["message_bytes"], known[0]["time_us"], strict=True)
    times = {float(size): float(us) * US for size, us in old if size < min(longer)}
    times |= {size: float(np.median(of_size)) for size, of_size in sorted(longer.items())}
    time = monotone(np.array(list(times.values())))
    return measured_entry("all_reduce", "custom", ranks, np.array(list(times)), time)


def _with_entry(table: Mapping[str, Any], entry: Entry) -> list[Entry]:
    """The measured entries, with one of them replaced or added."""
    return [entry] + [e for e in table["measured"] if _names(e) != _names(entry)]


def _names(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["operation"], entry["algorithm"], entry["ranks"]


def _chains(records: KernelRecords) -> dict[int, dict[Chain, float]]:
    """Seconds of each chain, by number of ranks."""
    chains: dict[int, dict[Chain, float]] = {}
    for r in records.of("sum_add_norm"):
        chains.setdefault(r["ranks"], {})[r["tokens"], r["hidden"], r["k"]] = r.seconds
    return chains


def _gather(records: KernelRecords) -> float:
    """Median of the seconds that sampling takes longer with peers than without."""
    times: dict[tuple[int, int], dict[int, float]] = {}
    for r in records.of("best"):
        times.setdefault((r["tokens"], r["vocab"]), {})[r["ranks"]] = r.seconds
    longer = [t[n] - t[1] for t in times.values() if 1 in t for n in t.keys() - {1}]
    return max(0.0, float(np.median(longer))) if longer else 0.0


def _series(records: Sequence[KernelRecord]) -> dict[tuple[str, int], dict[float, float]]:
    """Seconds by increasing message size, for each (algorithm of the curve, ranks)."""
    series: dict[tuple[str, int], dict[float, float]] = {}
    for r in records:
        algorithm = "custom" if r["algorithm"] in CUSTOM_SHOTS else str(r["algorithm"])
        sizes = series.setdefault((algorithm, int(r["ranks"])), {})
        size = float(r["message_bytes"])
        sizes[size] = min(r.seconds, sizes.get(size, np.inf))
    return {key: dict(sorted(sizes.items())) for key, sizes in series.items()}
