"""Simulate recorded traffic, and compare with the times at which an engine served it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibration.records.jsonl import RecordError
from calibration.traffic.records import PlacedRun, Request, RunRecord
from perfmodel import (
    ConfigError,
    Scenario,
    Simulation,
    SpecroofError,
    Traffic,
    parse_scenario,
    simulate_requests,
    without_speculation,
)
from perfmodel.catalog.engines import engine_profile
from perfmodel.errors import shown
from perfmodel.serving import AcceptanceProcess, RequestChunk, RoundTimes, Serving
from perfmodel.units import format_seconds

SEEDS = 5  # of the drawn acceptance; their mean is compared
TOLERANCES = {"makespan": 10.0, "throughput": 10.0, "tpot p50": 10.0, "tpot p99": 10.0}  # percent
# Served times are refused below this share of the datasheet's bound, and above so many full passes;
# a median of `calibration/measured/traffic-*` is at most 0.17 passes, and no time below 1.5 bounds.
LEAST_BOUND, MOST_PASSES = 0.8, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    """Measured and simulated figures of a run, by name; seconds, and tokens per second."""

    run: str
    label: str
    requests: int
    measured: dict[str, float]
    simulated: dict[str, float]

    @property
    def errors(self) -> dict[str, float]:
        """Signed errors of the simulation in percent."""
        return {
            name: 100.0 * (self.simulated[name] / value - 1.0)
            for name, value in self.measured.items()
        }

    @property
    def outside(self) -> list[str]:
        """The figures whose error exceeds the tolerance, as clauses."""
        return [
            f"{self.run}: {name} {self.errors[name]:+.1f} %"
            for name, most in TOLERANCES.items()
            if abs(self.errors[name]) > most
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTraffic(Traffic):
    """The arrivals and lengths of served requests."""

    served: tuple[Request, ...]

    def chunks(self, seed: int, skipped: Counter[str] | None = None) -> Iterator[RequestChunk]:
        """The requests, in one chunk; nothing is drawn."""
        arrivals, prompts, outputs, *_ = zip(*self.served, strict=True)
        times = np.array(arrivals, float)
        lengths = np.array(prompts, np.int64), np.array(outputs, np.int64)
        yield RequestChunk(times - times[0], *lengths)


def compare_runs(runs: Sequence[PlacedRun], *, engine: str = "") -> list[RunComparison]:
    """Simulate every run with its own requests, by default with the engine of its scenario.

    Raises `ConfigError` for an unknown `engine`. Raises `RecordError`, with the place of the run,
    if the run cannot be simulated.
    """
    if engine:
        engine_profile(engine)
    return [_placed(run, engine) for run in runs]


TABLE_TITLE = "Measured / simulated (error in percent); throughput in output tokens/s"


def comparison_table(compared: Sequence[RunComparison]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table: measured and simulated figures, and the error, per run."""
    names = list(compared[0].measured)
    rows = [
        [run.run, run.label, str(run.requests)]
        + [
            f"{_shown(name, run.measured[name])} / {_shown(name, run.simulated[name])} "
            f"({run.errors[name]:+.1f})"
            for name in names
        ]
        for run in compared
    ]
    return ["run", "engine", "requests", *names], rows


def comparison_dict(compared: Sequence[RunComparison]) -> dict[str, Any]:
    """The comparison as JSON."""
    return {
        "tolerances_percent": TOLERANCES,
        "runs": [
            {
                "run": run.run,
                "label": run.label,
                "requests": run.requests,
                "measured": run.measured,
                "simulated": run.simulated,
                "error_percent": run.errors,
            }
            for run in compared
        ],
    }


def _shown(name: str, value: float) -> str:
    return f"{value:,.0f}" if name == "throughput" else format_seconds(value)


def _placed(run: PlacedRun, engine: str) -> RunComparison:
    try:
        return _compared(run, engine)
    except SpecroofError as error:
        outcome = RecordError(f"{run.place}: run {shown(run.run)}: {error}")
        outcome.exit_code = error.exit_code
        raise outcome from error


