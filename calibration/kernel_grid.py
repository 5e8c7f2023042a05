"""Which cells a GPU's kernels are timed at: attention, GEMM, small operations, HBM and host.

Pure standard library: it runs where there is no GPU. Sizes are per rank; KV and weights are bf16.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Cell = dict[str, Any]  # the parameters of one measurement; "op" says which

POOL_BYTES = 24e9  # weights and KV are cut from one random buffer of this size
KV_BYTES_CAP = 12e9  # of one layer, so that two sets at least fit the pool
SWEEP_BYTES = 512e6  # read before each replay: ten times the L2 of an H100
GRAPH_SECONDS = 600e-6  # a graph holds calls for about this long
CELL_OVERHEAD_S = 10e-3  # plan, capture and instantiation, for the estimate only
REPEATS = 7
PAGE = 16

BATCHES = (1, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
KV_TOKENS = tuple(2**n for n in range(7, 18))  # 128 ... 131,072
QUERY_TOKENS = (1, 2, 3, 4, 5, 6, 8, 9, 12, 17)
# (query heads, KV heads, head_dim) of one rank
HEADS = ((32, 8, 128), (32, 32, 128), (16, 4, 128), (8, 2, 128), (4, 1, 128), (4, 4, 128),
         (8, 8, 128), (28, 4, 128), (8, 1, 128),
         (32, 8, 64), (32, 4, 64), (8, 1, 64), (4, 1, 64))  # fmt: skip
QUERY_HEADS = ((32, 8, 128), (32, 32, 128), (8, 2, 128), (4, 1, 128), (4, 4, 128), (28, 4, 128),
               (8, 1, 64), (4, 1, 64))  # fmt: skip
QUERY_BATCHES = (1, 8, 32, 64, 128, 256)
QUERY_KV = (512, 2048, 4096, 16384, 32768, 131072)

GEMM_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 768,
             1024, 2048, 4096)  # fmt: skip
# hidden, query heads, KV heads, head_dim, MLP width, vocabulary, TP degrees (each config.json)
MODELS: dict[str, tuple[int, int, int, int, int, int, tuple[int, ...]]] = {
    "llama-3.1-8b": (4096, 32, 8, 128, 14336, 128256, (1, 2, 4, 8)),
    "llama-2-7b": (4096, 32, 32, 128, 11008, 32000, (1, 2, 4, 8)),
    "llama-3.2-1b": (2048, 32, 8, 64, 8192, 128256, (1, 8)),
    "tinyllama-1.1b": (2048, 32, 4, 64, 5632, 32000, (1, 4)),
    "qwen2.5-7b": (3584, 28, 4, 128, 18944, 152064, (1, 2, 4)),
    "llama-3.1-70b": (8192, 64, 8, 128, 28672, 128256, (8,)),
}
SMALL_TOKENS = (1, 32, 128, 256, 512, 1024)


def attention_cell(
    heads: tuple[int, int, int],
    batch: int,
    kv_tokens: int,
    query_tokens: int,
    path: str = "fa2-plain",
    page_tokens: int = PAGE,
) -> Cell:
    """One attention measurement; `kv_tokens` counts the cached tokens, new ones included."""
    return {
        "op": "attention", "path": path, "query_heads": heads[0], "kv_heads": heads[1],
        "head_dim": heads[2], "page_tokens": page_tokens, "batch": batch, "kv_tokens": kv_tokens,
        "query_tokens": query_tokens,
    }  # fmt: skip


def main_attention_cells() -> list[Cell]:
    """q = 1 and q = 4 for every head group, batch and KV length that fits."""
    axes = itertools.product(HEADS, BATCHES, KV_TOKENS, (1, 4))
    return _fitting(attention_cell(*axis) for axis in axes)


def query_attention_cells() -> list[Cell]:
    """The other query lengths on a coarser grid."""
    others = tuple(q for q in QUERY_TOKENS if q not in (1, 4))
    axes = itertools.product(QUERY_HEADS, QUERY_BATCHES, QUERY_KV, others)
    return _fitting(attention_cell(*axis) for axis in axes)


def magicdec_attention_cells() -> list[Cell]:
    """MagicDec's TP-8 shapes, planned plainly and as its engine does (graph mode, page 128)."""
    lengths, queries = (512, 1024, 2048, 4096, 8192, 16384, 32000, 32768), (1, 3, 4, 5, 6, 7)
    wide = itertools.product(((4, 4, 128),), (32, 48, 64, 128), lengths, queries)
    grouped_heads = ((4, 1, 128), (4, 1, 64), (8, 1, 64))
    grouped = itertools.product(grouped_heads, (16, 32, 64, 128), (512, 16000, 32000), queries)
    shapes = [*wide, *grouped]
    plain = [attention_cell(*shape) for shape in shapes]
    return _fitting(plain + [attention_cell(*shape, "fa2-graph", 128) for shape in shapes])


