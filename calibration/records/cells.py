"""One kernel measurement: its parameters, the bytes and FLOPs of it, what no record can show."""

from __future__ import annotations

import json
import math
from typing import Any

OVER_CACHE = ("attention", "attention_between")
Cell = dict[str, Any]  # the parameters of one measurement; "op" says which
PAGE = 16
ROW_TILES = (16, 64, 128)  # packed query rows that FlashInfer's fa2 pads to


def attention_cell(
    heads: tuple[int, int, int],
    batch: int,
    kv_tokens: int,
    query_tokens: int,
    path: str = "runtime",
    page_tokens: int = PAGE,
) -> Cell:
    """One attention measurement; `kv_tokens` counts the cached tokens, new ones included."""
    return {
        "op": "attention", "path": path, "query_heads": heads[0], "kv_heads": heads[1],
        "head_dim": heads[2], "page_tokens": page_tokens, "batch": batch, "kv_tokens": kv_tokens,
        "query_tokens": query_tokens,
    }  # fmt: skip


def bytes_moved(cell: Cell) -> float:
    """Bytes that must come from HBM (KV, weights, buffers); 0 where data may sit in L2."""
    if cell["op"] in (*OVER_CACHE, "layer", "prefill_attention"):
        tokens = cell["batch"] * cell["kv_tokens"]
        kv = 4 * tokens * cell["kv_heads"] * cell["head_dim"]
        return float(kv + sum(2 * n * k for n, k in layer_matrices(cell)))
    if cell["op"] in ("gemm", "gemm_sustained"):
        return float(2 * cell["n"] * cell["k"])
    return float(cell["bytes"]) if cell["op"] == "hbm" else 0.0


def layer_matrices(cell: Cell) -> list[tuple[int, int]]:
    """(N, K) of the four projections of a "layer" cell; none of any other."""
    if cell["op"] != "layer":
        return []
    width, hidden = cell["query_heads"] * cell["head_dim"], cell["hidden"]
    kv_width = cell["kv_heads"] * cell["head_dim"]
    return [(width + 2 * kv_width, hidden), (hidden, width), (2 * cell["ffn"], hidden),
            (hidden, cell["ffn"])]  # fmt: skip


def flops(cell: Cell) -> float:
    """Floating-point operations of a GEMM or of attention; 0 elsewhere."""
    if cell["op"] in ("gemm", "gemm_sustained"):
        return float(2 * cell["m"] * cell["n"] * cell["k"])
    if cell["op"] in (*OVER_CACHE, "layer"):
        rows = cell["batch"] * cell["query_tokens"]
        pairs = 4 * rows * cell["kv_tokens"] * cell["query_heads"] * cell["head_dim"]
        return float(pairs + sum(2 * rows * n * k for n, k in layer_matrices(cell)))
    if cell["op"] == "prefill_attention":
        pairs = cell["query_tokens"] * (cell["kv_tokens"] - cell["query_tokens"] / 2)
        return float(4 * cell["batch"] * pairs * cell["query_heads"] * cell["head_dim"])
    return 0.0


def record_faults(record: Cell, *, hbm_bandwidth: float, peak_flops: float) -> list[str]:
    """What no real measurement can show: a time not positive, or beyond the datasheet.

    Bandwidth [bytes/s] bounds the data that must come from HBM, `peak_flops` [FLOP/s, dense bf16]
    the arithmetic. An empty list says that the record is possible.
    """
    seconds = record["seconds"]
    if not (math.isfinite(seconds) and seconds > 0):
        return [f"seconds={seconds!r} must be positive"]
    rates = (("bytes/s", bytes_moved(record), hbm_bandwidth),
             ("FLOP/s", flops(record), peak_flops))  # fmt: skip
    return [
        f"{work / seconds:.3g} {unit} exceeds the datasheet's {peak:.3g}"
        for unit, work, peak in rates
        if work / seconds > peak
    ]


def key(cell: Cell) -> str:
    """What tells cells apart, and finds a cell's record again."""
    return json.dumps(cell, sort_keys=True)
