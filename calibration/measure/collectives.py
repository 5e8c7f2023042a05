"""All-reduce between the GPUs of this machine, over sizes and algorithms, inside a CUDA graph.

`torchrun --nproc-per-node N -m calibration.measure.collectives --out FILE` writes the same records
as `specroof calibrate measure`. Algorithms: NCCL, and torch's symmetric memory in one shot and two.
Multicast is never used: it can put a shared host's GPUs out of service.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from calibration.measure.timer import timed
from calibration.records.cells import Cell, TimedCell
from calibration.records.jsonl import RecordLog

ALGORITHMS = ("nccl", "one_shot", "two_shot")
SIZES = tuple(2**n for n in range(13, 27))  # 8 KiB ... 64 MiB
# A program that uses NVLink multicast can put a shared host's GPUs out of service.
NO_MULTICAST = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
}
CALLS, REPEATS = 20, 9
MOST_ERROR = 0.05  # of a sum of bf16 values, relative


def cells(ranks: int) -> list[Cell]:
    """One cell per algorithm and message size."""
    return [
        {"op": "all_reduce", "algorithm": algorithm, "ranks": ranks, "message_bytes": size}
        for algorithm in ALGORITHMS
        for size in SIZES
    ]


class CollectiveBench:
    """One rank's buffers and process group."""

    def __init__(self) -> None:
        import torch
        from torch import distributed

        self.torch, self.distributed = torch, distributed
        self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(self.device)
        os.environ.update(NO_MULTICAST)
        distributed.init_process_group("nccl", device_id=self.device, timeout=timedelta(seconds=60))
        self.group: Any = distributed.group.WORLD
        self.rank, self.ranks = distributed.get_rank(), distributed.get_world_size()
        self.symmetric: Any = None

    def buffer(self, elements: int, algorithm: str) -> Any:
        """A bf16 buffer of this rank, in symmetric memory where the algorithm needs it."""
        torch = self.torch
        if algorithm == "nccl":
            return torch.empty(elements, dtype=torch.bfloat16, device=self.device)
        if self.symmetric is None:
            from torch.distributed import _symmetric_memory as symmetric_memory

            most = max(SIZES) // 2
            self.symmetric = symmetric_memory.empty(most, dtype=torch.bfloat16, device=self.device)
            symmetric_memory.rendezvous(self.symmetric, self.group.group_name)
        return self.symmetric[:elements]

    def call(self, x: Any, algorithm: str) -> Callable[[], Any]:
        """One all-reduce of `x`; what it returns holds the sum."""
        name = self.group.group_name
        if algorithm == "nccl":
            return lambda: self.distributed.all_reduce(x) or x
        if algorithm == "one_shot":
            return lambda: self.torch.ops.symm_mem.one_shot_all_reduce(x, "sum", name)
        return lambda: self.torch.ops.symm_mem.two_shot_all_reduce_(x, "sum", name)

    def check(self, x: Any, call: Callable[[], Any]) -> None:
        """Refuse an algorithm whose sum is wrong (run once eagerly, as capture needs anyway)."""
        x.fill_(float(self.rank + 1))
        expected = self.ranks * (self.ranks + 1) / 2
        sums = call().float()
        error = float((sums - expected).abs().max()) / expected
        if not error < MOST_ERROR:
            raise RuntimeError(f"sums to {float(sums[0])}, not {expected}")

    def measure(self, cell: Cell) -> TimedCell:
        """The record of one cell: the slowest rank's median seconds a call."""
        torch, x = self.torch, self.buffer(cell["message_bytes"] // 2, cell["algorithm"])
        call = self.call(x, cell["algorithm"])
        self.check(x, call)
        x.zero_()  # sums of sums must not overflow
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(CALLS):
                call()
        times = [self.replay(graph) for _ in range(REPEATS + 2)][2:]
        return timed(cell, times, CALLS)

    def replay(self, graph: Any) -> float:
        """Seconds per call of one replay that all ranks begin together; the slowest rank's."""
        torch = self.torch
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        self.distributed.barrier()
        torch.cuda.synchronize()
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        seconds = torch.tensor(start.elapsed_time(end) * 1e-3 / CALLS, device=self.device)
        self.distributed.all_reduce(seconds, op=self.distributed.ReduceOp.MAX)
        return float(seconds)


def main(
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSON lines file to write.")],
) -> None:
    """Time all-reduce between GPUs: every cell on every rank; the first writes."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise SystemExit("error: needs two ranks or more: run it under torchrun")
    from runtime import provenance

    bench = CollectiveBench()
    header = provenance(["torchrun", "-m", "calibration.measure.collectives", *sys.argv[1:]])
    with ExitStack() as stack:
        log = None
        if bench.rank == 0:
            out.unlink(missing_ok=True)
            log = stack.enter_context(RecordLog(out, header, same=()))
        for cell in cells(bench.ranks):
            # An error on one rank only would leave the others waiting: it ends the run.
            record = bench.measure(cell)
            if log is not None:
                log.append(record)
    bench.distributed.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
