"""Attention measurements of aiconfigurator as plain frames: one row a cell, SI units.

Decode (`read_decode`): query length 1, bf16 queries and KV, no sliding window; KV tokens are
`step` + 1. vLLM's own kernel is the only one measured with a bf16 KV cache (flash-attn 2 on A100
and L40S, flash-attn 3 on H100 and H200), so a cell never has two kernels to choose from. Prefill
(`read_prefill`): the same filter, no cached tokens; L40S was also measured with FlashInfer and
Triton, but only with an fp8 cache.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from calibration.fit.tables.gpus import MeasuredGpu, read_table
from perfmodel.units import MS

HEAD_DIMS = (64, 128)


def read_decode(data: Path, gpu: MeasuredGpu) -> pd.DataFrame:
    """Decode cells: batch, query_heads, kv_heads, head_dim, group, units, tokens, kv_bytes,
    measured_s, `in_l2` (the cell's whole KV fits in L2, where the benchmark left it) and `cold_s`,
    what the cell would take with its KV in HBM."""
    frame = _read(data, gpu, "generation_attention")
    frame["tokens"] = frame["step"] + 1.0
    frame["group"] = frame.query_heads / frame.kv_heads
    frame["units"] = frame.batch * frame.kv_heads
    frame["kv_bytes"] = 4.0 * frame.units * frame.tokens * frame.head_dim
    frame["in_l2"] = frame.kv_bytes <= gpu.sheet.l2_bytes
    frame["cold_s"] = cold_seconds(frame, gpu)
    return frame


def cold_seconds(frame: pd.DataFrame, gpu: MeasuredGpu) -> pd.Series:
    """Times with the KV in HBM, for cells that the benchmark timed out of L2.

    In a real step the other layers' weights and KV pass between two reads of a layer's cache, so it
    is never in L2. A cell in L2 takes at least its share of the smallest cell of the same heads
    and batch that is not: latency + (that cell's time above latency) x bytes / its bytes, and at
    least latency + bytes / (0.9 HBM bandwidth). Block-bound cells (few units), as slow in L2 as
    in HBM, stay as measured.
    """
    latency = frame.groupby("head_dim").measured_s.transform(lambda s: s.quantile(0.01))
    keys = ["batch", "query_heads", "kv_heads", "head_dim"]
    cold = frame[~frame.in_l2].sort_values("tokens").groupby(keys, as_index=False).first()
    cold["per_byte"] = (cold.measured_s - latency.min()) / cold.kv_bytes
    rate = frame[keys].merge(cold[[*keys, "per_byte"]], on=keys, how="left").per_byte.to_numpy()
    per_byte = np.fmax(rate, 1.0 / (0.9 * gpu.sheet.hbm_bandwidth))
    streamed = latency + per_byte * frame.kv_bytes
    return frame.measured_s.where(~frame.in_l2, np.maximum(frame.measured_s, streamed))


def read_prefill(data: Path, gpu: MeasuredGpu) -> pd.DataFrame:
    """Prefill cells of both head dimensions: batch, heads, head_dim, new_tokens, measured_s."""
    frame = _read(data, gpu, "context_attention")
    return frame.rename(columns={"isl": "new_tokens"})


def kernel_source(data: Path, gpu: MeasuredGpu) -> str:
    """Kernel library, engine version and device of the decode rows."""
    row = _read(data, gpu, "generation_attention").iloc[0]
    return f"{row.kernel_source}, {row.framework} {row.version}, {row.device}"


def _read(data: Path, gpu: MeasuredGpu, table: str) -> pd.DataFrame:
    frame = read_table(data, gpu, table)
    if "window_size" in frame:
        frame = frame[frame.window_size == 0]
    frame = frame[(frame.kv_cache_dtype == "bfloat16") & frame.head_dim.isin(HEAD_DIMS)]
    names = {"batch_size": "batch", "num_heads": "query_heads", "num_key_value_heads": "kv_heads"}
    frame = frame.rename(columns=names)
    return frame.assign(measured_s=frame.latency * MS).reset_index(drop=True)
