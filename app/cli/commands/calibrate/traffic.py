"""`specroof calibrate traffic`: serve requests with vLLM, to compare with their simulation."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import ScenarioFile, field_flags, option, parse_overrides
from app.cli.output import progress
from app.cli.simulation_options import check_trace

if TYPE_CHECKING:
    from perfmodel import Scenario, Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayOptions:
    """The flags of the requests, as in `simulate`, and of the engine."""

    out: Annotated[Path, option("FILE", "File of records to write or continue.")]
    traffic: Annotated[str | None, option("FILE", "Recorded requests, as CSV or JSON lines.")] = (
        None
    )
    rate: Annotated[
        float | None, option("RPS", "Mean arrival rate of random requests. Default: all at once.")
    ] = None
    requests: Annotated[
        int | None, option("N", "Number of requests. Default: 96, or the whole trace.", min=1)
    ] = None
    prompt_cv: Annotated[
        float,
        option("X", "Coefficient of variation of the prompt lengths (lognormal).", min=0.0),
    ] = 0.0
    output_cv: Annotated[
        float,
        option("X", "Coefficient of variation of the output lengths (lognormal).", min=0.0),
    ] = 0.0
    seed: Annotated[int, option("N", "Random seed.", min=0)] = 0
    python: Annotated[str, option("PATH", "Python that has the engine (default: this one).")] = ""

    def check(self, scenario: Scenario) -> None:
        """Raise a `SpecroofError` for what cannot be served, before an engine is looked for."""
        import perfmodel
        from calibration.records import check_log
        from perfmodel.serving import RoundTimes

        if self.traffic is not None:
            lengths = {"prompt_cv": self.prompt_cv, "output_cv": self.output_cv}
            check_trace(self.traffic, lengths, drawn="" if self.rate is None else "--rate")
        if not scenario.engine.name.startswith("vllm"):
            raise perfmodel.ConfigError(
                f"requests are served with vLLM, not with {scenario.engine.name}; add --engine vllm"
            )
        check_log(self.out)
        times = RoundTimes(scenario, max_batch=scenario.workload.batch)
        times.kv_capacity(scenario.plan.gamma)  # refuses a plan that does not fit

    def stream(self, scenario: Scenario) -> Traffic:
        """The requests: recorded ones, or random ones around the scenario's lengths."""
        from perfmodel import Traffic

        return Traffic(
            requests=96 if self.requests is None and self.traffic is None else self.requests,
            path=self.traffic,
            rate=1.0 if self.rate is None else self.rate,
            arrivals="at-once" if self.rate is None else "poisson",
            prompt_tokens=scenario.workload.prompt_tokens,
            output_tokens=scenario.workload.output_tokens,
            prompt_cv=self.prompt_cv,
            output_cv=self.output_cv,
        )


@field_flags
def calibrate_traffic(
    context: typer.Context, *, scenario: ScenarioFile = None, options: PlayOptions
) -> None:
    """Serve requests with vLLM on this machine's GPUs, with and without speculation.

    The engine runs the plan as `export` writes it, with random weights; drafts are accepted at the
    rate of --acceptance. `validate traffic` compares the records with their simulation.
    """
    import perfmodel
    from calibration.engines import catalog_gpu, engine_facts
    from calibration.traffic import paired_runs, play_runs
    from runtime.bench.provenance import source_commit

    values = parse_overrides(scenario, context.obj)
    base = perfmodel.parse_scenario(values, origin=scenario or "").scenario()
    options.check(base)
    runs = paired_runs(base, options.stream(base), seed=options.seed)
    python = options.python or sys.executable
    facts = engine_facts(python)
    _check_machine(base, facts, catalog_gpu(facts.get("gpu", "")))
    header = facts | {
        "gpu_name": base.machine.gpu.name,
        "command": ["specroof", *sys.argv[1:]],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": source_commit(),
    }
    with progress("starting", len(runs)) as bar:

        def show(done: int, label: str) -> None:
            if bar is not None:
                bar(done, label=label)

        failed = play_runs(runs, options.out, header, python=python, show=show)
    print("\n".join([*failed, f"Compare: specroof validate traffic {options.out}"]))
    if failed:
        raise perfmodel.OutsideTolerance(f"{len(failed)} of {len(runs)} runs failed")


def _check_machine(scenario: Scenario, facts: dict[str, Any], gpu: str) -> None:
    from perfmodel import ConfigError

    if "gpu" not in facts:
        raise ConfigError("nvidia-smi finds no GPU; use a machine with one")
    wanted = scenario.machine.gpu.name
    if gpu and gpu != wanted:
        raise ConfigError(f"this machine has {facts['gpu']}, not --gpu {wanted}; use --gpu {gpu}")
