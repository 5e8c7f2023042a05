"""Collective times from aiconfigurator's tables: `collectives.toml`.

`message_size` in both source tables is in elements, not bytes. NCCL's rows for n elements of type
half take as long as those for 2n of int8 (A100, two ranks, all-gather: 38.1 us at 2^20 half, 38.3
us at 2^21 int8), and the all-reduce of 2^27 elements of type half takes as long as 2^28 bytes in
nccl-tests (8xH200: 1.05 against 1.08 ms). vLLM's rows also count elements: they equal NCCL's from
2^22 elements (8 MB) on, where vLLM switches to NCCL. The size of an all-gather is that of the
gathered tensor; if it were the share of one rank, eight A100s would move 1.6 TB/s over links of
0.3 TB/s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.fit.errors import misfit_figures
from calibration.fit.tables.gpus import MeasuredGpu, read_table
from calibration.records.jsonl import RecordError
from calibration.records.toml_file import compact, significant, toml_text
from perfmodel.kernels import MeasuredTimes
from perfmodel.units import GB, MS, US

Array = NDArray[np.float64]

ELEMENT_BYTES = 2.0  # half, bf16
RANKS = (2, 4, 8)
LEAST_SIZES = 4  # message sizes that are required for each number of ranks
PLAUSIBLE = (0.01, 2.0)  # link efficiency; above 1 if the switches do the additions
SMALL_BYTES = 1024.0  # messages up to this size determine the latency
LARGE_BYTES = 64e6  # messages from this size on determine the rate
ONE_SHOT_BYTES = 256.0 * 1024  # largest message for which vLLM uses one-shot with eight ranks
SERIES = (
    ("all_reduce", "nccl"),
    ("all_gather", "nccl"),
    ("all_reduce", "custom"),
    ("all_reduce", "custom_eager"),
)
HEADER = """\
Collective times between the GPUs of one node, {gpu}.
Written by `specroof calibrate fit-tables`; the form is in perfmodel/kernels/collectives.py.
message_bytes of an all_gather: the gathered tensor. custom: vLLM's one- and two-shot all-reduce
in a CUDA graph, NCCL from 8 MB; custom_eager: the same without a graph.
"""


def read_times(data: Path, gpu: MeasuredGpu, operation: str, algorithm: str) -> pd.DataFrame:
    """Rows (ranks, message_bytes, seconds) of one operation and algorithm."""
    if algorithm == "nccl":
        frame = read_table(data, gpu, "nccl")
        frame = frame[(frame.op_name == operation) & (frame.nccl_dtype == "half")]
    else:
        frame = read_table(data, gpu, "custom_allreduce")
        mode = {"custom": "vllm_graph", "custom_eager": "vllm_eager"}[algorithm]
        frame = frame[frame.backend == mode]
    rows = pd.DataFrame(
        {
            "ranks": frame.num_gpus,
            "message_bytes": frame.message_size * ELEMENT_BYTES,
            "seconds": frame.latency * MS,
        }
    ).sort_values(["ranks", "message_bytes"])
    few = rows.groupby("ranks").message_bytes.nunique().reindex(RANKS, fill_value=0)
    if few.min() < LEAST_SIZES or not (
        rows[rows.ranks == RANKS[0]].message_bytes.min() <= SMALL_BYTES
        and rows.message_bytes.max() >= LARGE_BYTES
    ):
        found = ", ".join(f"{count} over {ranks}" for ranks, count in few.items())
        raise RecordError(
            f"{operation} ({algorithm}): the table has too few message sizes ({found} ranks); at "
            f"least {LEAST_SIZES} each are needed, from {SMALL_BYTES:g} to {LARGE_BYTES:g} bytes"
        )
    return rows


def monotone(seconds: Array) -> Array:
    """Non-decreasing times: the geometric mean of the running maximum and the reverse minimum."""
    up = np.maximum.accumulate(seconds)
    down = np.minimum.accumulate(seconds[::-1])[::-1]
    return np.asarray(np.sqrt(up * down))


def unspiked(seconds: Array) -> Array:
    """Times longer than both neighbours by 1.5x replaced by the geometric mean of these."""
    out = seconds.copy()
    left, mid, right = seconds[:-2], seconds[1:-1], seconds[2:]
    out[1:-1] = np.where(mid > 1.5 * np.maximum(left, right), np.sqrt(left * right), mid)
    return out


def fit_collective_tables(data: Path, gpu: MeasuredGpu) -> tuple[dict[str, Any], pd.DataFrame]:
    """The catalog table of one GPU, and its errors with each size left out."""
    measured, forms, errors = [], [], []
    for operation, algorithm in SERIES:
        frame = read_times(data, gpu, operation, algorithm)
        for ranks, rows in frame.groupby("ranks"):
            size, raw = rows.message_bytes.to_numpy(float), rows.seconds.to_numpy(float)
            time = monotone(unspiked(raw))
            measured.append(measured_entry(operation, algorithm, int(ranks), size, time))
            errors += list(leave_one_out(operation, algorithm, int(ranks), size, raw, time))
        forms.append(_alpha_beta(operation, algorithm, frame, gpu))
    versions = read_table(data, gpu, "nccl").iloc[0]
    custom = read_table(data, gpu, "custom_allreduce").iloc[0]
    source = (
        f"PyPI aiconfigurator-core 0.12.0, Apache-2.0: NCCL {versions.version}, "
        f"vLLM {custom.version}, {versions.device}"
    )
    table: dict[str, Any] = {
        "source": source,
        "link_kind": gpu.link.kind,
        "link_GBps": gpu.link.bandwidth / GB,
        "measured": measured,
        "alpha_beta": forms,
    }
    return table, pd.DataFrame(errors)


def leave_one_out(
    operation: str, algorithm: str, ranks: int, size: Array, raw: Array, time: Array
) -> Iterator[dict[str, Any]]:
    """Errors of predicting each size, except the ends, from a table without it."""
    for i in range(1, len(size) - 1):
        table = MeasuredTimes(
            operation=operation,
            algorithm=algorithm,
            ranks=ranks,
            message_bytes=np.delete(size, i),
            seconds=np.delete(time, i),
        )
        error = float(table.at(size[i : i + 1], 1.0)[0] / raw[i] - 1.0)
        yield {
            "operation": operation,
            "algorithm": algorithm,
            "ranks": ranks,
            "message_bytes": size[i],
            "error": error,
        }


def all_to_all_line(data: Path, gpu: MeasuredGpu) -> str:
    """How far NCCL's all-to-all is from an all-gather of as many bytes, as which it is priced."""
    frame = read_table(data, gpu, "nccl")
    frame = frame[frame.nccl_dtype == "half"]
    wide = frame.pivot_table(
        index=["num_gpus", "message_size"], columns="op_name", values="latency"
    )
    if "alltoall" not in wide:
        return "all-to-all: not in the table"
    misfit = np.log(wide.all_gather / wide.alltoall).dropna().to_numpy()
    return f"all-to-all, priced as an all-gather: {misfit_figures(misfit)}"


