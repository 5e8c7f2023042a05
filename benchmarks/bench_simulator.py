"""Simulate a million requests to an 8B model: `python benchmarks/bench_simulator.py [REQUESTS]`."""

from __future__ import annotations

import resource
import sys
import time

import perfmodel as pm
from perfmodel.serving import Serving, scenario_acceptance
from perfmodel.units import format_bytes

SCENARIO = {
    "target": "llama-3.1-8b",
    "gpu": "h100-sxm",
    "draft": "self",
    "kv_budget": 512,
    "gamma": 3,
    "acceptance": 0.8,
}
TRAFFIC = {
    "rate": 12.0,
    "prompt_tokens": 1000,
    "output_tokens": 200,
    "prompt_cv": 0.5,
    "output_cv": 0.5,
}


def play(requests: int, gammas: tuple[int, ...]) -> None:
    """Simulate, and print seconds, rounds, and the peak memory of this process so far."""
    scenario = pm.parse_scenario(SCENARIO).scenario()
    start, start_cpu = time.perf_counter(), time.process_time()
    run = pm.simulate_requests(
        scenario,
        pm.Simulation(
            traffic=pm.Traffic(requests=requests, **TRAFFIC),  # type: ignore[arg-type]
            serving=Serving(max_batch=64),
            process=scenario_acceptance(scenario),
        ),
        gammas=gammas,
    )
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    stats = run.stats
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        f"{run.label}: {stats.requests:,} requests, {stats.output_tokens:,} tokens, "
        f"{stats.rounds:,} rounds at mean batch {stats.batch_s / stats.busy_s:.0f} "
        f"in {seconds:.1f} s ({cpu:.1f} s of one core); peak memory {format_bytes(peak)}"
    )


def main() -> None:
    """Run a tenth, to show how memory grows, then all with a fixed γ and with plain decoding."""
    requests = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    for count, gammas in ((requests // 10, (3,)), (requests, (3,)), (requests, (0,))):
        play(count, gammas)


if __name__ == "__main__":
    main()
