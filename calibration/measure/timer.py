"""Time calls on a GPU in a CUDA graph, with weights and KV cold.

Each call of a graph uses other weights or another KV cache from one large random pool, and the L2
cache is swept before each replay, so that this data comes from HBM. The activations of small
operations stay where the previous call left them, as in a real pass.

A graph's allocations are in a private pool, which torch keeps when the graph is gone and cannot
free during the next capture. `torch.cuda.graph` therefore empties the cache before every capture.
This takes as long as timing a cell, so here it is only done when the cache exceeds `SPARE_BYTES`.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from calibration.measure.grid import POOL_BYTES, REPEATS, SUSTAINED_S, SWEEP_BYTES
from calibration.records.cells import Cell, TimedCell

SPARE_BYTES = 4e9  # that torch may keep from earlier cells; a large product leaves up to 1.4 GB


def timed(cell: Cell, times: Sequence[float], calls: int) -> TimedCell:
    """The record of a cell from the seconds per call of each repeat."""
    median = statistics.median(times)
    return {
        **cell,
        "seconds": float(f"{median:.5g}"),
        "unit": "s",
        "repeats": len(times),
        "calls": calls,
        "spread": round((max(times) - min(times)) / median, 3),
    }


class GraphTimer:
    """Buffers for the calls, and timers of CUDA graphs of calls."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        self.device = torch.device("cuda")
        self.stream = torch.cuda.Stream()
        torch.cuda.set_stream(self.stream)
        torch.manual_seed(0)
        self.pool = self.empty(int(POOL_BYTES / 2)).normal_()
        self.sweep = self.empty(int(SWEEP_BYTES / 2)).normal_()

    def empty(self, *shape: int) -> Any:
        """An uninitialised bf16 tensor on the device."""
        return self.torch.empty(*shape, dtype=self.torch.bfloat16, device=self.device)

    def normal(self, *shape: int) -> Any:
        """A bf16 tensor of standard normal values."""
        return self.empty(*shape).normal_()

    def slots(self, *shape: int) -> Any:
        """As many tensors of `shape` as fit in the pool (at most 64), stacked on a first axis."""
        size = math.prod(shape)
        count = min(64, self.pool.numel() // size)
        return self.pool[: count * size].view(count, *shape)

    def give_back_spare(self) -> None:
        """Free the memory that earlier cells left in torch's allocator if it is large."""
        cuda = self.torch.cuda
        if cuda.memory_reserved() - cuda.memory_allocated() > SPARE_BYTES:
            gc.collect()
            cuda.empty_cache()

    @contextmanager
    def captured(self, call: Callable[[int], Any], calls: int) -> Iterator[Any]:
        """A CUDA graph of `call(0) ... call(calls - 1)` after one replay; reset at the end."""
        self.give_back_spare()
        call(0)
        self.torch.cuda.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        try:
            graph.capture_begin()
            try:
                for i in range(calls):
                    call(i)
            finally:
                graph.capture_end()
            graph.replay()
            yield graph
        finally:
            graph.reset()

    def time_graph(self, call: Callable[[int], Any], calls: int) -> list[float]:
        """Seconds per call in each of `REPEATS` replays, each after a sweep of the L2 cache."""
        events = [self.events() for _ in range(REPEATS)]
        with self.captured(call, calls) as graph:
            for start, end in events:
                self.sweep.sum()
                start.record()
                graph.replay()
                end.record()
            self.torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 / calls for start, end in events]

    def time_sustained(self, call: Callable[[int], Any], calls: int) -> list[float]:
        """Seconds per call in each of `REPEATS` intervals of the second half of `SUSTAINED_S`."""
        start, end = self.events()
        marks = [self.events()[0] for _ in range(REPEATS + 1)]
        with self.captured(call, calls) as graph:
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            once = start.elapsed_time(end) * 1e-3
            replays = max(2, math.ceil(SUSTAINED_S / (2 * REPEATS) / once))
            for _ in range(replays * REPEATS):
                graph.replay()
            marks[0].record()
            for mark in marks[1:]:
                for _ in range(replays):
                    graph.replay()
                mark.record()
            self.torch.cuda.synchronize()
        spans = [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
        return [span * 1e-3 / (replays * calls) for span in spans]

    def events(self) -> tuple[Any, Any]:
        """A start event and an end event with timing enabled."""
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in "ab")
        return start, end
