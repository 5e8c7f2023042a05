"""Time all-reduces between the GPUs of this machine as they occur in a step, and decoder layers.

`specroof calibrate measure --tp N` starts one process per GPU. All ranks time the same cells in
CUDA graphs that they start together, and a record has the time of the slowest rank. Each fused
all-reduce follows a GEMM, so its time includes the wait for slower peers. The same kernels are also
timed without peers (`ranks` 1); the difference is the cost of the exchange. Multicast is never
used, because it can put a shared host's GPUs out of service.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from calibration.measure.bench import Bench
from calibration.measure.grid import MODELS, REPEATS, calls_per_graph, heads_of, layer_cells
from calibration.measure.run import open_log
from calibration.measure.runtime_kernels import EPSILON, RuntimeKernels
from calibration.measure.timer import timed
from calibration.records.cells import Cell, TimedCell, key

ALGORITHMS = ("nccl", "one_shot", "two_shot")
SIZES = tuple(2**n for n in range(13, 27))  # 8 KiB ... 64 MiB
ROWS = (1, 8, 32, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2304)
BEST_ROWS = (1, 8, 32, 64, 128, 256, 512, 1024, 2304)
MOST_ERROR = 0.05  # of a sum of bf16 values, relative


def cells(ranks: int) -> list[Cell]:
    """Fused all-reduces after GEMMs, whole layers, sampling, and all-reduces alone."""
    plan: list[Cell] = []
    for count in (1, ranks):
        for (hidden, k), tokens in itertools.product(_sum_shapes(ranks), ROWS):
            plan.append(
                {"op": "sum_add_norm", "ranks": count, "tokens": tokens, "hidden": hidden, "k": k}
            )
        for cell in layer_cells(ranks):
            plan.append(cell | {"op": "rank_layer", "ranks": count})
        columns = sorted({-(-model.vocab // ranks) for model in MODELS})
        for vocab, tokens in itertools.product(columns, BEST_ROWS):
            plan.append({"op": "best", "ranks": count, "tokens": tokens, "vocab": vocab})
    plan += [
        {"op": "all_reduce", "algorithm": algorithm, "ranks": ranks, "message_bytes": size}
        for algorithm in ALGORITHMS
        for size in SIZES
    ]
    return plan


def _sum_shapes(ranks: int) -> list[tuple[int, int]]:
    """(hidden, inputs on one rank) of the row-parallel GEMMs: attention output and MLP down."""
    shapes = set()
    for model in MODELS:
        heads, _, dim = heads_of(model, ranks)
        shapes |= {(model.hidden, heads * dim), (model.hidden, model.ffn_hidden // ranks)}
    return sorted(shapes)


class RankBench(Bench):
    """The buffers of one rank, and kernels that exchange data with its group."""

    def __init__(self, group: Any) -> None:
        super().__init__()
        from torch import distributed

        self.distributed, self.group = distributed, group
        self._kernels: dict[tuple[int, int], RuntimeKernels] = {}
        self.word = self.normal(1, 64)

    def kernels_for(self, ranks: int, hidden: int) -> RuntimeKernels:
        """The runtime's kernels, for one rank or for the group with inboxes of width `hidden`."""
        from runtime.parallel.groups import ALONE

        at = (ranks, hidden if ranks > 1 else 0)
        if at not in self._kernels:
            group = ALONE if ranks == 1 else self.group
            self._kernels[at] = RuntimeKernels(self.torch, self.device, group, hidden)
        return self._kernels[at]

    def call_of(self, cell: Cell) -> Callable[[int], Any]:
        """The i-th call of a cell's graph, on different weights for each i."""
        op = cell["op"]
        if op == "all_reduce":
            return self.all_reduce_call(cell)
        hidden = cell.get("hidden", MODELS[0].hidden)
        self.kernels = self.kernels_for(cell["ranks"], hidden)
        ops = self.kernels.ops
        if op == "best":
            return self.small_call(cell)
        if op == "sum_add_norm":
            weights = self.slots(hidden, cell["k"])
            x, residual = (
                self.normal(cell["tokens"], cell["k"]),
                self.normal(cell["tokens"], hidden),
            )
            norm = self.normal(hidden)
            return lambda i: ops.sum_add_norm(
                ops.partial(x, weights[i % len(weights)]), residual, norm, EPSILON
            )
        return self.layer_call(cell | {"op": "layer"})

    def all_reduce_call(self, cell: Cell) -> Callable[[int], Any]:
        """An all-reduce with one algorithm; its sum is checked before it is timed."""
        elements, group, algorithm = cell["message_bytes"] // 2, self.group, cell["algorithm"]
        if algorithm == "nccl":
            x = self.empty(elements)
        else:
            x = group.workspace.view((elements,), self.torch.bfloat16)

        def reduced() -> Any:
            if algorithm != "nccl":
                return group.workspace.all_reduce(x, algorithm)
            self.distributed.all_reduce(x, group=group.handle)
            return x

        x.fill_(float(group.rank + 1))
        sums = reduced().float()
        expected = group.size * (group.size + 1) / 2
        error = float((sums - expected).abs().max()) / expected
        if not error < MOST_ERROR:
            raise RuntimeError(f"{algorithm} sums to {float(sums[0])}, not {expected}")
        x.zero_()  # repeated sums must not overflow
        return lambda i: reduced()

    def check_exchange(self) -> float:
        """Relative error of a fused all-reduce, residual and norm against NCCL in float64."""
        torch, hidden = self.torch, MODELS[0].hidden
        ops = self.kernels_for(self.group.size, hidden).ops
        x, norm = self.normal(33, hidden) * (1 + self.group.rank), self.normal(hidden)
        normed, total = ops.sum_add_norm(x.clone(), None, norm, EPSILON)
        wide = x.double()
        self.distributed.all_reduce(wide, group=self.group.handle)
        expected = wide * (wide.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * norm.double()
        torch.cuda.synchronize()
        errors = [
            (a.double() - b).norm() / b.norm() for a, b in ((total, wide), (normed, expected))
        ]
        return float(max(errors))

    def measure(self, cell: Cell) -> TimedCell:
        """The record of one cell."""
        calls = calls_per_graph(cell)
        times = self.time_graph(self.call_of(cell), calls)
        if cell["op"] == "rank_layer":
            self.pool.normal_()  # layers overwrite their caches, and constant values run faster
        return timed(cell, times, calls)

    def time_graph(self, call: Callable[[int], Any], calls: int) -> list[float]:
        """Seconds per call of replays that all ranks start together, on the slowest rank."""
        torch, meet = self.torch, self.kernels_for(self.group.size, MODELS[0].hidden).ops
        events = [self.events() for _ in range(REPEATS)]
        with self.captured(call, calls) as graph:
            for start, end in events:
                self.sweep.sum()
                meet.best(self.word, 64)
                start.record()
                graph.replay()
                end.record()
            torch.cuda.synchronize()
        times = [start.elapsed_time(end) * 1e-3 / calls for start, end in events]
        slowest = torch.tensor(times, device=self.device, dtype=torch.float64)
        self.distributed.all_reduce(
            slowest, op=self.distributed.ReduceOp.MAX, group=self.group.handle
        )
        return list(slowest.tolist())


def measure_ranks(out: Path, seconds: float, header: Mapping[str, Any], *, ranks: int) -> str:
    """Time all cells until done or out of time, and return a summary; rank 0 writes the records.

    Every one of the `ranks` processes must call this. An error on one rank ends the run, because
    the others would wait for it. Raises `EngineError` if the GPUs cannot read each other's memory,
    or if an exchanged sum is wrong.
    """
    from runtime import exchange_words, show_status
    from runtime.errors import EngineError
    from runtime.parallel.groups import connect

    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        place = stack.enter_context(connect(tp=ranks, draft_tp=ranks, device="cuda"))
        log, done = None, set[str]()
        if place.is_root:
            log, done = open_log(out, header)
            stack.enter_context(log)
        left = [cell for cell in cells(ranks) if key(cell) not in done]
        of_root = set(exchange_words("\n".join(map(key, left)))[0].split("\n"))
        left = [cell for cell in cells(ranks) if key(cell) in of_root]
        bench = RankBench(place.target)
        if place.target.workspace is None and place.device.type == "cuda":
            raise EngineError(
                "these GPUs cannot read each other's memory; time all-reduces with nccl-tests"
            )
        error = bench.check_exchange()
        if not error < MOST_ERROR:
            raise EngineError(f"wrong sum: the all-reduce has a relative error of {error:.2g}")
        total = len(left)
        while left and exchange_words(str(time.monotonic() < deadline))[0] == str(True):
            record = bench.measure(left.pop(0))
            if log is not None:
                log.append(record)
            show_status(f"{total - len(left):,} of {total:,} cells")
    return (
        f"{total - len(left)} cells timed, {len(left)} left; relative error of the sums {error:.2g}"
    )