def _compared(run: RunRecord, engine: str) -> RunComparison:
    values = dict(run.scenario) | ({"engine": engine} if engine else {})
    scenario = parse_scenario(values).scenario()
    plan = scenario.plan
    if len(run.rates) != plan.gamma:
        raise ConfigError(
            f"rates has {len(run.rates)} values, but gamma={plan.gamma}; give one per draft "
            f"position"
        )
    _check_times(run, scenario)
    simulation = Simulation(
        traffic=ServedTraffic(requests=len(run.requests), served=run.requests),
        serving=Serving(max_batch=scenario.workload.batch, token_budget=run.token_budget),
        process=AcceptanceProcess(per_position=run.rates or (0.0,)),
        exact=True,
    )
    drawn = [_simulated(scenario, replace(simulation, seed=seed)) for seed in range(SEEDS)]
    return RunComparison(
        run=run.run,
        label=f"{scenario.target.name}, {plan.draft} γ={plan.gamma}"
        if plan.speculates
        else f"{scenario.target.name}, plain",
        requests=len(run.requests),
        measured=_measured(run.requests),
        simulated={name: float(np.mean([d[name] for d in drawn])) for name in drawn[0]},
    )


def _check_times(run: RunRecord, scenario: Scenario) -> None:
    """Refuse times that the GPUs' peaks exclude, or that cannot be in seconds."""
    gpu = scenario.machine.gpu
    plain = replace(without_speculation(scenario), engine=engine_profile("ideal", gpu))
    ideal, reused = RoundTimes(plain, max_batch=1), scenario.workload.prefix_hit_rate
    for number, request in enumerate(run.requests, start=1):
        cached = int(reused * request.prompt_tokens)
        prefill_s = ideal.prefill_seconds(0, cached, request.prompt_tokens - cached)
        passes = (request.output_tokens - 1) / (scenario.plan.gamma + 1)
        bounds = {
            f"a prompt of {request.prompt_tokens:,} tokens": (request.ttft_s, prefill_s),
            f"{request.output_tokens:,} output tokens": (
                request.finish_s - request.first_token_s,
                passes * ideal.round_seconds(0, 1, 0.0),
            ),
        }
        for what, (seconds, least_s) in bounds.items():
            if seconds < LEAST_BOUND * least_s:
                raise ConfigError(
                    f"request {number} needed {format_seconds(seconds)} for {what}, which take at "
                    f"least {format_seconds(least_s)} at the GPUs' peak; give times in seconds"
                )
    pass_s = ideal.prefill_seconds(0, 0, run.token_budget) + gpu.memory_bytes / gpu.hbm_bandwidth
    tpot_s = _quantile([r.tpot_s for r in run.requests], 50)
    if tpot_s > MOST_PASSES * pass_s:
        raise ConfigError(
            f"the median time per output token is {format_seconds(tpot_s)}, but a full pass takes "
            f"about {format_seconds(pass_s)}; give times in seconds"
        )


def _simulated(scenario: Scenario, simulation: Simulation) -> dict[str, float]:
    stats = simulate_requests(scenario, simulation).stats
    if stats.refused:
        raise ConfigError(
            f"{stats.refused} of {simulation.traffic.requests} requests exceed the simulated KV "
            f"cache or the target's context; correct their lengths or the scenario"
        )
    return {
        "makespan": stats.makespan_s,
        "throughput": stats.output_tokens / stats.makespan_s,
        "tpot p50": stats.tpot.quantile_s(0.5),
        "tpot p99": stats.tpot.quantile_s(0.99),
        "ttft p50": stats.ttft.quantile_s(0.5),
        "ttft p99": stats.ttft.quantile_s(0.99),
    }


def _measured(requests: Sequence[Request]) -> dict[str, float]:
    makespan = max(r.finish_s for r in requests) - requests[0].arrival_s
    tpot = [r.tpot_s for r in requests if r.output_tokens > 1]
    ttft = [r.ttft_s for r in requests]
    return {
        "makespan": makespan,
        "throughput": sum(r.output_tokens for r in requests) / makespan,
        **{f"tpot p{p}": _quantile(tpot, p) for p in (50, 99)},
        **{f"ttft p{p}": _quantile(ttft, p) for p in (50, 99)},
    }


def _quantile(seconds: Sequence[float], percent: int) -> float:
    """A quantile as `Durations.quantile_s` defines it."""
    return float(np.percentile(seconds, percent, method="inverted_cdf"))
