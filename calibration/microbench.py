"""Time the kernels of one decode pass alone on a GPU: the raw material of fitted efficiencies.

`python -m calibration.microbench --out FILE --seconds 240` writes JSON lines: a provenance line
(GPU, driver, versions, clocks seen, date, command), then one record per cell of `kernel_grid`,
timed as `kernel_bench` says. `--list` shows the grid. Only a run needs torch, flashinfer, nvcc
(first use compiles seven kernels, side by side) and a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from calibration.kernel_bench import Bench
from calibration.kernel_grid import Cell, Group, cell_seconds, groups

MAX_ATTENTION_ERROR = 1e-2  # bf16 lands between 1e-3 and 1e-2
KERNELS = {
    "prefill128": "batch_prefill:128",
    "prefill64": "batch_prefill:64",
    "decode128": "batch_decode:128",
    "page": "page",
    "rope": "rope",
    "norm": "norm",
    "activation": "activation",
}


def build_kernel(name: str) -> None:
    """Compile one FlashInfer module into its cache (runs in a process of its own)."""
    import torch
    from flashinfer import activation, decode, norm, page, prefill, rope

    kind, _, width = KERNELS[name].partition(":")
    if width:
        dims = (int(width), int(width), 0, False, False)
        types = (torch.bfloat16,) * 3 + (torch.int32,)
        if kind == "batch_prefill":
            prefill.get_batch_prefill_module("fa2", *types, *dims, False)
        else:
            decode.get_batch_decode_module(*types, *dims)
        return
    {"page": page.get_page_module, "rope": rope.get_rope_module, "norm": norm.get_norm_module,
     "activation": lambda: activation.get_act_and_mul_module("silu")}[kind]()  # fmt: skip


def provenance(command: str) -> Cell:
    """GPU, driver, versions, date and command of this run."""
    import flashinfer
    import torch

    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    name, driver = subprocess.check_output(query, text=True).strip().split(", ")
    return {
        "op": "provenance", "gpu": name, "driver": driver, "cuda": torch.version.cuda,
        "torch": torch.__version__, "flashinfer": flashinfer.__version__,
        "sm_count": torch.cuda.get_device_properties(0).multi_processor_count,
        "date": datetime.now(UTC).date().isoformat(), "command": command, "dtype": "bf16",
    }  # fmt: skip


def clock_summary(samples: str) -> Cell:
    """Least, median and greatest SM clock [MHz] and power [W] of the samples under load."""
    rows = [[float(x) for x in line.split(",")] for line in samples.splitlines() if "," in line]
    busy = [row for row in rows if row[2] > 0.5 * max(r[2] for r in rows)]
    clocks, power = [row[0] for row in busy], [row[2] for row in busy]
    return {"sm_clock_mhz": [min(clocks), statistics.median(clocks), max(clocks)],
            "memory_clock_mhz": statistics.median(row[1] for row in busy),
            "power_w": [min(power), statistics.median(power), max(power)]}  # fmt: skip


def pick(ready: list[Group]) -> Group | None:
    """The group with cells left that is furthest behind its share of the time."""
    open_groups = [group for group in ready if group.cells]
    return min(open_groups, key=lambda g: g.spent_s / g.share) if open_groups else None


class Sampler:
    """nvidia-smi printing clocks and power once a second while the run lasts."""

    def __init__(self) -> None:
        query = ["nvidia-smi", "--query-gpu=clocks.sm,clocks.mem,power.draw",
                 "--format=csv,noheader,nounits", "-lms", "1000"]  # fmt: skip
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".csv")  # noqa: SIM115
        self.process = subprocess.Popen(query, stdout=self.log)

    def stop(self) -> Cell:
        """End the sampling; the summary of what was seen."""
        self.process.terminate()
        self.process.wait()
        self.log.seek(0)
        return clock_summary(self.log.read())


def run(out: str, seconds: float, every: int) -> None:
    """Measure all groups until done or out of time, writing each record as it comes."""
    deadline = time.monotonic() + seconds
    build = [sys.executable, "-m", "calibration.microbench", "--build"]
    builders = [subprocess.Popen([*build, name]) for name in KERNELS]
    sampler, bench, plan = Sampler(), Bench(), groups(every)
    header = provenance(f"python -m calibration.microbench --seconds {seconds:g}")
    with open(out, "w") as file:
        file.write(json.dumps(header) + "\n")

        def measure_until(done: Callable[[], bool], ready: list[Group]) -> None:
            while not done() and time.monotonic() < deadline and (group := pick(ready)):
                measure_next(bench, group, file)

        # GEMM and HBM need no FlashInfer kernel: they fill the time that nvcc takes.
        measure_until(lambda: all(b.poll() is not None for b in builders), plan[:2])
        print("builds:", [builder.wait() for builder in builders], flush=True)
        for path in ("fa2-plain", "fa2-graph", "decode", "decode-tc"):
            error = bench.check_attention(path)
            print(f"{path}: relative error {error:.2g} against float64", flush=True)
            if not error < MAX_ATTENTION_ERROR:
                sys.exit(f"{path} computes something else: error {error:.2g}; nothing is timed")
        measure_until(lambda: False, plan)
    header.update(sampler.stop())
    with open(out) as file:
        body = file.readlines()[1:]
    with open(out, "w") as file:
        file.writelines([json.dumps(header) + "\n", *body])
    for group in plan:
        print(f"{group.name:10} {group.spent_s:6.1f} s, {len(group.cells)} cells left")


def measure_next(bench: Bench, group: Group, file: Any) -> None:
    """Measure a group's next cell into `file`; a cell that fails is reported and passed over."""
    cell, start = group.cells.pop(), time.monotonic()
    try:
        record = bench.measure(cell)
        file.write(json.dumps(record, separators=(",", ":")) + "\n")
        file.flush()
    except Exception as error:
        print("failed:", cell, str(error).splitlines()[0], file=sys.stderr, flush=True)
    group.spent_s += time.monotonic() - start


def main() -> None:
    """Parse the command line; `--list` prints the grid's size and needs no GPU."""
    parser = argparse.ArgumentParser(description="Time decode kernels on this GPU.")
    parser.add_argument("--out", help="JSON lines file to write")
    parser.add_argument("--seconds", type=float, default=240.0, help="time to spend")
    parser.add_argument("--every", type=int, default=1, help="measure one cell in so many")
    parser.add_argument("--list", action="store_true", help="print cells and estimated seconds")
    parser.add_argument("--build", choices=KERNELS, help="compile one FlashInfer kernel and stop")
    options = parser.parse_args()
    if options.build:
        build_kernel(options.build)
    elif options.list:
        for group in groups(options.every):
            total = sum(map(cell_seconds, group.cells))
            print(f"{group.name:10} {len(group.cells):5} cells {total:6.1f} s")
    elif options.out:
        run(options.out, options.seconds, options.every)
    else:
        parser.error("--out FILE says where the records go")


if __name__ == "__main__":
    main()
