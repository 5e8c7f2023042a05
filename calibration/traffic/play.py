"""Serve drawn or recorded requests with vLLM, in the configuration that `export` writes.

Weights are random and the acceptance of drafts is injected, as for `specroof calibrate engine`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.engines import Setup
from calibration.engines.drivers.vllm_process import (
    Process,
    launch,
    model_folder,
    speculative_config,
)
from calibration.engines.run import POLL_S, SAME_RUN
from calibration.records.jsonl import RecordLog
from calibration.traffic.records import Request, RunRecord
from perfmodel import ConfigError, Scenario, Traffic, scenario_dict, without_speculation
from perfmodel.reports import ExportPlan
from perfmodel.specs import METHODS

NUMBERS = 1_000_000  # of prompts between two runs of an engine, so that no prompt is cached


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficRun:
    """Requests to serve in one start of an engine.

    `rates` is the acceptance to inject per draft position, conditional as in `Acceptance`.
    """

    name: str
    scenario: Scenario
    traffic: Traffic
    rates: tuple[float, ...] = ()
    seed: int = 0
    longest_tokens: int = 0  # of a request that the engine allows, if more than the requests need

    @property
    def plan(self) -> ExportPlan:
        """The exported plan, with room for the longest request."""
        longest = max(row[1] + row[2] for row in self.requests)
        shortest = ExportPlan(scenario=self.scenario).request_tokens
        longest = max(longest, shortest, self.longest_tokens)
        return ExportPlan(scenario=self.scenario, longest_tokens=longest)

    @property
    def requests(self) -> list[tuple[float, int, int]]:
        """Arrival in seconds, prompt and output tokens of each request."""
        return [
            (float(arrival), int(prompt), int(output))
            for chunk in self.traffic.chunks(self.seed)
            for arrival, prompt, output in zip(
                chunk.arrival_s, chunk.prompt_tokens, chunk.output_tokens, strict=True
            )
        ]


def paired_runs(scenario: Scenario, traffic: Traffic, *, seed: int) -> list[TrafficRun]:
    """The traffic without speculation, and with the scenario's draft if it has one.

    Raises `ConfigError` if the acceptance of the draft is not stated.
    """
    runs = [
        TrafficRun(name="plain", scenario=without_speculation(scenario), traffic=traffic, seed=seed)
    ]
    plan, given = scenario.plan, scenario.acceptance
    if not plan.speculates:
        return runs
    if given is None:
        raise ConfigError("the acceptance to inject is not stated; add --acceptance")
    values = given.per_position
    rates = tuple(values[min(i, len(values) - 1)] for i in range(plan.gamma))
    name = f"{plan.draft}-{plan.gamma}"
    return [
        *runs,
        TrafficRun(name=name, scenario=scenario, traffic=traffic, rates=rates, seed=seed),
    ]


def play_runs(
    runs: Sequence[TrafficRun],
    out: Path,
    header: Mapping[str, Any],
    *,
    python: str,
    show: Callable[[int, str], None] = lambda done, label: None,
) -> list[str]:
    """Serve the runs that are not in `out`, one engine start each; return lines on failures.

    Raises `RecordError` if `out` cannot be written or has records of another engine or GPU, and
    `ConfigError` if this Python does not exist or an engine does not start.
    """
    folder, failed = out.with_suffix(".work"), []
    with RecordLog(out, header, same=SAME_RUN) as log:
        done = {line.decode(RunRecord).run for line in log.lines}
        for index, run in enumerate(runs):
            if run.name in done:
                continue
            show(index, run.name)
            job = traffic_job([run], folder)
            process = launch(python, job, folder, f"traffic-{run.name.replace('/', '-')}")
            try:
                facts, line = _served(process, run.name)
            finally:
                process.stop()
            if "error" in line:
                failed.append(f"failed: {run.name}: {line['error']}")
                continue
            log.append(record_of(run, line, job["engine"], facts))
    return failed


def _served(process: Process, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the engine chose, and the adapter's line for the run."""
    facts: dict[str, Any] = {}
    while True:
        ended, lines = process.ended, process.lines()
        for line in lines:
            if "start" not in line:
                return facts, line
            facts = line.get("facts", {})
        if ended and not lines:
            raise ConfigError(f"{name}: the engine ended early: {process.failure}")
        if not lines:
            time.sleep(POLL_S)


def setup_of(scenario: Scenario) -> Setup:
    """The setup of vLLM for a scenario's target, draft and γ."""
    plan = scenario.plan
    method = "plain" if not plan.speculates else plan.draft if plan.draft in METHODS else "draft"
    return Setup(
        target=scenario.target.name,
        method=method,
        gamma=plan.gamma,
        draft=plan.draft if method == "draft" else "",
        tp=scenario.tp,
    )


def engine_arguments(runs: Sequence[TrafficRun], folder: Path) -> dict[str, Any]:
    """Keyword arguments of `vllm.LLM` for runs of one plan, as `export` states them.

    Raises `ConfigError` if the draft cannot be started with random weights.
    """
    plan = max((run.plan for run in runs), key=lambda plan: plan.served_tokens)
    setup = setup_of(plan.scenario)
    arguments = {
        "model": str(model_folder(setup.target, folder)),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "max_model_len": plan.served_tokens,
        "max_num_seqs": plan.batch,
        "max_num_batched_tokens": plan.step_tokens,
        "gpu_memory_utilization": plan.memory_share,
        "cudagraph_capture_sizes": plan.graph_sizes,
        "tensor_parallel_size": setup.tp,
        "disable_log_stats": False,
    }
    speculative = speculative_config(setup, folder)
    if speculative is None:
        return arguments
    # vLLM's rates are unconditional: this draft and all earlier ones are accepted.
    rates = np.cumprod(runs[0].rates).round(6).tolist()
    return arguments | {"speculative_config": speculative | {"synthetic_acceptance_rates": rates}}


def traffic_job(runs: Sequence[TrafficRun], folder: Path) -> dict[str, Any]:
    """The input of the adapter script for runs of one plan."""
    return {
        "engine": engine_arguments(runs, folder),
        "runs": [
            {"id": run.name, "first_prompt": NUMBERS * i, "requests": run.requests}
            for i, run in enumerate(runs)
        ],
    }


def record_of(
    run: TrafficRun, line: dict[str, Any], arguments: dict[str, Any], facts: dict[str, Any]
) -> RunRecord:
    """The record of a run from the adapter's line."""
    return RunRecord(
        run=run.name,
        scenario=scenario_dict(replace(run.scenario, acceptance=None)),
        rates=run.rates,
        token_budget=arguments["max_num_batched_tokens"],
        seed=run.seed,
        drafts=line["drafts"],
        accepted=line["accepted"],
        arguments={key: value for key, value in arguments.items() if key != "model"},
        facts=facts,
        requests=tuple(
            Request(round(arrival, 6), prompt, output, round(first, 6), round(last, 6))
            for (arrival, prompt, output), (first, last) in zip(
                run.requests, line["times"], strict=True
            )
        ),
    )
