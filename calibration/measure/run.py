"""Time the kernels of a decode pass in isolation, as the input of `calibrate fit`.

`specroof calibrate measure` writes a header (GPU, driver, versions, commit, command) and one record
per cell of the grid (see measure/timer.py). Cells that are already in the file are skipped, so an
interrupted run can be resumed. Listing the grid does not need torch; a run needs torch, flashinfer,
nvcc (the first use compiles kernels) and a GPU.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.measure.grid import (
    COMPILE_S,
    GEMM_ROWS,
    TRITON_ROWS,
    Group,
    cell_seconds,
    groups,
)
from calibration.records.cells import OVER_CACHE, key
from calibration.records.jsonl import RecordLog, encode
from perfmodel import ConfigError
from runtime import show_status

if TYPE_CHECKING:
    from calibration.measure.bench import Bench

MAX_ATTENTION_ERROR = 1e-2  # bf16 lands between 1e-3 and 1e-2
ROW_BUILDERS = 6
CHECKED_DIM = 128  # head dimension of `attention_error`
SAME_RUN = ("gpu", "driver", "cuda", "torch", "flashinfer-python")  # must not change within a file
MEASURED = ("seconds", "unit", "repeats", "calls", "spread")  # keys that a record adds to its cell
FAILURES_IN_A_ROW = 20  # then the device itself is at fault
NEED_NO_BUILD = ("sustained", "gemm-large")  # cuBLAS only, so nothing has to be compiled


class BenchError(ConfigError):
    """A run that cannot continue, with a message of one line."""


def builds(plan: Iterable[Group]) -> list[str]:
    """The parts that `build` compiles for the cells of some groups."""
    cells = [cell for group in plan for cell in group.cells]
    dims = {CHECKED_DIM} | {cell["head_dim"] for cell in cells if "head_dim" in cell}
    parts = [f"attention:{dim}" for dim in sorted(dims)]
    if any(cell["op"] not in (*OVER_CACHE, "prefill_attention") for cell in cells):
        parts += [f"rows:{i}" for i in range(ROW_BUILDERS)]
    return parts


def build(part: str) -> None:
    """Compile some kernels into their cache; runs in a separate process.

    `part` names FlashInfer's paged prefill at one head dimension, or Triton's kernels at some row
    counts.
    """
    import torch

    from calibration.measure.runtime_kernels import RuntimeKernels

    kernels = RuntimeKernels(torch, torch.device("cuda"))
    kind, _, number = part.partition(":")
    if kind == "attention":
        kernels.compile_attention(int(number))
    else:
        rows = [m for m in GEMM_ROWS if m <= TRITON_ROWS]
        kernels.compile([*rows, 256][int(number) :: ROW_BUILDERS])


def chosen_groups(names: Iterable[str] = (), *, every: int = 1) -> list[Group]:
    """The groups with these names, or all, thinned to one cell in `every`.

    Raises `ConfigError` if a name is unknown.
    """
    plan, names = groups(every), list(names)
    known = [group.name for group in plan]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"unknown group {unknown[0]!r}; the groups are {', '.join(known)}")
    return [group for group in plan if group.name in names] if names else plan


def listing(plan: list[Group]) -> str:
    """Number of cells and estimated seconds of each group, and the total."""
    lines, total = [], COMPILE_S
    for group in plan:
        seconds = sum(map(cell_seconds, group.cells))
        total += seconds
        lines.append(
            f"{group.name:14} tier {group.tier} {len(group.cells):5} cells {seconds:6.1f} s"
        )
    return "\n".join([*lines, f"{'total':14} incl. {COMPILE_S:.0f} s to compile {total:6.1f} s"])


def pick(ready: list[Group]) -> Group | None:
    """The group furthest behind its share of the time, in the lowest tier with cells left."""
    left = [group for group in ready if group.cells]
    if not left:
        return None
    tier = min(group.tier for group in left)
    return min((g for g in left if g.tier == tier), key=lambda g: g.spent_s / g.share)


def open_log(path: Path, header: Mapping[str, Any]) -> tuple[RecordLog, set[str]]:
    """The output file, and the keys of the cells already in it."""
    log = RecordLog(path, header, same=SAME_RUN)
    cells = ({k: v for k, v in line.value.items() if k not in MEASURED} for line in log.lines)
    return log, {key(cell) for cell in cells}  # type: ignore[arg-type]


class Run:
    """One run: time groups of cells into a file until all are done or the time is up."""

    def __init__(self, bench: Bench, log: RecordLog, plan: list[Group], deadline: float) -> None:
        self.bench, self.log, self.plan, self.deadline = bench, log, plan, deadline
        self.total = self.left
        self.failures: list[str] = []
        self.in_a_row = 0

    @property
    def left(self) -> int:
        """Number of cells still to be timed."""
        return sum(len(group.cells) for group in self.plan)

    def until(self, done: Callable[[], bool], ready: list[Group]) -> None:
        """Time cells of `ready` until `done()`, or until no cells or no time are left."""
        while not done() and time.monotonic() < self.deadline and (group := pick(ready)):
            self.next_of(group)
            if self.in_a_row >= FAILURES_IN_A_ROW:
                raise BenchError(f"{self.in_a_row} cells failed in a row: {self.failures[-1]}")

    def next_of(self, group: Group) -> None:
        """Time the next cell of a group; a failing cell is reported and skipped."""
        cell, start = group.cells.pop(0), time.monotonic()
        try:
            self.log.append(self.bench.measure(cell))
            self.in_a_row = 0
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self.failures.append(f"{encode(cell).strip()}: {reason}")
            self.in_a_row += 1
            print("failed:", self.failures[-1], file=sys.stderr, flush=True)
        group.spent_s += time.monotonic() - start
        self.show(group)

    def show(self, group: Group) -> None:
        """Show the progress if stderr is a terminal."""
        left = max(0.0, self.deadline - time.monotonic())
        done = self.total - self.left
        show_status(f"{done:,} of {self.total:,} cells, {left:.0f} s left, {group.name}")

    def report(self) -> str:
        """Seconds spent and cells left per group, and the number of failures."""
        lines = [f"{g.name:14} {g.spent_s:6.1f} s, {len(g.cells):5} cells left" for g in self.plan]
        return "\n".join([*lines, f"{len(self.failures)} cells failed"])


def measure_groups(out: Path, seconds: float, plan: list[Group], header: Mapping[str, Any]) -> str:
    """Time the cells of `plan` for at most `seconds`, writing each record at once; a summary.

    Raises `BenchError` if `seconds` is not positive, kernels do not compile, or attention returns
    wrong values. Raises `RecordError` if the file was written by another run.
    """
    if not seconds > 0:
        raise BenchError(f"--seconds {seconds:g} is not a positive time")
    from calibration.measure.bench import Bench, attention_error

    deadline = time.monotonic() + seconds
    spawn = multiprocessing.get_context("spawn")
    log, done = open_log(out, header)
    for group in plan:
        group.cells = [cell for cell in group.cells if key(cell) not in done]
    parts = builds(plan)
    builders = [spawn.Process(target=build, args=(part,), daemon=True) for part in parts]
    with log:
        for builder in builders:
            builder.start()
        bench = Bench()
        work = Run(bench, log, plan, deadline)
        try:
            unbuilt = [group for group in plan if group.name in NEED_NO_BUILD]
            work.until(lambda: not any(b.is_alive() for b in builders), unbuilt)
            for part, builder in zip(parts, builders, strict=True):
                builder.join()
                if builder.exitcode:
                    raise BenchError(f"the kernels of {part} do not compile here; see stderr")
            for new in (1, 4, 8, 17, 33):  # every tile of query rows, and two of the largest
                error = attention_error(bench, new)
                print(f"attention of {new} tokens: relative error {error:.2g}", flush=True)
                if not error < MAX_ATTENTION_ERROR:
                    raise BenchError(
                        f"attention of {new} query tokens has a relative error of {error:.2g}; "
                        f"check the versions of flashinfer and CUDA"
                    )
            work.until(lambda: False, plan)
        finally:
            for builder in builders:
                builder.terminate()  # an error may have left some running
    return work.report()