def _alpha_beta(
    operation: str, algorithm: str, frame: pd.DataFrame, gpu: MeasuredGpu
) -> dict[str, Any]:
    small = frame[frame.message_bytes <= SMALL_BYTES].groupby("ranks").seconds.median() / US
    large = frame[frame.message_bytes >= LARGE_BYTES]
    passes = 2.0 if operation == "all_reduce" else 1.0
    traffic = passes * (large.ranks - 1) / large.ranks * large.message_bytes
    efficiency = float((traffic / large.seconds).median() / gpu.link.bandwidth)
    if not PLAUSIBLE[0] <= efficiency <= PLAUSIBLE[1]:
        raise RecordError(
            f"{operation} ({algorithm}): large messages would use {efficiency:.3g} times the link "
            f"bandwidth of {gpu.name}; the table is from another machine, or not in ms"
        )
    slope = np.polyfit(small.index.to_numpy(float) - 2, small.to_numpy(), 1)[0]
    return {
        "operation": operation,
        "algorithm": algorithm,
        "latency_us": round(float(small.loc[2]), 2),
        "latency_per_rank_us": round(max(float(slope), 0.0), 3),
        "link_efficiency": round(efficiency, 4),
    }


def one_shot_error(table: Mapping[str, Any]) -> float:
    """Rms error of ln(time) when one-shot all-reduces on more ranks are predicted from two.

    Like an exchange, one-shot sends the message to every peer: latency + (n-1) x bytes / rate. Both
    values are fitted to two ranks of a catalog table, for sizes up to `ONE_SHOT_BYTES`.
    """
    times = {
        entry["ranks"]: _one_shot_rows(entry)
        for entry in table["measured"]
        if (entry["operation"], entry["algorithm"]) == ("all_reduce", "custom")
    }
    size, seconds = times[2]
    slope, latency = np.polyfit(size, seconds, 1)
    misfit = [
        np.log((latency + (ranks - 1) * slope * size) / seconds)
        for ranks, (size, seconds) in times.items()
        if ranks > 2
    ]
    return float(np.sqrt(np.mean(np.concatenate(misfit) ** 2)))


def _one_shot_rows(entry: Mapping[str, Any]) -> tuple[Array, Array]:
    size, seconds = np.array(entry["message_bytes"], float), np.array(entry["time_us"], float)
    one_shot = size <= ONE_SHOT_BYTES
    return size[one_shot], seconds[one_shot]


def measured_entry(
    operation: str, algorithm: str, ranks: int, size: Array, time: Array
) -> dict[str, Any]:
    """An entry of `[[measured]]`, with `size` in bytes and `time` in seconds."""
    return {
        "operation": operation,
        "algorithm": algorithm,
        "ranks": ranks,
        "message_bytes": size,
        "time_us": [significant(t / US, 4) for t in time],
    }


def catalog_text(gpu: str, table: Mapping[str, Any], errors: pd.DataFrame) -> str:
    """The catalog file of a table, with the errors of left-out sizes."""
    residuals = {}
    for (operation, algorithm), part in errors.groupby(["operation", "algorithm"]):
        size = part.error.abs() * 100
        name = f"{operation}_{algorithm}_size_out"
        residuals[f"{name}_median_percent"] = round(float(size.median()), 2)
        residuals[f"{name}_p90_percent"] = round(float(size.quantile(0.9)), 2)
    plain = {key: compact(table[key], 12) for key in ("source", "link_kind", "link_GBps")}
    entries = {
        kind: [{k: compact(v, 12) for k, v in entry.items()} for entry in table[kind]]
        for kind in ("alpha_beta", "measured")
    }
    exchange = {"exchange": table["exchange"]} if "exchange" in table else {}
    return toml_text(
        {**plain, **exchange, "residuals": residuals, **entries}, header=HEADER.format(gpu=gpu)
    )


def report_lines(errors: pd.DataFrame) -> list[str]:
    """The errors as text, one line per operation and algorithm."""
    lines = ["collectives, a size left out, |error| %, median / p90 / worst"]
    for (operation, algorithm), part in errors.groupby(["operation", "algorithm"]):
        size = part.error.abs() * 100
        figures = f"{size.median():.1f} / {size.quantile(0.9):.1f} / {size.max():.1f}"
        lines.append(f"  {operation:10} {algorithm:12} {figures}")
    return lines
