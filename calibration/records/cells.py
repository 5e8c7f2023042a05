"""Parameters of a kernel measurement, its bytes and FLOPs, and a check of its time."""

from __future__ import annotations

import json
import math
from typing import Literal, Required

from typing_extensions import TypedDict

from calibration.records.jsonl import Count

OVER_CACHE = ("attention", "attention_between")
LAYERS = ("layer", "rank_layer")
PAGE = 16


class Cell(TypedDict, total=False):
    """The parameters of one measurement; which ones it has depends on `op` (`FIELDS`)."""

    op: Required[str]
    path: str  # whose kernel: always "runtime" in new records
    dtype: str
    batch: Count
    query_tokens: Count
    kv_tokens: Count
    query_heads: Count
    kv_heads: Count
    head_dim: Count
    page_tokens: Count
    m: Count
    n: Count
    k: Count
    bias: bool
    tokens: Count
    hidden: Count
    ffn: Count
    vocab: Count
    kind: str
    bytes: Count
    kernels: Count
    algorithm: str
    ranks: Count
    message_bytes: Count


class TimedCell(Cell, total=False):
    """A cell and its median seconds per call; `spread` is (max - min) / median of the repeats."""

    seconds: Required[float]
    unit: Required[Literal["s"]]
    repeats: Count
    calls: Count
    spread: float


_ATTENTION = ("path", "query_heads", "kv_heads", "head_dim", "batch", "kv_tokens", "query_tokens")
# The required parameters of each operation. The last six are only in older files.
FIELDS: dict[str, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "attention_between": _ATTENTION,
    "prefill_attention": _ATTENTION,
    "layer": (*_ATTENTION, "hidden", "ffn"),
    "rank_layer": (*_ATTENTION, "hidden", "ffn", "ranks"),  # ranks 1: without peers
    "sum_add_norm": ("ranks", "tokens", "hidden", "k"),  # including the GEMM before it
    "best": ("ranks", "tokens", "vocab"),  # argmax over ranks; `vocab` columns per rank
    "gemm": ("path", "m", "n", "k"),
    "gemm_sustained": ("path", "m", "n", "k"),
    "add_norm": ("tokens", "hidden"),
    "silu_mul": ("tokens", "ffn"),
    "place": ("tokens", "query_heads", "kv_heads", "head_dim"),
    "embedding": ("tokens", "hidden"),
    "argmax": ("tokens", "vocab"),
    "all_reduce": ("algorithm", "ranks", "message_bytes"),
    "hbm": ("kind", "bytes"),
    "bare_kernels": ("kernels",),
    "plan_host": ("path", "batch", "query_tokens", "kv_tokens"),
    "graph_launch_host": ("kernels",),
    "eager_launch_host": ("kind",),
}


def attention_cell(
    heads: tuple[int, int, int], batch: int, kv_tokens: int, query_tokens: int
) -> Cell:
    """One attention measurement; `heads` is (query heads, KV heads, head dimension).

    `kv_tokens` includes the new tokens.
    """
    return {
        "op": "attention",
        "path": "runtime",
        "query_heads": heads[0],
        "kv_heads": heads[1],
        "head_dim": heads[2],
        "page_tokens": PAGE,
        "batch": batch,
        "kv_tokens": kv_tokens,
        "query_tokens": query_tokens,
    }


def bytes_moved(cell: Cell) -> float:
    """Bytes that must come from HBM (KV and weights); 0 for operations whose data may be in L2."""
    if cell["op"] in (*OVER_CACHE, *LAYERS, "prefill_attention"):
        tokens = cell["batch"] * cell["kv_tokens"]
        kv = 4 * tokens * cell["kv_heads"] * cell["head_dim"]
        return float(kv + sum(2 * n * k for n, k in layer_matrices(cell)))
    if cell["op"] in ("gemm", "gemm_sustained"):
        return float(2 * cell["n"] * cell["k"])
    if cell["op"] == "sum_add_norm":
        return float(2 * cell["hidden"] * cell["k"])
    return float(cell["bytes"]) if cell["op"] == "hbm" else 0.0


def layer_matrices(cell: Cell) -> list[tuple[int, int]]:
    """(N, K) of the four projections of a layer; empty for other cells."""
    if cell["op"] not in LAYERS:
        return []
    width, hidden = cell["query_heads"] * cell["head_dim"], cell["hidden"]
    kv_width, ffn = cell["kv_heads"] * cell["head_dim"], cell["ffn"]
    return [(width + 2 * kv_width, hidden), (hidden, width), (2 * ffn, hidden), (hidden, ffn)]


def flops(cell: Cell) -> float:
    """Floating-point operations of GEMMs and attention; 0 for other operations."""
    if cell["op"] in ("gemm", "gemm_sustained"):
        return float(2 * cell["m"] * cell["n"] * cell["k"])
    if cell["op"] == "sum_add_norm":
        return float(2 * cell["tokens"] * cell["hidden"] * cell["k"])
    if cell["op"] in (*OVER_CACHE, *LAYERS):
        rows = cell["batch"] * cell["query_tokens"]
        pairs = 4 * rows * cell["kv_tokens"] * cell["query_heads"] * cell["head_dim"]
        return float(pairs + sum(2 * rows * n * k for n, k in layer_matrices(cell)))
    if cell["op"] == "prefill_attention":
        causal = cell["query_tokens"] * (cell["kv_tokens"] - cell["query_tokens"] / 2)
        return float(4 * cell["batch"] * causal * cell["query_heads"] * cell["head_dim"])
    return 0.0


def record_faults(
    cell: Cell, seconds: float, *, hbm_bandwidth: float, peak_flops: float
) -> list[str]:
    """Reasons why a time is impossible: not positive, or faster than the datasheet allows.

    `hbm_bandwidth` [bytes/s] limits the data that must come from HBM, `peak_flops` [FLOP/s, dense
    bf16] the arithmetic. An empty list means that the time is possible.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        return [f"seconds={seconds!r} must be positive"]
    rates = (
        ("bytes/s", bytes_moved(cell), hbm_bandwidth),
        ("FLOP/s", flops(cell), peak_flops),
    )
    return [
        f"{work / seconds:.3g} {unit} exceeds the datasheet's {peak:.3g}"
        for unit, work, peak in rates
        if work / seconds > peak
    ]


def key(cell: Cell) -> str:
    """A string that is equal for cells with equal parameters."""
    return json.dumps(cell, sort_keys=True)
