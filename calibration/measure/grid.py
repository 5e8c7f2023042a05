"""The cells at which kernels are timed: attention, GEMM, whole layers and small operations.

Importing this needs neither torch nor a GPU. Model shapes come from the catalog, sizes are per
rank, and KV and weights are bf16. Groups of tier 1 are measured before those of tier 2, and coarse
cells come first within a group, so that an interrupted run still leaves records to fit.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

from calibration.records.cells import Cell, attention_cell, bytes_moved, flops, key
from perfmodel import ModelSpec, catalog

POOL_BYTES = 24e9  # size of the random buffer that weights and KV are slices of
SWEEP_BYTES = 512e6  # read before each replay: ten times the L2 cache of an H100
GRAPH_SECONDS = 600e-6  # approximate duration of one graph
CELL_OVERHEAD_S = 9e-3  # plan, capture and instantiation on an H200; only for the estimate
COMPILE_S = 30.0  # nvcc on FlashInfer's two kernels, while GEMMs are timed
REPEATS = 7
SUSTAINED_S = 0.4  # one GEMM without a pause, until clocks and power have settled
MEMORY_BYTES = 141e9  # of an H200; limits the KV cache of all layers of a model

MODEL_NAMES = ("llama-3.1-8b", "llama-2-7b", "llama-3.2-1b", "tinyllama-1.1b", "qwen2.5-7b")
MODELS: tuple[ModelSpec, ...] = tuple(map(catalog.model, MODEL_NAMES))
LARGE_MODEL = catalog.model("llama-3.1-70b")
# Models and tensor parallelism whose long verification passes are timed.
LARGE_SHAPES = ((MODELS[0], 1), (MODELS[4], 1), (LARGE_MODEL, 1), (LARGE_MODEL, 8))
# Both sides of the batches at which sequences with 4, 8 or 32 KV heads, in a few ranges each, fill
# two blocks on each of 132 SMs: 34, 17, 12, 9 and so on.
BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 17, 20, 22, 23, 24, 28, 32, 33, 34, 40,
           48, 56, 64, 66, 67, 80, 96, 112, 128, 132, 160, 192, 224, 256)  # fmt: skip
COARSE_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
KV_TOKENS = tuple(2**n for n in range(7, 18))  # 128 ... 131,072
COARSE_KV = KV_TOKENS[::2]
BETWEEN_BATCHES = (3, 9, 19, 30, 54, 100, 150)
BETWEEN_KV = (160, 200, 320, 400, 448, 560, 640, 700, 768, 850, 930, 1100, 1300, 1536, 1800, 2500,
              3000, 3600, 5000, 6144, 12_288, 24_000)  # fmt: skip
# Query tokens whose rows fill each tile that 1 to 9 tokens reach, by query heads per KV head.
TILE_QUERIES = {1: (1,), 4: (1, 8), 7: (1, 8), 8: (1, 4, 9)}
CHECK_QUERIES = {1: (4, 9), 4: (4, 5), 7: (2, 4), 8: (2, 8)}
# The library's time jumps just past a multiple of its tile's rows, and may fall again before the
# next. Most row counts are typical of verification, including the one after a multiple of 64.
GEMM_ROWS = (1, 2, 4, 8, 16, 17, 24, 32, 33, 48, 64, 65, 80, 96, 112, 128, 129, 144, 160, 176, 192,
             193, 208, 224, 240, 256, 257, 288, 320, 321, 352, 384, 385, 416, 448, 449, 480, 512,
             513, 576, 577, 640, 641, 704, 768, 769, 832, 896, 897, 960, 1024, 1025, 1152, 1280,
             1408, 1536, 1792, 2048, 2304)  # fmt: skip
TRITON_ROWS = 128  # beyond so many rows the runtime always uses cuBLAS, which needs no compilation
BIASED = {
    ((spec.query_heads + 2 * spec.kv_heads) * spec.head_dim // tp, spec.hidden)
    for spec in MODELS
    for tp in (1, 2)
    if spec.qkv_bias
}  # (N, K) of fused query, key and value projections with a bias
# Query tokens that fill one and two of the largest tiles, by query heads per KV head, and others.
LARGE_QUERIES = {4: (17, 33), 7: (10, 19), 8: (9, 17)}
LARGE_CHECK_QUERIES = {4: (24, 32, 40), 7: (14, 18, 23), 8: (12, 16, 20)}
FEW_QUERIES = (1, 2, 4, 8)
COARSE_ROWS = (1, 16, 32, 64, 128, 256, 512, 1024, 2048)
PREFILL_CHUNKS = ((512, 512), (2048, 2048), (2048, 4096), (2048, 8192))  # new tokens, KV tokens
SMALL_TOKENS = (1, 8, 32, 64, 128, 256, 512, 1024, 2304)


def heads_of(model: ModelSpec, tp: int = 1) -> tuple[int, int, int]:
    """Query heads, KV heads and head dimension on one rank."""
    return model.query_heads // tp, max(1, model.kv_heads // tp), model.head_dim


def attention_cells(tp: int = 1) -> list[Cell]:
    """Every batch and KV length that fits in 141 GB, with one query count per tile."""
    cells = []
    batches = BATCHES if tp == 1 else COARSE_BATCHES
    for model in MODELS:
        heads = heads_of(model, tp)
        for batch, kv_tokens in itertools.product(batches, KV_TOKENS):
            queries = TILE_QUERIES[heads[0] // heads[1]]
            new = [attention_cell(heads, batch, kv_tokens, q) for q in queries]
            cells += _fitting(new, model)
    return cells


def query_cells() -> list[Cell]:
    """Other query counts at a few batches and lengths, which fill the same tiles differently."""
    cells = []
    for model in MODELS:
        heads = heads_of(model)
        for batch, kv in itertools.product((1, 8, 32, 64, 128, 256), (512, 2048, 8192, 32768)):
            queries = CHECK_QUERIES[heads[0] // heads[1]]
            cells += _fitting([attention_cell(heads, batch, kv, q) for q in queries], model)
    return cells


def large_cells() -> list[Cell]:
    """Passes of more than 64 packed query rows (long drafts), for head dimension 128."""
    cells = []
    for model, tp in LARGE_SHAPES:
        heads, batches_of = heads_of(model, tp), COARSE_BATCHES if model is LARGE_MODEL else BATCHES
        group, few = heads[0] // heads[1], ((1, 8, 32, 64, 128, 256), (512, 2048, 8192, 32768))
        for op, batches, lengths, queries in (
            ("attention", batches_of, KV_TOKENS, LARGE_QUERIES),
            ("attention", *few, LARGE_CHECK_QUERIES),
            ("attention_between", BETWEEN_BATCHES, BETWEEN_KV, LARGE_QUERIES),
        ):
            for batch, kv in itertools.product(batches, lengths):
                new = [attention_cell(heads, batch, kv, q) for q in queries[group]]
                cells += _fitting([cell | {"op": op} for cell in new], model)
    return cells


def group_cells() -> list[Cell]:
    """Eight query heads per KV head of dimension 128, to check the curve of other groups."""
    cells = []
    for tp, batch, kv in itertools.product((1, 8), COARSE_BATCHES, COARSE_KV):
        heads = heads_of(LARGE_MODEL, tp)
        cells += _fitting([attention_cell(heads, batch, kv, q) for q in FEW_QUERIES], LARGE_MODEL)
    return cells


def length_cells() -> list[Cell]:
    """Batches and KV lengths between those of the grid."""
    cells = []
    for model in MODELS:
        heads = heads_of(model)
        for batch, kv_tokens in itertools.product(BETWEEN_BATCHES, BETWEEN_KV):
            queries = TILE_QUERIES[heads[0] // heads[1]]
            new = [attention_cell(heads, batch, kv_tokens, q) for q in queries]
            cells += _fitting([cell | {"op": "attention_between"} for cell in new], model)
    return cells


def prefill_cells() -> list[Cell]:
    """Chunks of one prompt over its cached tokens, with causal attention."""
    cells = [
        attention_cell(heads_of(model), 1, kv, new)
        for model in MODELS
        for new, kv in PREFILL_CHUNKS
    ]
    return [cell | {"op": "prefill_attention"} for cell in cells]


def gemm_shapes(tp: int = 1) -> list[tuple[int, int]]:
    """Distinct (N, K) of the fused projections of all models on one of `tp` ranks."""
    shapes = set()
    for model in MODELS:
        heads, kv_heads, head_dim = heads_of(model, tp)
        hidden, ffn, vocab = model.hidden, model.ffn_hidden, model.vocab
        shapes.add(((heads + 2 * kv_heads) * head_dim, hidden))
        shapes.add((hidden, heads * head_dim))
        shapes.add((2 * ffn // tp, hidden))
        shapes.add((hidden, ffn // tp))
        shapes.add((-(-vocab // tp), hidden))
    return sorted(shapes)


def gemm_cells(tp: int = 1) -> list[Cell]:
    """Every (N, K) of the models at every M; for `tp` > 1 only the shapes that tp 1 lacks."""
    known = set(gemm_shapes()) if tp > 1 else set()
    shapes = [shape for shape in gemm_shapes(tp) if shape not in known]
    return [gemm_cell(m, n, k) for (n, k), m in itertools.product(shapes, GEMM_ROWS)]


def gemm_cell(m: int, n: int, k: int) -> Cell:
    """One product of (m, k) and (k, n) in bf16."""
    cell: Cell = {"op": "gemm", "path": "runtime", "m": m, "n": n, "k": k, "dtype": "bf16"}
    return {**cell, "bias": True} if (n, k) in BIASED else cell


def sustained_cells() -> list[Cell]:
    """GEMMs that run for so long that the power limit lowers the clock."""
    shapes = ((28672, 4096), (4096, 14336), (22016, 4096))
    cells = [gemm_cell(m, n, k) for (n, k), m in itertools.product(shapes, (512, 1024, 2048))]
    return [cell | {"op": "gemm_sustained"} for cell in cells]


def layer_cells(tp: int = 1) -> list[Cell]:
    """All kernels of one rank's decoder layer in sequence, to measure the gaps between kernels."""
    cells = []
    points = (
        (1, 1, 2048),
        (8, 1, 512),
        (8, 1, 16384),
        (32, 1, 512),
        (32, 1, 4096),
        (32, 4, 4096),
        (128, 1, 512),
        (128, 1, 2048),
        (128, 8, 1024),
    )
    for model in MODELS:
        for batch, query_tokens, kv_tokens in points:
            cell = attention_cell(heads_of(model, tp), batch, kv_tokens, query_tokens)
            cell = {**cell, "op": "layer", "hidden": model.hidden, "ffn": model.ffn_hidden // tp}
            if model.qkv_bias:
                cell["bias"] = True
            cells += _fitting([cell], model)
    return cells


def small_cells() -> list[Cell]:
    """The runtime's norm, rotary embedding with KV append, activation, and choice of tokens."""
    cells: list[Cell] = []
    for tokens in SMALL_TOKENS:
        for model in MODELS:
            heads, kv_heads, dim = heads_of(model)
            cells += [
                {"op": "add_norm", "tokens": tokens, "hidden": model.hidden},
                {
                    "op": "place",
                    "tokens": tokens,
                    "query_heads": heads,
                    "kv_heads": kv_heads,
                    "head_dim": dim,
                },
                {"op": "silu_mul", "tokens": tokens, "ffn": model.ffn_hidden},
                {"op": "best", "ranks": 1, "tokens": tokens, "vocab": model.vocab},
            ]
    return [cell for i, cell in enumerate(cells) if cell not in cells[:i]]


def expected_seconds(cell: Cell) -> float:
    """Rough time of one call, to choose the number of calls per graph."""
    return max(5e-6, bytes_moved(cell) / 3e12, flops(cell) / 500e12)


def calls_per_graph(cell: Cell) -> int:
    """Calls per graph: 2 to 64, for a duration of about `GRAPH_SECONDS`."""
    return min(64, max(2, math.ceil(GRAPH_SECONDS / expected_seconds(cell))))


def cell_seconds(cell: Cell) -> float:
    """Estimated wall time of measuring one cell."""
    sweep = SWEEP_BYTES / 3e12
    if cell["op"] == "gemm_sustained":
        return CELL_OVERHEAD_S + SUSTAINED_S
    replay = calls_per_graph(cell) * expected_seconds(cell) + sweep
    return CELL_OVERHEAD_S + (REPEATS + 2) * replay


def _fitting(cells: Iterable[Cell], model: ModelSpec) -> list[Cell]:
    """Cells whose KV for all layers fits on a GPU, and for two layers in the pool with weights."""
    most = min(MEMORY_BYTES / model.layers, POOL_BYTES / 2 - 1e9)
    return [cell for cell in cells if bytes_moved(cell) <= most]


@dataclass(slots=True)
class Group:
    """Cells in the order of timing; `share` is the group's relative share of its tier's time."""

    name: str
    tier: int
    share: float
    cells: list[Cell]
    spent_s: float = 0.0


def is_coarse(cell: Cell) -> bool:
    """Whether a cell is on the coarse grid, which is timed first."""
    if cell["op"] == "gemm":
        return cell["m"] in COARSE_ROWS
    if cell["op"] == "attention":
        return cell["batch"] in COARSE_BATCHES and cell["kv_tokens"] in COARSE_KV
    return True


def groups(every: int = 1) -> list[Group]:
    """All groups without repeated cells; `every` keeps every n-th cell, for a trial run."""
    products = gemm_cells()
    few = [cell for cell in products if cell["m"] <= TRITON_ROWS]
    many = [cell for cell in products if cell["m"] > TRITON_ROWS]
    plan = [
        ("gemm", 1, 1.5, few),
        ("gemm-large", 1, 3.0, many),
        ("sustained", 1, 0.5, sustained_cells()),
        ("layer", 1, 1.0, layer_cells()),
        ("small", 1, 1.0, small_cells()),
        ("prefill", 1, 0.5, prefill_cells()),
        ("attention", 1, 8.0, attention_cells()),
        ("lengths", 1, 2.0, length_cells()),
        ("query", 2, 1.0, query_cells()),
        ("gemm tp2", 3, 1.0, gemm_cells(2)),
        ("attention tp2", 3, 2.0, attention_cells(2)),
        ("rows", 3, 2.0, large_cells()),
        ("group", 3, 0.5, group_cells()),
    ]
    seen: set[str] = set()
    result = []
    for name, tier, share, cells in plan:
        fresh = [cell for cell in cells if key(cell) not in seen]
        seen.update(map(key, fresh))
        random.Random(0).shuffle(fresh)
        fresh.sort(key=is_coarse, reverse=True)  # a stable sort keeps the shuffled order
        result.append(Group(name, tier, share, fresh[::every]))
    return result
