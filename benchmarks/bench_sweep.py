"""Time and peak memory of `specroof sweep` to files: `python benchmarks/bench_sweep.py`.

Each size runs in a process of its own, by default 500,000 and 20,000,000 points, both as CSV and as
Parquet. Arguments are other sizes, and .csv or .parquet for one of the formats.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from perfmodel.units import format_bytes

PROMPTS = 1000


def command(points: int, file: Path) -> list[str]:
    """A sweep over batches, prompts and, beyond 500,000 points, γ and KV budgets."""
    plans = max(1, points // 500_000)
    budgets = f"256:{256 * (-(-plans // 8))}:256"
    swept = ["--gamma", "1:8", "--kv-budget", budgets] if plans > 1 else ["--gamma", "4"]
    return [
        *(sys.executable, "-m", "app.cli.main", "sweep", "--tp", "8"),
        *("--draft", "self:streamingllm", *swept),
        *("--batch", f"1:{min(points // PROMPTS, 500)}"),
        *("--prompt-tokens", f"8001:{8000 + PROMPTS}"),
        *("--parquet" if file.suffix == ".parquet" else "--csv", str(file)),
    ]


def run(points: int, suffix: str) -> None:
    """Run one sweep and print its time, its peak memory and the size of its file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"points{suffix}"
        start = time.perf_counter()
        process = subprocess.Popen(command(points, file))
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        print(
            f"{suffix} {points:>11,} points: {seconds:.1f} s, peak memory "
            f"{format_bytes(usage.ru_maxrss * 1024)}, file {format_bytes(file.stat().st_size)}, "
            f"exit {process.returncode}",
            flush=True,
        )


def main() -> None:
    """Run every size in every format."""
    suffixes = [word for word in sys.argv[1:] if word.startswith(".")] or [".csv", ".parquet"]
    sizes = [int(word) for word in sys.argv[1:] if not word.startswith(".")]
    for points in sizes or [500_000, 20_000_000]:
        for suffix in suffixes:
            run(points, suffix)


if __name__ == "__main__":
    main()
