"""Simulations as JSON data (see docs/reference/json.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from perfmodel.flat_values import scenario_dict
from perfmodel.reports.prediction import evidence_dict
from perfmodel.scenario import Scenario
from perfmodel.serving.choose_gamma import TrafficChoice
from perfmodel.serving.fixed_batch import FixedBatchRun
from perfmodel.serving.round_times import BOUNDS
from perfmodel.serving.simulate import ServingRun
from perfmodel.serving.stats import QUANTILES, RECORD, Durations, ServingStats
from perfmodel.specs.workload import Prefill
from perfmodel.speculation import estimate, evidence, service, without_speculation
from perfmodel.speculation.evidence import labels

NO_PROMPT = (
    "prompts are processed on other GPUs: TTFT is the wait for a place in the decode batch, "
    "without the prompt; that of `recommend` and `predict` is the prompt alone, without a wait"
)


def simulation_dict(
    base: Scenario,
    runs: Sequence[dict[str, Any]],
    workload: dict[str, Any] | None,
    *,
    seed: int,
    exact: bool,
    token_budget: int,
) -> dict[str, Any]:
    """The result of `simulate`.

    `runs` are those of `serving_dict` or `batch_dict`, the first without speculation; `workload`,
    of `workload_dict`, is None if a batch was decoded to its end; `token_budget` is the most tokens
    of a pass.
    """
    mean = base
    if workload is not None:
        mean = _with_mean_lengths(base, workload, token_budget)
        saturated, closed = _saturated(mean)
    else:
        speedup = float(estimate(base).speedup)
        known = base.plan.speculates and math.isfinite(speedup)
        saturated, closed = None, speedup if known else None
    return {
        "level": "rounds" if workload is None else "requests",
        "workload": workload,
        "runs": list(runs),
        "gains": [_gain(runs[0], run) for run in runs[1:]],
        "saturated_rps": saturated,
        "closed_form_speedup": closed,
        "evidence": evidence_dict(evidence(mean)),
        "seed": seed,
        "exact": exact,
        "scenario": scenario_dict(base),
        "notes": [
            *([NO_PROMPT] if workload and mean.workload.prefill is Prefill.DISAGGREGATED else []),
            *base.notes,
            *skipped_notes((workload or {}).get("skipped", {})),
        ],
    }


def timeline_rows(base: Scenario, result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The timelines of a `simulation_dict` as rows of a file, with the origins of their inputs."""
    for run in result["runs"]:
        plain = run["gamma"] == 0
        known = labels(without_speculation(base) if plain else base)
        outside = [n for n in result["evidence"]["extrapolated"] if n == "T_T" or not plain]
        columns = {**asdict(known), "extrapolated": " ".join(outside)}
        for row in run["timeline"]:
            yield {"label": run["label"], **row, **columns}


def skipped_notes(skipped: Mapping[str, int]) -> list[str]:
    """How many requests of a trace were left out, in words, by reason."""
    return [f"left out of the trace: {n:,} with {why}" for why, n in skipped.items()]


def serving_dict(run: ServingRun, *, timeline: bool = True) -> dict[str, Any]:
    """One request simulation, in seconds, tokens and fractions."""
    stats = run.stats
    busy, span = stats.busy_s or 1.0, stats.makespan_s or 1.0
    result: dict[str, Any] = {
        "label": run.label,
        "gamma": run.gamma,
        "requests": stats.requests,
        "refused": stats.refused,
        "prompt_tokens": stats.prompt_tokens,
        "output_tokens": stats.output_tokens,
        "makespan_s": stats.makespan_s,
        "throughput_tokens_per_s": run.throughput,
        "requests_per_s": stats.requests / span,
        "goodput_rps": run.goodput_rps,
        "good_share": stats.good / stats.requests,
        "ttft": durations_dict(stats.ttft),
        "tpot": durations_dict(stats.tpot),
        "latency": durations_dict(stats.latency),
        "busy_share": run.busy_share,
        "mean_batch": stats.batch_s / busy,
        "kv_capacity_tokens": run.capacity_tokens,
        "kv_mean_share": stats.kv_s / busy,
        "kv_most_share": stats.most_kv,
        "kv_share_seconds": list(stats.kv_share_s),
        "preemptions": stats.preemptions,
        "passes": stats.passes,
        "rounds": stats.rounds,
        "rounds_by_bound": _bounds(stats.rounds_by_bound),
        "gamma_time_share": _shares(stats.gamma_s),
    }
    if timeline:
        result["timeline"] = stats.timeline.rows(stats.makespan_s)
    return result


LEAST_SPAN_S = 1e-6  # of arrivals; within less they arrive together, which has no rate


