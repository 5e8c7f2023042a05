"""Simulations as JSON data (see docs/reference/json.md)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from perfmodel.serving.choose_gamma import TrafficChoice
from perfmodel.serving.fixed_batch import FixedBatchRun
from perfmodel.serving.round_times import BOUNDS
from perfmodel.serving.simulate import ServingRun
from perfmodel.serving.stats import QUANTILES, RECORD, Durations, ServingStats


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


def workload_dict(stats: ServingStats) -> dict[str, Any]:
    """What the finished requests ask for: their rate, lengths and prefix-cache hits."""
    arrival = stats.finished[:, RECORD.index("arrival_s")]
    span = float(arrival.max() - arrival.min())
    result: dict[str, Any] = {
        "requests": stats.requests,
        "rate_rps": (stats.requests - 1) / span if span else None,
        "prefix_hit_share": stats.prefix_hit_tokens / stats.prompt_tokens,
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
        "objective": choice.objective,
        "best": choice.best.label,
        "best_fixed": choice.best_fixed.label,
        "runs": [serving_dict(run, timeline=False) for run in runs],
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
