"""Time attention calls on a GPU, with the KV unsplit and split into various numbers of ranges.

    python benchmarks/tuning/tune_splits.py --out FILE.jsonl --seconds 30

Times are medians of seven replays. Each replay is a CUDA graph of many calls on different caches;
the L2 cache is swept before it, so the KV is cold. `--seconds` limits the measurement and does not
include the time to build FlashInfer's kernels. The constants of `runtime.attention.split_kv` were
fitted to such a file, calibration/measured/split-kv-h200.jsonl.gz.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # installed or not


from calibration.measure.bench import Bench
from calibration.measure.grid import MODELS, calls_per_graph, heads_of
from calibration.records.cells import PAGE, Cell, attention_cell
from runtime.attention.split_kv import BLOCKS_PER_SM, LEAST_RANGE_TOKENS, BlockGrid, schedule
from runtime.bench.provenance import source_commit

BATCHES = (1, 2, 4, 8, 16, 24, 33, 34, 48, 64, 96, 128, 192, 256)
KV_TOKENS = (128, 256, 512, 1024, 2048, 4096, 16384)
QUERY_TOKENS = (1, 2, 4, 9)
KV_BYTES = 20e9
MOST_FILL = 4.0  # value of `fill` beyond which KV is never split


def grid_of(cell: Cell, num_sms: int) -> BlockGrid:
    """The blocks of a cell according to the runtime's rule."""
    batch = cell["batch"]
    return BlockGrid.of(
        np.full(batch, cell["query_tokens"], dtype=np.int32),
        np.full(batch, cell["kv_tokens"], dtype=np.int32),
        group=cell["query_heads"] // cell["kv_heads"],
        kv_heads=cell["kv_heads"],
        page_tokens=PAGE,
        num_sms=num_sms,
    )


def tiles_of(cell: Cell, grid: BlockGrid) -> int:
    """Tiles of query rows per KV head, over all sequences."""
    return int(cell["batch"] * -(-cell["query_tokens"] * grid.group // grid.tile_rows))


def fill(cell: Cell, num_sms: int) -> float:
    """Blocks without a split, divided by those that the GPU runs concurrently."""
    tiles = tiles_of(cell, grid_of(cell, num_sms))
    return tiles * int(cell["kv_heads"]) / (BLOCKS_PER_SM * num_sms)


def cells(num_sms: int) -> list[Cell]:
    """All cells that fit, roughly ordered by how uncertain it is that a split pays."""
    found = []
    for model, batch, kv, queries in itertools.product(MODELS, BATCHES, KV_TOKENS, QUERY_TOKENS):
        heads = heads_of(model)
        cell = attention_cell(heads, batch, kv, queries)
        fits = batch * kv * heads[1] * heads[2] * 4 < KV_BYTES
        if fits and fill(cell, num_sms) <= MOST_FILL and ranges_to_try(cell, num_sms)[1:]:
            found.append(cell)
    draw = random.Random(0)
    return sorted(
        found,
        key=lambda cell: abs(math.log2(fill(cell, num_sms)) + 0.5) + 3.0 * draw.random(),
    )


def ranges_to_try(cell: Cell, num_sms: int) -> list[int]:
    """1 to 3 ranges, and a quarter, half and all of those that fill the GPU, as KV allows."""
    longest = max(1, int(cell["kv_tokens"]) // LEAST_RANGE_TOKENS)
    full = max(1, int(1.0 / fill(cell, num_sms)))
    asked = {1, 2, 3, full // 4, full // 2, full}
    return sorted(count for count in asked if 1 <= count <= longest)


@contextlib.contextmanager
def forced(ranges: int, tiles: int) -> Iterator[None]:
    """Within this context, every grid has room for exactly `ranges` ranges per sequence."""
    rule = BlockGrid.of

    def of(*args: Any, **named: Any) -> BlockGrid:
        return replace(rule(*args, **named), split=ranges > 1, blocks=tiles * ranges)

    with mock.patch.object(BlockGrid, "of", of):
        yield


def attend(plan: Any, q: Any, caches: int, i: int) -> Any:
    """The i-th call of a graph."""
    return plan.attend(i % caches, q)


def measure(bench: Bench, cell: Cell, num_sms: int) -> Iterator[dict[str, Any]]:
    """Yield a record for each number of ranges."""
    chosen = grid_of(cell, num_sms)
    tiles, batch = tiles_of(cell, chosen), int(cell["batch"])
    pages = np.full(batch, -(-cell["kv_tokens"] // PAGE), dtype=np.int32)
    queries = np.full(batch, cell["query_tokens"], dtype=np.int32)
    kv = bench.caches(cell)
    q = bench.normal(batch * cell["query_tokens"], cell["query_heads"], cell["head_dim"])
    seen: set[int] = set()
    for asked in ranges_to_try(cell, num_sms):
        with forced(asked, tiles):
            plan = bench.kernels.plan(cell, kv)
        blocks = schedule(plan.grid, pages, queries).count
        ranges = blocks // tiles
        if ranges in seen:
            continue
        seen.add(ranges)
        call = partial(attend, plan, q, len(kv))
        calls = calls_per_graph(cell)
        times = bench.time_graph(call, calls)
        seconds = statistics.median(times)
        yield {
            **cell, "tile_rows": chosen.tile_rows, "tiles": tiles, "ranges": ranges,
            "blocks": blocks * int(cell["kv_heads"]),
            "merged_rows": batch * cell["query_tokens"] * cell["query_heads"] if ranges > 1 else 0,
            "seconds": float(f"{seconds:.5g}"), "unit": "s", "calls": calls,
            "spread": round((max(times) - min(times)) / seconds, 3),
        }  # fmt: skip


def header(torch: Any) -> dict[str, Any]:
    """The header of the file: GPU, versions, commit and command."""
    return {
        "op": "split_tuning", "gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
        "sm_count": torch.cuda.get_device_properties(0).multi_processor_count,
        "commit": source_commit(), "command": sys.argv[1:], "dtype": "bf16",
    }  # fmt: skip


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        print("error: timing attention needs a GPU, but this machine has none", file=sys.stderr)
        return 2
    bench, first = Bench(), header(torch)
    for dim in (64, 128):  # builds the kernels
        call = bench.attention_call(attention_cell((8, 2, dim), 2, 512, 1))
        call(0)
    torch.cuda.synchronize()
    started, count = time.monotonic(), 0
    todo = cells(first["sm_count"])
    with options.out.open("w", encoding="utf-8") as file:
        file.write(json.dumps(first) + "\n")
        for cell in todo:
            if time.monotonic() - started > options.seconds:
                break
            for record in measure(bench, cell, first["sm_count"]):
                file.write(json.dumps(record, separators=(",", ":")) + "\n")
            file.flush()
            count += 1
    print(f"{count} of {len(todo)} shapes in {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
