"""Serve drawn or recorded requests with vLLM, in the configuration that `export` writes.

Weights are random and the acceptance of drafts is injected, as for `specroof calibrate engine`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.engines import Setup
from calibration.engines.vllm_process import model_folder, speculative_config
from calibration.traffic.records import RequestRecord, RunRecord
from perfmodel import Scenario, Traffic, scenario_dict
from perfmodel.reports import ExportPlan
from perfmodel.specs import METHODS

NUMBERS = 1_000_000  # of prompts between two runs of an engine, so that no prompt is cached


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficRun:
    """Requests to serve in one start of an engine; `alpha` is injected at every position."""

    name: str
    scenario: Scenario
    traffic: Traffic
    alpha: float = 0.0
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
    def rates(self) -> tuple[float, ...]:
        """Conditional acceptance per draft position."""
        return (self.alpha,) * self.scenario.plan.gamma

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


def records_of(
    run: TrafficRun, line: dict[str, Any], arguments: dict[str, Any], facts: dict[str, Any]
) -> Iterator[RunRecord | RequestRecord]:
    """The records of a run from the adapter's line."""
    yield RunRecord(
        run=run.name,
        scenario=scenario_dict(replace(run.scenario, acceptance=None)),
        rates=run.rates,
        token_budget=arguments["max_num_batched_tokens"],
        seed=run.seed,
        drafts=line["drafts"],
        accepted=line["accepted"],
        arguments={key: value for key, value in arguments.items() if key != "model"},
        facts=facts,
    )
    for (arrival, prompt, output), (first, last) in zip(run.requests, line["times"], strict=True):
        yield RequestRecord(
            run=run.name,
            arrival_s=round(arrival, 6),
            prompt_tokens=prompt,
            output_tokens=output,
            first_token_s=round(first, 6),
            finish_s=round(last, 6),
        )