def workload_dict(stats: ServingStats) -> dict[str, Any]:
    """What the finished requests ask for: their rate, lengths and prefix-cache hits."""
    arrival = stats.finished[:, RECORD.index("arrival_s")]
    span = float(arrival.max() - arrival.min())
    result: dict[str, Any] = {
        "requests": stats.requests,
        "rate_rps": (stats.requests - 1) / span if span >= LEAST_SPAN_S else None,
        "prefix_hit_share": stats.prefix_hit_tokens / stats.prompt_tokens,
        "skipped": dict(stats.skipped),
    }
    for name in ("prompt_tokens", "output_tokens"):
        tokens = stats.finished[:, RECORD.index(name)]
        quantiles = {f"p{round(100 * q)}": float(np.quantile(tokens, q)) for q in QUANTILES}
        result[name] = {"mean": float(tokens.mean()), **quantiles}
    return result


def batch_dict(run: FixedBatchRun) -> dict[str, Any]:
    """One simulation of a fixed batch."""
    return {
        "label": f"gamma {run.gamma}" if run.gamma else "no speculation",
        "gamma": run.gamma,
        "sequences": int(run.produced.size),
        "rounds": run.rounds,
        "tokens": run.tokens,
        "tokens_per_round": run.tokens_per_round,
        "makespan_s": run.makespan_s,
        "throughput_tokens_per_s": run.throughput,
        "tpot": durations_dict(run.tpot()),
        "rounds_by_bound": _bounds(run.rounds_by_bound),
        "timeline": run.timeline.rows(run.makespan_s),
    }


def choice_dict(choice: TrafficChoice) -> dict[str, Any]:
    """The result of `recommend --traffic`."""
    runs = [choice.plain, *choice.fixed, choice.scheduled]
    return {
        "sentence": choice.sentence,
        "verdict": choice.verdict,
        "meets_limits": choice.meets_limits,
        "objective": choice.objective,
        "best": choice.best.label,
        "best_fixed": choice.best_fixed.label,
        "runs": [serving_dict(run, timeline=False) for run in runs],
        "skipped": dict(choice.plain.stats.skipped),
    }


def durations_dict(durations: Durations) -> dict[str, float | None]:
    """Mean, standard error, quantiles and extremes; null if there are no durations."""
    values = {
        "mean_s": durations.mean_s,
        "standard_error_s": durations.standard_error_s,
        **{f"p{round(100 * q)}_s": durations.quantile_s(q) for q in QUANTILES},
        "least_s": durations.least_s,
        "most_s": durations.most_s,
    }
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def _bounds(counts: list[int]) -> dict[str, int]:
    return {name: count for name, count in zip(BOUNDS, counts, strict=True) if count}


def _shares(seconds: dict[int, float]) -> dict[str, float]:
    total = sum(seconds.values()) or 1.0
    return {str(gamma): part / total for gamma, part in sorted(seconds.items())}


def _with_mean_lengths(base: Scenario, workload: Mapping[str, Any], token_budget: int) -> Scenario:
    """The scenario with the mean lengths and hits of requests."""
    prompt, output = (
        max(1, round(workload[name]["mean"])) for name in ("prompt_tokens", "output_tokens")
    )
    budget = base.plan.kv_budget_tokens
    return replace(
        base,
        workload=replace(
            base.workload,
            prompt_tokens=prompt,
            output_tokens=output,
            prefix_hit_rate=workload["prefix_hit_share"],
        ),
        plan=replace(base.plan, kv_budget_tokens=None if budget is None else min(budget, prompt)),
        engine=base.engine.changed(prefill_chunk_tokens=token_budget),
    )


def _saturated(scenario: Scenario) -> tuple[list[float], float | None]:
    """The closed form of a saturated service.

    Returns the requests per second that it finishes without speculation and with the scenario's
    plan, and their ratio, which is None without a plan or a known acceptance.
    """
    rates = [float(service(without_speculation(scenario)).requests_per_s)]
    if scenario.plan.speculates:
        rates.append(float(service(scenario).requests_per_s))
    known = [rate for rate in rates if math.isfinite(rate)]
    return known, known[1] / known[0] if len(known) > 1 else None


def _gain(plain: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios of plain decoding to this run: above 1 where this run is faster."""

    def ratio(before: float | None, after: float | None) -> float | None:
        return before / after if before and after else None

    latency = None
    if "latency" in run:
        latency = ratio(plain["latency"]["mean_s"], run["latency"]["mean_s"])
    return {
        "label": run["label"],
        "tpot": ratio(plain["tpot"]["mean_s"], run["tpot"]["mean_s"]),
        "latency": latency,
        "makespan": ratio(plain["makespan_s"], run["makespan_s"]),
    }
