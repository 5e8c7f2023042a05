"""Compare tilings of `split_linear` (`runtime.kernels.triton_ops`) with cuBLAS on a GPU.

    python benchmarks/tuning/tune_linear.py --out FILE.jsonl --seconds 110

Times are medians of three replays, in microseconds per GEMM. Each replay is a CUDA graph of many
GEMMs whose weights come from a pool of 12 GB; the L2 cache is swept before it, so weights are cold.
The tiling rule in `runtime/kernels/ops.py` is based on such a file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `runtime`, installed or not

from runtime import source_commit

ROWS = (32, 128, 8, 64)
# (columns, depth) of the products of Llama-3.1-8B and Llama-2-7B
SHAPES = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096),
          (12288, 4096), (22016, 4096), (4096, 11008))  # fmt: skip
Tiling = tuple[int, int, int, int]  # columns, depth, stages, warps of a block


def tilings(block_rows: int) -> Iterator[Tiling]:
    """Tilings whose pipeline is neither idle nor too large for shared memory."""
    for columns, depth, stages, warps in itertools.product(
        (32, 64, 128), (64, 128, 256), (2, 3, 4, 6), (4, 8)
    ):
        shared_bytes = (columns + block_rows) * depth * 2 * stages
        narrow = columns == 32 and (block_rows >= 64 or depth == 64)
        idle_warps = warps == 8 and columns * block_rows < 64 * 64
        if 40_000 <= shared_bytes <= 200_000 and not narrow and not idle_warps:
            yield columns, depth, stages, warps


def microseconds(call: Callable[[int], Any], calls: int, sweep: torch.Tensor) -> float:
    """Median time per call in a graph of `calls` calls."""
    with torch.cuda.stream(torch.cuda.Stream()):
        call(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            call(i)
    graph.replay()
    times = []
    for _ in range(3):
        sweep.sum()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / calls * 1e3)
    return statistics.median(times)


def measure(rows: int, weights: torch.Tensor, sweep: torch.Tensor) -> Iterator[dict[str, Any]]:
    """Yield a record for every tiling of one GEMM; `weights` is (copies, columns, depth)."""
    from runtime.kernels.triton_ops import split_linear

    copies, columns, depth = weights.shape
    x = torch.randn(rows, depth, device="cuda", dtype=torch.bfloat16)
    block_rows, calls = max(16, rows), max(4, copies)
    library = microseconds(lambda i: x @ weights[i % copies].T, calls, sweep)
    exact = x.double() @ weights[0].double().T if columns < 100_000 else None
    for (bn, bk, stages, warps), parts in itertools.product(tilings(block_rows), (1, 2, 4, 8)):
        blocks = -(-columns // bn) * parts
        if depth % (parts * bk) or depth < 2 * bk * parts or blocks < 100:
            continue
        if blocks > 1200 and parts > 1:
            continue

        product = partial(
            split_linear, x, tile=(block_rows, bn, bk), parts=parts, warps=warps, stages=stages
        )

        def call(i: int, product: Callable[..., torch.Tensor] = product) -> torch.Tensor:
            return product(weights[i % copies])

        error = 0.0
        if exact is not None:
            error = float((call(0).double().sum(0) - exact).norm() / exact.norm())
        yield {
            "n": columns, "k": depth, "m": rows, "cfg": [bn, bk, stages, warps, parts],
            "us": microseconds(call, calls, sweep), "err": error, "cublas": library,
        }  # fmt: skip


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=110.0)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: timing GEMMs needs a GPU, but this machine has none", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    deadline = time.monotonic() + options.seconds
    pool = torch.randn(6_000_000_000, dtype=torch.bfloat16, device="cuda")
    sweep = torch.randn(150_000_000, dtype=torch.bfloat16, device="cuda")
    header = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
              "commit": source_commit(), "command": sys.argv[1:], "unit": "us"}  # fmt: skip
    with options.out.open("w", encoding="utf-8") as file:
        file.write(json.dumps(header) + "\n")
        for rows, (columns, depth) in itertools.product(ROWS, SHAPES):
            if time.monotonic() > deadline:
                break
            copies = min(len(pool) // (columns * depth), 24)
            weights = pool[: copies * columns * depth].view(copies, columns, depth)
            found = list(measure(rows, weights, sweep))
            file.writelines(json.dumps(record) + "\n" for record in found)
            best = min(found, key=lambda record: record["us"])
            print(
                f"{rows} x {columns} x {depth}: best {best['us']:.1f} us {best['cfg']}, "
                f"cuBLAS {best['cublas']:.1f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
