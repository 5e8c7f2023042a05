"""Attention measurements of aiconfigurator as data frames: one row per cell, in SI units.

The frames only hold cells with a bf16 KV cache and no sliding window. All of these were measured
with vLLM's flash-attn kernel (version 2 on A100 and L40S, 3 on H100 and H200), so each cell has one
time. Decode cells have one query token and `step` + 1 KV tokens; prefill cells have no cached
tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from calibration.fit.tables.gpus import MeasuredGpu, read_table
from calibration.records.jsonl import RecordError
from perfmodel.units import MS

HEAD_DIMS = (64, 128)
LEAST_CELLS = 40  # per head dimension: eight parameters, and a table of residuals
# The highest rate of any cell as a share of the datasheet's; times in another unit are outside.
PLAUSIBLE = (0.05, 1.05)


def read_decode(data: Path, gpu: MeasuredGpu) -> pd.DataFrame:
    """Decode cells: batch, query_heads, kv_heads, head_dim, group, units, tokens, kv_bytes,
    measured_s, `in_l2` (whether all KV of the cell fits in L2, where the benchmark left it) and
    `cold_s`, the time with KV in HBM."""
    frame = _read(data, gpu, "generation_attention")
    frame["tokens"] = frame["step"] + 1.0
    frame["group"] = frame.query_heads / frame.kv_heads
    frame["units"] = frame.batch * frame.kv_heads
    frame["kv_bytes"] = 4.0 * frame.units * frame.tokens * frame.head_dim
    frame["in_l2"] = frame.kv_bytes <= gpu.sheet.l2_bytes
    frame["cold_s"] = cold_seconds(frame, gpu)
    return frame


def cold_seconds(frame: pd.DataFrame, gpu: MeasuredGpu) -> pd.Series:
    """Times with KV in HBM, estimated for cells that the benchmark timed with KV in L2.

    In a real step the weights and KV of the other layers are read between two reads of a layer's
    KV, so it is never in L2. Let the reference be the smallest cell with the same heads and batch
    that does not fit in L2. A cell in L2 is estimated at latency + (reference time - latency) x
    bytes / reference bytes, and at least at latency + bytes / (0.9 HBM bandwidth). Cells that are
    already slower, since they have few blocks, keep their measured time.
    """
    latency = frame.groupby("head_dim").measured_s.transform(lambda s: s.quantile(0.01))
    keys = ["batch", "query_heads", "kv_heads", "head_dim"]
    cold = frame[~frame.in_l2].sort_values("tokens").groupby(keys, as_index=False).first()
    cold["per_byte"] = (cold.measured_s - latency.min()) / cold.kv_bytes
    rate = frame[keys].merge(cold[[*keys, "per_byte"]], on=keys, how="left").per_byte.to_numpy()
    per_byte = np.fmax(rate, 1.0 / (0.9 * gpu.sheet.hbm_bandwidth))
    streamed = latency + per_byte * frame.kv_bytes
    return frame.measured_s.where(~frame.in_l2, np.maximum(frame.measured_s, streamed))


def read_windowed(data: Path, gpu: MeasuredGpu) -> pd.DataFrame:
    """Decode cells with a full sliding window: columns as in the table, and `window`, query_heads,
    kv_heads, batch, measured_s. Empty if the table has none."""
    frame = read_table(data, gpu, "generation_attention")
    if "window_size" not in frame:
        frame = frame.assign(window_size=0)
    full = (frame.window_size > 0) & (frame.step >= frame.window_size)
    return _renamed(frame[full & (frame.kv_cache_dtype == "bfloat16")])


def read_prefill(data: Path, gpu: MeasuredGpu) -> pd.DataFrame:
    """Prefill cells: batch, query_heads, kv_heads, head_dim, new_tokens, measured_s."""
    frame = _read(data, gpu, "context_attention")
    return frame.rename(columns={"isl": "new_tokens"})


def check_cells(data: Path, gpu: MeasuredGpu) -> None:
    """Raise a `RecordError` if there are too few cells, or faster ones than the GPU allows."""
    decode, prefill = read_decode(data, gpu), read_prefill(data, gpu)
    for table, frame in (("generation_attention", decode), ("context_attention", prefill)):
        cells = frame.groupby("head_dim").size()
        if not len(cells) or cells.min() < LEAST_CELLS:
            raise RecordError(
                f"attention: {table} has {cells.min() if len(cells) else 0} bf16 rows of a head "
                f"dimension without a window; at least {LEAST_CELLS} are needed"
            )
    cold = decode[decode.kv_bytes > 4.0 * gpu.sheet.l2_bytes]  # hardly any of it in L2
    flops = 2.0 * prefill.batch * prefill.query_heads * prefill.head_dim * prefill.new_tokens**2.0
    for what, rate, peak in (
        ("HBM bandwidth", cold.kv_bytes / cold.measured_s, gpu.sheet.hbm_bandwidth),
        ("peak FLOP/s", flops / prefill.measured_s, gpu.sheet.peak_flops),
    ):
        share = rate.max() / peak
        if len(rate) and not PLAUSIBLE[0] <= share <= PLAUSIBLE[1]:
            raise RecordError(
                f"attention: the fastest row reaches {share:.3g} times the {what} of {gpu.name}; "
                f"the table is from another GPU, or not in ms"
            )


def kernel_source(data: Path, gpu: MeasuredGpu) -> str:
    """Kernel library, engine version and device of the decode rows."""
    row = _read(data, gpu, "generation_attention").iloc[0]
    return f"{row.kernel_source}, {row.framework} {row.version}, {row.device}"


def _read(data: Path, gpu: MeasuredGpu, table: str) -> pd.DataFrame:
    frame = read_table(data, gpu, table)
    if "window_size" in frame:
        frame = frame[frame.window_size == 0]
    return _renamed(frame[(frame.kv_cache_dtype == "bfloat16") & frame.head_dim.isin(HEAD_DIMS)])


def _renamed(frame: pd.DataFrame) -> pd.DataFrame:
    names = {"batch_size": "batch", "num_heads": "query_heads", "num_key_value_heads": "kv_heads"}
    frame = frame.rename(columns=names)
    return frame.assign(measured_s=frame.latency * MS).reset_index(drop=True)