def path_attention_cells() -> list[Cell]:
    """Other ways to run the same attention: graph-mode plan, decode kernels, pages in order."""
    cells = []
    shapes = itertools.product(((32, 8, 128), (32, 32, 128)), ((1, 16384), (8, 16384), (8, 65536),
                               (32, 512), (32, 4096), (32, 16384), (128, 512), (128, 4096),
                               (256, 2048)))  # fmt: skip
    for heads, (batch, kv_tokens) in shapes:
        for query_tokens, page in itertools.product((1, 2, 4, 8), (16, 128)):
            cells.append(attention_cell(heads, batch, kv_tokens, query_tokens, "fa2-graph", page))
        for query_tokens in (1, 4):
            cells.append(attention_cell(heads, batch, kv_tokens, query_tokens, "fa2-ordered"))
    decode_heads = ((32, 8, 128), (32, 32, 128), (4, 1, 128), (4, 4, 128), (8, 1, 128))
    axes = itertools.product(decode_heads, (1, 8, 32, 64, 128, 256), (512, 2048, 16384, 65536))
    for (heads, batch, kv_tokens), path in itertools.product(axes, ("decode", "decode-tc")):
        cells.append(attention_cell(heads, batch, kv_tokens, 1, path))
    return _fitting(cells)


def gemm_shapes() -> list[tuple[int, int]]:
    """Distinct (N, K) of the fused projections of every model and TP degree in `MODELS`."""
    shapes = set()
    for hidden, heads, kv_heads, head_dim, ffn, vocab, degrees in MODELS.values():
        for tp in degrees:
            width = heads // tp * head_dim
            shapes.add((width + 2 * max(1, kv_heads // tp) * head_dim, hidden))
            shapes.add((hidden, width))
            shapes.add((2 * ffn // tp, hidden))
            shapes.add((hidden, ffn // tp))
            shapes.add((-(-vocab // tp), hidden))
    return sorted(shapes)


def gemm_cells() -> list[Cell]:
    """Every (N, K) at every M; a vocabulary head runs over at most 1,024 rows."""
    axes = itertools.product(gemm_shapes(), GEMM_ROWS)
    return [
        {"op": "gemm", "m": m, "n": n, "k": k, "dtype": "bf16"}
        for (n, k), m in axes
        if n * k < 400e6 or m <= 1024
    ]


def small_cells() -> list[Cell]:
    """Norm, rotary, activation, page append, embedding, argmax, and the bare kernel."""
    cells: list[Cell] = [{"op": "tiny_kernel", "kernels": n} for n in (1, 10, 100, 1000)]
    for tokens in SMALL_TOKENS:
        for hidden, heads, kv_heads, head_dim, ffn in (
            (4096, 32, 8, 128, 14336), (4096, 32, 32, 128, 11008), (4096, 4, 1, 128, 1792),
            (2048, 32, 8, 64, 8192)):  # fmt: skip
            group = {"query_heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
            cells += [{"op": "fused_add_rmsnorm", "tokens": tokens, "hidden": hidden},
                      {"op": "rope_cos_sin_cache", "tokens": tokens, **group},
                      {"op": "rope_llama31", "tokens": tokens, **group},
                      {"op": "silu_and_mul", "tokens": tokens, "ffn": ffn},
                      {"op": "append_paged_kv", "tokens": tokens, **group},
                      {"op": "embedding", "tokens": tokens, "hidden": hidden}]  # fmt: skip
        cells += [{"op": "argmax", "tokens": tokens, "vocab": v} for v in (16032, 32000, 128256)]
    return [cell for i, cell in enumerate(cells) if cell not in cells[:i]]


def hbm_cells() -> list[Cell]:
    """Bandwidth of large buffers; `bytes` is what is read plus what is written."""
    kinds = ("read_sum", "read_max", "write_fill", "copy")
    return [{"op": "hbm", "kind": kind, "bytes": int(size)}
            for size in (64e6, 256e6, 1024e6, 4096e6, 10240e6) for kind in kinds]  # fmt: skip


def host_cells() -> list[Cell]:
    """What the host pays: planning, launching a graph, launching one kernel eagerly."""
    plans = itertools.product(("fa2-plain", "fa2-graph", "decode"), BATCHES, (1, 4))
    cells: list[Cell] = [
        {"op": "plan_host", "path": path, "batch": batch, "query_tokens": q, "kv_tokens": 4096}
        for path, batch, q in plans
        if not (path == "decode" and q > 1)
    ]
    cells += [{"op": "graph_launch_host", "kernels": n} for n in (1, 10, 100, 300, 1000)]
    return [*cells, {"op": "eager_launch_host", "kind": "torch_add"},
            {"op": "eager_launch_host", "kind": "torch_linear"},
            {"op": "eager_launch_host", "kind": "attention_run"}]  # fmt: skip


def bytes_moved(cell: Cell) -> float:
    """Bytes that must come from HBM (KV, weights, buffers); 0 where data may sit in L2."""
    if cell["op"] == "attention":
        tokens = cell["batch"] * cell["kv_tokens"]
        return float(4 * tokens * cell["kv_heads"] * cell["head_dim"])
    if cell["op"] == "gemm":
        return float(2 * cell["n"] * cell["k"])
    return float(cell["bytes"]) if cell["op"] == "hbm" else 0.0


def flops(cell: Cell) -> float:
    """Floating-point operations of a GEMM or of attention; 0 elsewhere."""
    if cell["op"] == "gemm":
        return float(2 * cell["m"] * cell["n"] * cell["k"])
    if cell["op"] == "attention":
        pairs = cell["batch"] * cell["kv_tokens"] * cell["query_tokens"]
        return float(4 * pairs * cell["query_heads"] * cell["head_dim"])
    return 0.0


def expected_seconds(cell: Cell) -> float:
    """Rough time of one call, to choose how many calls a graph holds."""
    return max(5e-6, bytes_moved(cell) / 3e12, flops(cell) / 500e12)


def calls_per_graph(cell: Cell) -> int:
    """Calls in one graph: between 2 and 64, and about `GRAPH_SECONDS` long."""
    return min(64, max(2, math.ceil(GRAPH_SECONDS / expected_seconds(cell))))


def cell_seconds(cell: Cell) -> float:
    """Estimated wall time of measuring one cell."""
    sweep = SWEEP_BYTES / 3e12
    replay = calls_per_graph(cell) * expected_seconds(cell) + sweep
    return CELL_OVERHEAD_S + (REPEATS + 2) * replay


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


def _fitting(cells: Iterable[Cell]) -> list[Cell]:
    return [cell for cell in cells if bytes_moved(cell) <= KV_BYTES_CAP]


@dataclass(slots=True)
class Group:
    """Cells measured in one shuffled order; `share` weighs its part of the time."""

    name: str
    share: float
    cells: list[Cell]
    spent_s: float = 0.0


def groups(every: int = 1) -> list[Group]:
    """All groups, no cell twice; `every` thins each to one cell in so many (for a trial)."""
    plan = [("hbm", 1.0, hbm_cells()), ("gemm", 3.0, gemm_cells()), ("small", 2.0, small_cells()),
            ("host", 2.0, host_cells()), ("attention", 6.0, main_attention_cells()),
            ("magicdec", 4.0, magicdec_attention_cells()), ("path", 3.0, path_attention_cells()),
            ("query", 4.0, query_attention_cells())]  # fmt: skip
    seen: set[str] = set()
    result = []
    for name, share, cells in plan:
        fresh = [cell for cell in cells if json.dumps(cell) not in seen]
        seen.update(json.dumps(cell) for cell in fresh)
        random.Random(0).shuffle(fresh)
        result.append(Group(name, share, fresh[::every]))
    return result
