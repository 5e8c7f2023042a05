"""Simulate recorded traffic, and compare with the times at which an engine served it."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.records.markdown import markdown_table
from calibration.traffic.records import Request, RunRecord
from perfmodel import Scenario, Simulation, Traffic, parse_scenario, simulate_requests
from perfmodel.serving import AcceptanceProcess, Serving
from perfmodel.units import format_seconds

SEEDS = 5  # of the drawn acceptance; their mean is compared
TOLERANCES = {"makespan": 10.0, "throughput": 10.0, "tpot p50": 10.0, "tpot p99": 10.0}  # percent


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


def compare_runs(runs: Sequence[RunRecord], *, engine: str = "") -> list[RunComparison]:
    """Simulate every run with its own requests, by default with the engine of its scenario."""
    return [_compared(run, engine) for run in runs]


def comparison_lines(compared: Sequence[RunComparison]) -> list[str]:
    """A table: measured and simulated figures, and the error in percent, per run."""
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
    return [
        "Measured / simulated (error in percent); throughput in output tokens/s",
        markdown_table(["run", "engine", "requests", *names], rows),
    ]


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


def _compared(run: RunRecord, engine: str) -> RunComparison:
    values = dict(run.scenario) | ({"engine": engine} if engine else {})
    scenario = parse_scenario(values).scenario()
    rates = run.rates or (0.0,)
    with tempfile.TemporaryDirectory() as folder:
        path = _trace(run.requests, Path(folder))
        simulation = Simulation(
            traffic=Traffic(requests=None, path=str(path)),
            serving=Serving(max_batch=scenario.workload.batch, token_budget=run.token_budget),
            process=AcceptanceProcess(per_position=rates),
            exact=True,
        )
        drawn = [_simulated(scenario, replace(simulation, seed=seed)) for seed in range(SEEDS)]
    plan = scenario.plan
    return RunComparison(
        run=run.run,
        label=f"{scenario.target.name}, {plan.draft} γ={plan.gamma}"
        if plan.speculates
        else f"{scenario.target.name}, plain",
        requests=len(run.requests),
        measured=_measured(run.requests),
        simulated={name: float(np.mean([d[name] for d in drawn])) for name in drawn[0]},
    )


def _trace(requests: Sequence[Request], folder: Path) -> Path:
    path = folder / "requests.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("arrival_s", "prompt_tokens", "output_tokens"))
        writer.writerows((r.arrival_s, r.prompt_tokens, r.output_tokens) for r in requests)
    return path


def _simulated(scenario: Scenario, simulation: Simulation) -> dict[str, float]:
    stats = simulate_requests(scenario, simulation).stats
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
