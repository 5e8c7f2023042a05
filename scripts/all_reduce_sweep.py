"""Time sums over ranks by NCCL, one-shot and two-shot, 8 KB to 64 MB: one JSON line a figure.

    python scripts/all_reduce_sweep.py --ranks 8 --device cuda
    torchrun --nproc_per_node=8 scripts/all_reduce_sweep.py --ranks 8 --device cuda

On GPUs many sums stand in one CUDA graph, and a figure is the median over its replays. Every
algorithm must first give the right sum. On a CPU it is gloo, eagerly: a rehearsal.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `runtime` lies beside this folder, installed or not

KiB, MiB = 2**10, 2**20
SUMS_PER_GRAPH = 20


def sizes(largest: int) -> list[int]:
    """Message sizes in bytes, doubling from 8 KiB."""
    found = [8 * KiB]
    while found[-1] * 2 <= largest:
        found.append(found[-1] * 2)
    return found


def sweep(options: argparse.Namespace) -> None:
    """One rank's part; rank 0 prints."""
    from runtime.distributed import connect
    from runtime.provenance import provenance
    from runtime.symmetric_memory import AllReduceLimits

    limits = AllReduceLimits(one_shot_bytes=options.max_bytes, two_shot_bytes=options.max_bytes)
    ranks = int(os.environ["WORLD_SIZE"])
    with connect(tp=ranks, draft_tp=ranks, device=options.device, limits=limits) as place:
        if place.is_root:
            command = ["scripts/all_reduce_sweep.py", *sys.argv[1:]]
            facts = {"provenance": provenance(command), "device": _device_name(place.device)}
            print(json.dumps(facts), flush=True)
        for row in _rows(place, options):
            if place.is_root:
                print(json.dumps({"ranks": ranks, **row}), flush=True)


def _rows(place: Any, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import torch

    group = place.target
    kinds = [("nccl" if place.device.type == "cuda" else "gloo", False)]
    if group.workspace is not None:
        kinds += [(name, placed) for name in ("one_shot", "two_shot") for placed in (False, True)]
    dtype = torch.bfloat16 if place.device.type == "cuda" else torch.float32
    for message_bytes in sizes(options.max_bytes):
        for algorithm, placed in kinds:
            partial = torch.empty(message_bytes // dtype.itemsize, dtype=dtype, device=place.device)
            if placed:
                partial = group.partial_buffer(partial.shape, dtype)
            chosen = None if algorithm == "gloo" else algorithm

            def one(partial: Any = partial, chosen: str | None = chosen) -> Any:
                return group.all_reduce(partial, chosen)

            _check(one, partial, group, algorithm)
            partial.zero_()
            times = _time(one, place.device, options.repeats)
            yield {
                "bytes": message_bytes,
                "algorithm": algorithm,
                "placed": placed,  # whether the partial sums already lie in shared memory
                "in_graph": place.device.type == "cuda",
                "median_us": 1e6 * statistics.median(times),
                "min_us": 1e6 * min(times),
                "max_us": 1e6 * max(times),
                "repeats": len(times),
            }


def _check(one: Callable[[], Any], partial: Any, group: Any, algorithm: str) -> None:
    """Refuse an algorithm whose sum of whole numbers is not exact on this rank."""
    from runtime.errors import EngineError

    partial.fill_(group.rank + 1)
    found, expected = one(), group.size * (group.size + 1) // 2
    if not bool((found == expected).all()):
        raise EngineError(f"{algorithm} over {partial.numel()} numbers does not give {expected}")


def _time(one: Callable[[], Any], device: Any, repeats: int) -> list[float]:
    """Seconds a sum takes, once per repeat."""
    import torch

    if device.type == "cpu":
        found = []
        for _ in range(repeats):
            begun = time.perf_counter()
            one()
            found.append(time.perf_counter() - begun)
        return found
    one()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Thread-local: NCCL's watchdog thread may ask for events while this thread captures.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(SUMS_PER_GRAPH):
            one()
    for _ in range(3):
        graph.replay()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    times = [a.elapsed_time(b) / 1e3 / SUMS_PER_GRAPH for a, b in itertools.pairwise(marks)]
    graph.reset()  # a communicator is not torn down while a graph still holds its kernels
    return times


def _device_name(device: Any) -> str:
    import torch

    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else "cpu"


def main() -> int:
    """Launch the ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--max-bytes", type=int, default=64 * MiB)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    from runtime.errors import EngineError
    from runtime.launch import launch_ranks, run_rank

    if "RANK" in os.environ:
        return run_rank(lambda: sweep(options))
    try:
        launch_ranks([sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]], options.ranks)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
