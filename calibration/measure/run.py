"""Time the kernels of one decode pass alone on a GPU: the raw material of fitted efficiencies.

`python -m calibration.measure.run --out FILE --seconds 270` writes JSON lines: a provenance line
(GPU, driver, versions, date, commit, command), one record per cell of `kernel_grid`, timed as
`kernel_bench` says, and at the end of each run the clocks and power seen. Cells that FILE holds are
passed over, so a run that was stopped goes on. `--list` shows the grid. Only a run needs torch,
flashinfer, nvcc (first use compiles two kernels) and a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from calibration.measure.bench import Bench
from calibration.measure.grid import COMPILE_S, CUBLAS_ROWS, Group, cell_seconds, groups
from calibration.measure.runtime_kernels import RuntimeKernels
from calibration.records.cells import Cell, key
from calibration.records.jsonl import open_records

MAX_ATTENTION_ERROR = 1e-2  # bf16 lands between 1e-3 and 1e-2
ROW_BUILDERS = 6
BUILDS = ("attention:64", "attention:128", *(f"rows:{i}" for i in range(ROW_BUILDERS)))
SAME_RUN = ("gpu", "driver", "cuda", "torch", "flashinfer")  # must not change within a file
MEASURED = ("seconds", "unit", "repeats", "calls", "spread")  # what a record adds to its cell
FAILURES_IN_A_ROW = 20  # then the device itself is at fault


class BenchError(Exception):
    """A run that cannot go on; its text is one line."""


def build(part: str) -> None:
    """Compile one part into its cache, in a process of its own.

    FlashInfer's paged prefill of one head dimension, or triton's kernels at some row counts.
    """
    import torch

    kind, _, number = part.partition(":")
    if kind == "attention":
        from flashinfer import prefill

        types, dim = (torch.bfloat16,) * 3 + (torch.int32,), int(number)
        prefill.get_batch_prefill_module("fa2", *types, dim, dim, 0, False, False, False)
    else:
        rows = [*CUBLAS_ROWS, 256][int(number) :: ROW_BUILDERS]
        RuntimeKernels(torch, torch.device("cuda")).compile(rows)


def provenance(command: str) -> Cell:
    """GPU, driver, versions, date, commit and command of this run."""
    import flashinfer
    import torch

    from runtime import source_commit

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    first = subprocess.check_output(query, text=True).splitlines()[0]
    name, driver = (part.strip() for part in first.split(","))
    return {
        "op": "provenance", "gpu": name, "driver": driver, "cuda": torch.version.cuda,
        "torch": torch.__version__, "flashinfer": flashinfer.__version__,
        "sm_count": torch.cuda.get_device_properties(0).multi_processor_count,
        "date": datetime.now(UTC).date().isoformat(), "commit": source_commit(), "command": command,
        "dtype": "bf16",
    }  # fmt: skip


def clock_summary(samples: str) -> Cell:
    """Least, median and greatest SM clock [MHz] and power [W] of the samples under load."""
    rows = [[float(x) for x in line.split(",")] for line in samples.splitlines() if "," in line]
    if not rows:
        return {}
    busy = [row for row in rows if row[2] > 0.5 * max(r[2] for r in rows)]
    clocks, power = [row[0] for row in busy], [row[2] for row in busy]
    return {"sm_clock_mhz": [min(clocks), statistics.median(clocks), max(clocks)],
            "memory_clock_mhz": statistics.median(row[1] for row in busy),
            "power_w": [min(power), statistics.median(power), max(power)]}  # fmt: skip


def pick(ready: list[Group]) -> Group | None:
    """Of the lowest tier with cells left, the group furthest behind its share of the time."""
    left = [group for group in ready if group.cells]
    if not left:
        return None
    tier = min(group.tier for group in left)
    return min((g for g in left if g.tier == tier), key=lambda g: g.spent_s / g.share)


class Sampler:
    """nvidia-smi printing clocks and power once a second while the run lasts."""

    def __init__(self) -> None:
        query = ["nvidia-smi", "-i", "0", "--query-gpu=clocks.sm,clocks.mem,power.draw",
                 "--format=csv,noheader,nounits", "-lms", "1000"]  # fmt: skip
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".csv")  # noqa: SIM115
        self.process = subprocess.Popen(query, stdout=self.log)

    def stop(self) -> Cell:
        """End the sampling; the summary of what was seen."""
        self.process.terminate()
        self.process.wait()
        self.log.seek(0)
        return clock_summary(self.log.read())


def resume(path: Path, header: Cell) -> set[str]:
    """Keys of the cells that `path` holds; it is created, or a half-written last line cut off.

    Raises
    ------
    BenchError
        If it holds records of another GPU or software, or is no file of records.
    """
    if not open_records(path, header):
        return set()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        first, *records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise BenchError(f"{path}: not a file of records; give --out another name") from error
    for field in SAME_RUN:
        if first.get(field) != header[field]:
            raise BenchError(
                f"{path}: was measured with {field} {first.get(field)!r}, this is "
                f"{header[field]!r}; give --out another name"
            )
    return {key({k: v for k, v in record.items() if k not in MEASURED}) for record in records}


class Run:
    """One run: measures groups into a file until all is done or time is out."""

    def __init__(self, bench: Any, file: TextIO, plan: list[Group], deadline: float) -> None:
        self.bench, self.file, self.plan, self.deadline = bench, file, plan, deadline
        self.total = self.left
        self.failures: list[str] = []
        self.in_a_row = 0

    @property
    def left(self) -> int:
        """Cells still to be measured."""
        return sum(len(group.cells) for group in self.plan)

    def until(self, done: Callable[[], bool], ready: list[Group]) -> None:
        """Measure cells of `ready` until `done`, out of cells, or out of time.

        Raises
        ------
        BenchError
            If so many cells fail in a row that the device must be at fault.
        """
        while not done() and time.monotonic() < self.deadline and (group := pick(ready)):
            self.next_of(group)
            if self.in_a_row >= FAILURES_IN_A_ROW:
                raise BenchError(f"{self.in_a_row} cells failed in a row: {self.failures[-1]}")

    def next_of(self, group: Group) -> None:
        """Measure a group's next cell; one that fails is reported and passed over."""
        cell, start = group.cells.pop(0), time.monotonic()
        try:
            record = self.bench.measure(cell)
            self.file.write(json.dumps(record, separators=(",", ":")) + "\n")
            self.file.flush()
            self.in_a_row = 0
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self.failures.append(f"{json.dumps(cell)}: {reason}")
            self.in_a_row += 1
            print("failed:", self.failures[-1], file=sys.stderr, flush=True)
        group.spent_s += time.monotonic() - start
        self.show(group)

    def show(self, group: Group) -> None:
        """Progress, on a terminal only."""
        if sys.stderr.isatty():
            left = max(0.0, self.deadline - time.monotonic())
            done = self.total - self.left
            line = f"{done:,} of {self.total:,} cells, {left:.0f} s left, {group.name}"
            print(f"\r{line:60}", end="", file=sys.stderr, flush=True)

    def report(self) -> str:
        """Seconds spent and cells left per group, and every kind of failure."""
        lines = [f"{g.name:14} {g.spent_s:6.1f} s, {len(g.cells):5} cells left" for g in self.plan]
        return "\n".join([*lines, f"{len(self.failures)} cells failed"])


