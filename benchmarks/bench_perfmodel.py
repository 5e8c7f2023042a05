"""Speed and memory of predictions and sweeps: `python benchmarks/bench_perfmodel.py`."""

from __future__ import annotations

import resource
import statistics
import time

import numpy as np

import perfmodel as pm
from perfmodel.units import format_bytes

BASE = {
    "target": "llama-3.1-8b",
    "gpu": "h100-sxm",
    "tp": 8,
    "batch": 64,
    "prompt_tokens": 32_000,
    "engine": "specroof",
    "acceptance": 0.8,
}
AXES = {
    "draft": [
        "self:streamingllm",
        "self:snapkv",
        "llama-3.2-1b:streamingllm",
        "llama-3.2-3b:streamingllm",
    ],
    "batch": list(range(4, 257, 4)),
    "prompt_tokens": np.linspace(2_000, 128_000, 64).round().tolist(),
    "gamma": list(range(1, 17)),
    "kv_budget": [64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192],
}


def sweep_seconds() -> tuple[float, int, float]:
    """Seconds, points and best feasible speedup of one full sweep, every point evaluated."""
    start = time.perf_counter()
    found = pm.sweep(BASE, AXES)
    best = 0.0
    for block in found.blocks:
        best = max(best, float(np.nanmax(block.speedup())))
    return time.perf_counter() - start, found.points, best


def predict_seconds(runs: int = 300) -> float:
    """Median seconds of one prediction, each of a new scenario."""
    times = []
    for i in range(runs):
        values = BASE | {"draft": "self", "kv_budget": 512, "gamma": 4, "batch": 8 + i}
        scenario = pm.parse_scenario(values).scenario()
        start = time.perf_counter()
        point = pm.estimate(scenario)
        _ = float(point.speedup), float(point.ttft_s), bool(point.feasible)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Print the results; the first sweep also fills the caches."""
    for label in ("first", "second"):
        seconds, points, best = sweep_seconds()
        print(f"{label} sweep: {points:,} points in {seconds:.2f} s, best speedup {best:.2f}x")
    print(f"one predict: {predict_seconds() * 1e3:.2f} ms, median of 300")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak memory: {format_bytes(peak)}")


if __name__ == "__main__":
    main()
