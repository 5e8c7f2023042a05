"""Recommendations as JSON data (see docs/reference/json.md)."""

from __future__ import annotations

import math
from typing import Any

from perfmodel.flat_values import scenario_dict
from perfmodel.planning.candidate import Candidate, plan_label
from perfmodel.planning.capacity import Capacity, Fleet
from perfmodel.planning.recommendation import Recommendation
from perfmodel.reports.prediction import ends, evidence_dict, number
from perfmodel.speculation.evidence import acceptance_origin
from perfmodel.speculation.paying_ranges import BreakEven
from perfmodel.speculation.uncertainty.intervals import alpha_interval


def candidate_dict(candidate: Candidate, cost: float | None = None) -> dict[str, Any]:
    """One plan of a recommendation; `cost` is the price of a million output tokens."""
    scenario = candidate.scenario
    alphas = alpha_interval(scenario)
    origin, source = acceptance_origin(scenario)
    return {
        "label": plan_label(scenario),
        "gain": number(candidate.gain),
        "tpot_s": number(candidate.tpot_s),
        "ttft_s": number(candidate.ttft_s),
        "requests_per_s": number(candidate.requests_per_s),
        "throughput_per_gpu": number(candidate.throughput_per_gpu),
        "prefill_share": number(candidate.prefill_share),
        "cost_per_million_tokens": None if cost is None else number(cost),
        "decode_speedup": number(candidate.decode_speedup),
        "decode_tpot_s": number(candidate.decode_tpot_s),
        "decode_throughput_per_gpu": number(candidate.decode_throughput_per_gpu),
        "tokens_per_round": number(candidate.tokens_per_round),
        "acceptance": None
        if alphas is None or not scenario.plan.speculates
        else dict(zip(("low", "alpha", "high"), alphas, strict=True)),
        "acceptance_origin": origin,
        "acceptance_source": source,
        "memory_fraction": candidate.memory_fraction,
        "scenario": scenario_dict(scenario),
    }


def recommendation_dict(answer: Recommendation) -> dict[str, Any]:
    """A recommendation and its explanation."""
    binding, gap, schedule = answer.binding, answer.engine_gap, answer.schedule

    def plan(candidate: Candidate) -> dict[str, Any]:
        return candidate_dict(candidate, answer.cost_per_million_tokens(candidate))

    return {
        "sentence": answer.sentence,
        "answer": answer.answer,
        "prefill": answer.prefill,
        "verdict": str(answer.verdict),
        "speculate": answer.speculates,
        "objective": answer.rule.objective,
        "evidence": evidence_dict(answer.evidence),
        "best": plan(answer.best),
        "full_load": None
        if answer.for_rate is None
        else {
            "verdict": str(answer.saturated_verdict),
            "speculate": answer.saturated.scenario.plan.speculates,
            "best": plan(answer.saturated),
        },
        "without_speculation": plan(answer.plain),
        "without_speculation_meets_limits": answer.plain_meets_limits,
        "tpot_interval_90": ends(answer.tpot),
        "length_limit": answer.length_limit,
        "tpot_limit": answer.tpot_limit,
        "gain_interval_90": ends(answer.interval),
        "advantage": None if answer.advantage is None else number(answer.advantage.value),
        "advantage_interval_90": ends(answer.advantage),
        "decode_speedup_interval_90": ends(answer.decode_interval),
        "gain_probability": answer.gain_probability,
        "faster": None
        if answer.faster is None
        else {
            "sentence": answer.why_not_fastest,
            "lead_interval_90": ends(answer.faster.lead),
            **plan(answer.faster.candidate),
        },
        "runners_up": [plan(c) for c in answer.runners_up],
        "unmeasured": [
            {"alpha_to_break_even": number(u.alpha_to_break_even), **plan(u.candidate)}
            for u in answer.unmeasured
        ],
        "binding": None
        if binding is None
        else {
            "name": binding.name,
            "cost_percent": binding.cost_percent,
            "without": plan(binding.without),
        },
        "engine_gap": None
        if gap is None
        else {
            "sentence": answer.in_principle,
            "reason": gap.obstacle,
            "cost_percent": gap.cost_percent,
            "ideal": plan(gap.ideal),
        },
        "capacity": None if answer.capacity is None else capacity_dict(answer.capacity),
        "fleet": None if answer.fleet is None else fleet_dict(answer.fleet, answer.price_per_hour),
        "fleet_without_speculation": None
        if answer.plain_fleet is None
        else fleet_dict(answer.plain_fleet, answer.price_per_hour),
        "studied": None if answer.studied is None else plan(answer.studied),
        "break_even_acceptance": number(
            math.nan if answer.alpha_to_break_even is None else answer.alpha_to_break_even
        ),
        **_break_even("break_even_batch", answer.batch),
        **_break_even("break_even_prompt_tokens", answer.context),
        "gamma_schedule": None
        if schedule is None
        else {
            "batch": list(schedule.batches),
            "prompt_tokens": list(schedule.contexts),
            "gamma": [list(row) for row in schedule.gamma],
            "is_clear": schedule.clear,
        },
        "fastest_gamma": answer.fastest_gamma,
        "plateau_gamma": answer.plateau_gamma,
        "sensitivities": [
            {"name": s.name, "change": s.change, "gain_low": s.low, "gain_high": s.high}
            for s in answer.sensitivities
        ],
        "notes": list(answer.notes),
    }


def capacity_dict(capacity: Capacity) -> dict[str, Any]:
    """The largest concurrency of a plan within the limits."""
    return {
        "label": capacity.candidate.label,
        "tp": capacity.candidate.scenario.tp,
        "concurrency": capacity.concurrency,
        "saturation": capacity.saturation,
        "requests_per_s": capacity.requests_per_s,
        "tpot_s": capacity.tpot_s,
        "ttft_s": capacity.ttft_s,
    }


def fleet_dict(fleet: Fleet, price: float | None) -> dict[str, Any]:
    """The GPUs that serve a rate of requests, and their cost if a price of an hour is given."""
    return {
        "rate": fleet.rate,
        "gpus": fleet.gpus,
        "replicas": fleet.replicas,
        "load": fleet.load,
        "cost_per_million_tokens": None if price is None else fleet.cost_per_million_tokens(price),
        "replica": capacity_dict(fleet.capacity),
        "scenario": scenario_dict(fleet.capacity.scenario),
    }


def _break_even(key: str, found: BreakEven | None) -> dict[str, Any]:
    """The values at which speculation pays, under keys that start with `key`."""
    return {
        key: found and found.from_value,
        f"{key}_until": found and found.until,
        f"{key}_ranges": found and [list(span) for span in found.ranges],
        f"{key}_end": found and found.end,
        f"{key}_most_gamma": found and found.most_gamma,
        f"{key}_is_clear": found and found.clear,
    }