def run(out: Path, seconds: float, plan: list[Group]) -> None:
    """Measure `plan` until done or out of time, writing each record as it comes.

    Raises
    ------
    BenchError
        If the file is another run's, or the attention kernel computes something else.
    """
    deadline = time.monotonic() + seconds
    command = [sys.executable, "-m", "calibration.measure.run", "--build"]
    builders = [subprocess.Popen([*command, part]) for part in BUILDS]
    held = resume(out, provenance(" ".join(["python -m calibration.measure.run", *sys.argv[1:]])))
    for group in plan:
        group.cells = [cell for cell in group.cells if key(cell) not in held]
    sampler, bench = Sampler(), Bench()
    with out.open("a", encoding="utf-8") as file:
        work = Run(bench, file, plan, deadline)
        try:
            # cuBLAS and HBM need no compiled kernel: they fill the time that compilers take.
            own = [group for group in plan if group.name in ("hbm", "sustained", "gemm-large")]
            work.until(lambda: all(b.poll() is not None for b in builders), own)
            for part, builder in zip(BUILDS, builders, strict=True):
                if builder.wait():
                    raise BenchError(f"the kernels of {part} do not compile here; see above")
            for new in (1, 4, 8):
                error = bench.check_attention(new)
                print(f"attention of {new} tokens: relative error {error:.2g}", flush=True)
                if not error < MAX_ATTENTION_ERROR:
                    raise BenchError(f"attention of {new} tokens is off by {error:.2g}")
            work.until(lambda: False, plan)
        finally:
            for builder in builders:
                builder.terminate()  # those that an error left running
            file.write(json.dumps({"op": "clocks", **sampler.stop()}) + "\n")
            print(work.report())


def listing(plan: list[Group]) -> str:
    """Cells and estimated seconds of each group, and in all."""
    lines, total = [], COMPILE_S
    for group in plan:
        seconds = sum(map(cell_seconds, group.cells))
        total += seconds
        lines.append(
            f"{group.name:14} tier {group.tier} {len(group.cells):5} cells {seconds:6.1f} s"
        )
    return "\n".join([*lines, f"{'total':14} with {COMPILE_S:.0f} s of compiling {total:6.1f} s"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and return an exit code; `--list` needs no GPU."""
    parser = argparse.ArgumentParser(
        prog="specroof calibrate measure", description="Time decode kernels on this GPU."
    )
    parser.add_argument("--out", type=Path, help="JSON lines file to write, or to go on with")
    parser.add_argument("--seconds", type=float, default=270.0, help="time to spend")
    parser.add_argument("--every", type=int, default=1, help="measure one cell in so many")
    parser.add_argument("--groups", help="only these groups, by name, with commas between")
    parser.add_argument("--list", action="store_true", help="print cells and estimated seconds")
    parser.add_argument("--build", choices=BUILDS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.build:
        build(options.build)
        return 0
    plan = groups(options.every)
    if options.groups:
        wanted = options.groups.split(",")
        if unknown := [name for name in wanted if name not in {g.name for g in plan}]:
            parser.error(f"no group {unknown[0]!r}; there are {', '.join(g.name for g in plan)}")
        plan = [group for group in plan if group.name in wanted]
    if options.list:
        print(listing(plan))
        return 0
    if options.out is None:
        parser.error("--out FILE says where the records go")
    try:
        run(options.out, options.seconds, plan)
    except (BenchError, ModuleNotFoundError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
