"""Collective time tables from aiconfigurator's measurements, as catalog files.

    python -m calibration.fit.tables.collective_fit --data DIR [--check nccl_tests.csv] [--out DIR]

`message_size` in both source tables counts elements, not bytes. NCCL's half rows at n elements take
as long as its int8 rows at 2n (A100, two ranks, all-gather: 38.1 us at 2^20 half, 38.3 us at 2^21
int8), and the half all-reduce of 2^27 elements matches nccl-tests' 2^28 bytes (8xH200: 1.05
against 1.08 ms). vLLM's rows equal NCCL's at the same message_size from 2^22 on, where 8 MB hands
over to NCCL: elements too. An all-gather's size is the gathered tensor: read as one rank's
share, eight A100s would move 1.6 TB/s over 0.3 TB/s links.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.fit.tables.attention_tables import GPUS, MeasuredGpu
from perfmodel import CollectiveCurve, MeasuredTimes, collective_curve
from perfmodel.units import GB, MS, US

Array = NDArray[np.float64]

ELEMENT_BYTES = 2.0  # half, bf16
RANKS = (2, 4, 8)
SMALL_BYTES = 1024.0  # latency is read here and below
LARGE_BYTES = 64e6  # rate is read here and above
SERIES = (("all_reduce", "nccl"), ("all_gather", "nccl"), ("all_reduce", "custom"),
          ("all_reduce", "custom_eager"))  # fmt: skip
HEADER = """# Collective times between the GPUs of one node, {gpu}.
# By `python -m calibration.fit.tables.collective_fit`; form: perfmodel/kernels/collectives.py.
# message_bytes of an all_gather: the gathered tensor. custom: vLLM's one- and two-shot all-reduce
# in a CUDA graph, NCCL from 8 MB; custom_eager: the same launched eagerly.
"""


def read_times(data: Path, gpu: MeasuredGpu, operation: str, algorithm: str) -> pd.DataFrame:
    """Rows (ranks, message_bytes, seconds) of one operation and algorithm."""
    if algorithm == "nccl":
        frame = pd.read_parquet(data / gpu.folder / "nccl.parquet")
        frame = frame[(frame.op_name == operation) & (frame.nccl_dtype == "half")]
    else:
        frame = pd.read_parquet(data / gpu.folder / "custom_allreduce.parquet")
        mode = {"custom": "vllm_graph", "custom_eager": "vllm_eager"}[algorithm]
        frame = frame[frame.backend == mode]
    return pd.DataFrame(
        {
            "ranks": frame.num_gpus,
            "message_bytes": frame.message_size * ELEMENT_BYTES,
            "seconds": frame.latency * MS,
        }
    ).sort_values(["ranks", "message_bytes"])


def monotone(seconds: Array) -> Array:
    """Midway, in logarithms, between the running maximum and the running minimum from the right."""
    up = np.maximum.accumulate(seconds)
    down = np.minimum.accumulate(seconds[::-1])[::-1]
    return np.asarray(np.sqrt(up * down))


def unspiked(seconds: Array) -> Array:
    """A time over 1.5x both its neighbours is a timing accident; it takes their mean."""
    out = seconds.copy()
    left, mid, right = seconds[:-2], seconds[1:-1], seconds[2:]
    out[1:-1] = np.where(mid > 1.5 * np.maximum(left, right), np.sqrt(left * right), mid)
    return out


def fit_gpu(data: Path, gpu: MeasuredGpu) -> tuple[dict[str, object], pd.DataFrame]:
    """The catalog table of one GPU and its leave-one-size-out errors."""
    measured, forms, errors = [], [], []
    for operation, algorithm in SERIES:
        frame = read_times(data, gpu, operation, algorithm)
        for ranks, rows in frame.groupby("ranks"):
            size, raw = rows.message_bytes.to_numpy(float), rows.seconds.to_numpy(float)
            time = monotone(unspiked(raw))
            measured.append(
                {
                    "operation": operation,
                    "algorithm": algorithm,
                    "ranks": int(ranks),
                    "message_bytes": size.tolist(),
                    "time_us": [float(f"{t / US:.4g}") for t in time],
                }
            )
            errors += list(leave_one_out(operation, algorithm, int(ranks), size, raw, time))
        forms.append(_alpha_beta(operation, algorithm, frame, gpu))
    versions = pd.read_parquet(data / gpu.folder / "nccl.parquet").iloc[0]
    custom = pd.read_parquet(data / gpu.folder / "custom_allreduce.parquet").iloc[0]
    source = (
        f"PyPI aiconfigurator-core 0.12.0, Apache-2.0: NCCL {versions.version}, "
        f"vLLM {custom.version}, {versions.device}"
    )
    table: dict[str, object] = {
        "source": source,
        "link_kind": gpu.link.kind,
        "link_GBps": gpu.link.bandwidth / GB,
        "measured": measured,
        "alpha_beta": forms,
    }
    return table, pd.DataFrame(errors)


def leave_one_out(
    operation: str, algorithm: str, ranks: int, size: Array, raw: Array, time: Array
) -> Iterator[dict[str, object]]:
    """Each inner size predicted from a table without it, against the raw measurement."""
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


def _alpha_beta(
    operation: str, algorithm: str, frame: pd.DataFrame, gpu: MeasuredGpu
) -> dict[str, object]:
    small = frame[frame.message_bytes <= SMALL_BYTES].groupby("ranks").seconds.median() / US
    large = frame[frame.message_bytes >= LARGE_BYTES]
    passes = 2.0 if operation == "all_reduce" else 1.0
    traffic = passes * (large.ranks - 1) / large.ranks * large.message_bytes
    slope = np.polyfit(small.index.to_numpy(float) - 2, small.to_numpy(), 1)[0]
    return {
        "operation": operation,
        "algorithm": algorithm,
        "latency_us": round(float(small.loc[2]), 2),
        "latency_per_rank_us": round(max(float(slope), 0.0), 3),
        "link_efficiency": round(float((traffic / large.seconds).median() / gpu.link.bandwidth), 4),
    }


def toml_text(gpu: str, table: dict[str, object], errors: pd.DataFrame) -> str:
    """The catalog file."""
    lines = [HEADER.format(gpu=gpu)]
    lines += [f"{k} = {_value(table[k])}" for k in ("source", "link_kind", "link_GBps")]
    lines += ["", "[residuals]"]
    for (operation, algorithm), part in errors.groupby(["operation", "algorithm"]):
        size = part.error.abs() * 100
        name = f"{operation}_{algorithm}_size_out"
        lines.append(f"{name}_median_percent = {size.median():.2f}")
        lines.append(f"{name}_p90_percent = {size.quantile(0.9):.2f}")
    for kind in ("alpha_beta", "measured"):
        entries = table[kind]
        assert isinstance(entries, list)
        for entry in entries:
            lines += ["", f"[[{kind}]]", *(f"{k} = {_value(v)}" for k, v in entry.items())]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return f"{value:.12g}"


def print_checks(curve: CollectiveCurve, gpu: MeasuredGpu, nccl_tests: Path) -> None:
    """NCCL's table against independent nccl-tests runs of the same GPU, where there are any."""
    frame = pd.read_csv(nccl_tests)
    frame = frame[frame.gpu.str.lower() == gpu.name.split("-")[0]]
    if frame.empty:
        return
    predicted = curve.all_reduce_seconds(
        message_bytes=frame.payload_bytes.to_numpy(float),
        ranks=int(frame.n_gpu.iloc[0]),
        algorithm="nccl",
        link_bandwidth=gpu.link.bandwidth,
    )
    error = predicted / (frame.time_us.to_numpy() * US) - 1.0
    for size, e in zip(frame.payload_bytes, error, strict=True):
        print(f"  nccl-tests {gpu.name} x{frame.n_gpu.iloc[0]} {size:>12,d} B {e * 100:+6.1f} %")


def main() -> None:
    """Build, print and, with --out, write `<out>/<gpu>/collectives.toml`."""
    parser = argparse.ArgumentParser(description="Collective times as catalog files.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the system folders")
    parser.add_argument("--gpu", nargs="*", default=list(GPUS), choices=list(GPUS))
    parser.add_argument("--check", type=Path, help="nccl-tests results as CSV")
    parser.add_argument("--out", type=Path, help="efficiency catalog to write into")
    arguments = parser.parse_args()
    for name in arguments.gpu:
        gpu = GPUS[name]
        table, errors = fit_gpu(arguments.data, gpu)
        curve = collective_curve(table)
        print(f"{name}: one size left out, |error| %")
        for (operation, algorithm), part in errors.groupby(["operation", "algorithm"]):
            e = part.error.abs() * 100
            print(f"  {operation:10} {algorithm:12} median {e.median():5.1f}  p90 "
                  f"{e.quantile(0.9):5.1f}  worst {e.max():5.1f}")  # fmt: skip
        if arguments.check:
            print_checks(curve, gpu, arguments.check)
        if arguments.out:
            folder = arguments.out / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "collectives.toml").write_text(toml_text(name, table, errors))


if __name__ == "__main__":
    main()
