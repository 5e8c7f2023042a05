"""Predictions and recommendations as JSON data (see docs/reference/json.md)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from perfmodel.acceptance.tokens import accepted_distribution
from perfmodel.errors import DoesNotFit
from perfmodel.flat_values import scenario_dict
from perfmodel.passes.memory import TERMS, largest_batch
from perfmodel.passes.parts import GROUPS
from perfmodel.planning.candidate import Candidate, plan_label
from perfmodel.planning.capacity import Capacity, Fleet
from perfmodel.planning.recommendation import Recommendation
from perfmodel.scenario import Scenario
from perfmodel.speculation.evidence import Evidence, acceptance_origin, evidence
from perfmodel.speculation.paying_ranges import BreakEven
from perfmodel.speculation.round import RoundEstimate, without_speculation
from perfmodel.speculation.uncertainty import (
    Interval,
    alpha_interval,
    speedup_interval,
    tpot_interval,
)


def prediction_dict(point: RoundEstimate) -> dict[str, Any]:
    """One prediction, in seconds, bytes and tokens; null where acceptance is unknown."""
    scenario = point.scenario
    interval = None if math.isnan(point.speedup) else speedup_interval(scenario)
    return {
        "target_step_s": float(point.target_step.total_s),
        "verify_s": float(point.verify.total_s),
        "draft_step_s": float(point.draft_step_s),
        "overhead_s": float(point.overhead_s),
        "round_s": float(point.round_s),
        "tokens_per_round": _number(point.tokens_per_round),
        "tpot_s": _number(point.tpot_s),
        "tpot_interval_90": _ends(tpot_interval(scenario)),
        "plain_tpot_s": float(point.plain_tpot_s),
        "plain_tpot_interval_90": _ends(tpot_interval(without_speculation(scenario))),
        "speedup": _number(point.speedup),
        "speedup_low": None if interval is None else interval.low,
        "speedup_high": None if interval is None else interval.high,
        "break_even_acceptance": _number(point.break_even_alpha),
        "throughput_tokens_per_s": _number(scenario.workload.batch / point.tpot_s),
        "ttft_s": float(point.ttft_s),
        "memory_bytes_per_gpu": float(point.memory.total),
        "feasible": bool(point.feasible),
        "reason": infeasible_reason(point),
        "origin": origins(point),
        "evidence": evidence_dict(evidence(scenario, point)),
        "scenario": scenario_dict(scenario),
        "acceptance": acceptance_dict(point),
        "types": types_dict(scenario),
        "memory": memory_dict(point),
        "breakdown": breakdown_dict(point),
        **({"experts": experts_dict(point)} if scenario.target.experts else {}),
        "notes": list(scenario.notes),
    }


def experts_dict(point: RoundEstimate) -> dict[str, Any]:
    """The experts that each pass of a mixture reads, and what that adds to T_V."""
    experts, gamma = point.scenario.target.experts, float(point.gamma)
    assert experts is not None
    batch = point.scenario.workload.batch
    plain, verified = (float(experts.read(batch * tokens)) for tokens in (1.0, gamma + 1.0))
    steps = (point.target_step, point.verify)
    totals = [float(step.total_s) for step in steps]
    added = totals[1] - totals[0]
    of_experts = float(steps[1].group_s("experts") - steps[0].group_s("experts"))
    reason = f"{plain:.0f} of {experts.count} experts are read per layer in a plain step"
    if gamma:
        reason += f", {verified:.0f} in a verification: T_V/T_T is {totals[1] / totals[0]:.2f}"
        if added > 0:
            share = min(max(of_experts / added, 0.0), 1.0)
            reason += f", and experts account for {share:.0%} of T_V - T_T"
    return {
        "layers": experts.layers,
        "experts": experts.count,
        "per_token": experts.top_k,
        "read_by_target_step": plain,
        "read_by_verify": verified,
        "verify_over_target_step": totals[1] / totals[0],
        "reason": reason,
    }


def infeasible_reason(point: RoundEstimate) -> str:
    """Why the plan does not fit in memory, with the arithmetic; empty if it fits."""
    if bool(point.memory.fits):
        return ""
    best = largest_batch(point.scenario)
    fits = f"the largest batch that fits is {best}" if best else "not even a batch of 1 fits"
    return f"{point.memory.account()}; {fits}"


def check_fits(point: RoundEstimate) -> None:
    """Raise `DoesNotFit`, with the arithmetic, if the plan does not fit in memory."""
    if reason := infeasible_reason(point):
        raise DoesNotFit(reason)


def evidence_dict(evidence: Evidence) -> dict[str, Any]:
    """What a prediction is based on, as a sentence and in parts."""
    return {
        "sentence": evidence.sentence,
        "acceptance": evidence.acceptance,
        "engine": evidence.engine,
        "extrapolated": list(evidence.extrapolated),
        "outside": list(evidence.outside),
    }


def origins(point: RoundEstimate) -> dict[str, str]:
    """The origin of each number: "fitted", "extrapolated", "assumed", "given", "borrowed" ..."""
    steps = {"target_step_s": point.target_step, "verify_s": point.verify}
    if point.draft_step is not None:
        steps["draft_step_s"] = point.draft_step
    engine = point.scenario.engine.origin
    return {
        **{name: step.origin for name, step in steps.items()},
        "overhead_s": engine,
        "tokens_per_round": acceptance_origin(point.scenario)[0],
        "memory_bytes_per_gpu": "datasheet",
    }


def acceptance_dict(point: RoundEstimate) -> dict[str, Any]:
    """The acceptance as α, accepted fraction, accepted drafts and tokens per round."""
    origin, source = acceptance_origin(point.scenario)
    gamma, tokens = int(point.gamma), float(point.tokens_per_round)
    known = gamma > 0 and not math.isnan(tokens)
    result: dict[str, Any] = {
        "alpha": _number(point.alpha),
        "accepted_drafts": tokens - 1.0 if known else None,
        "accepted_fraction": (tokens - 1.0) / gamma if known else None,
        "tokens_per_round": _number(tokens),
        "origin": origin,
        "source": source,
    }
    given = point.scenario.acceptance
    if given is not None and known:
        result["per_position"] = [
            given.per_position[min(i, len(given.per_position) - 1)] for i in range(gamma)
        ]
        result["distribution"] = [float(p) for p in accepted_distribution(given, gamma)]
    return result


def memory_dict(point: RoundEstimate) -> dict[str, float]:
    """Bytes per GPU by term."""
    memory = point.memory
    terms = {f"{name}_bytes": float(getattr(memory, name)) for name in TERMS}
    return {**terms, "total_bytes": float(memory.total), "capacity_bytes": memory.capacity}


def types_dict(scenario: Scenario) -> dict[str, Any]:
    """Storage types of weights, routed experts and KV caches; None for what there is not.

    `parts` are the dense layers in other types than `weights`; absent if there are none.
    """
    target, draft = scenario.target_types, scenario.draft_types
    models = {"": (scenario.target, target), "draft_": (scenario.draft, draft)}
    stated: dict[str, Any] = {
        f"{whose}{name}": value if spec and (name != "experts" or spec.experts) else None
        for whose, (spec, types) in models.items()
        for name, value in types._asdict().items()
        if name != "parts"
    }
    parts = {f"{whose}parts": dict(types.parts) for whose, (spec, types) in models.items() if spec}
    return stated | {name: value for name, value in parts.items() if value}


def breakdown_dict(point: RoundEstimate) -> dict[str, Any]:
    """Every part of every pass: seconds, what bounds it, and its origin."""
    passes = {"target_step": point.target_step, "verify": point.verify}
    if point.draft_step is not None:
        passes["draft_step"] = point.draft_step
    return {
        name: {
            part.name: {
                "seconds": float(part.seconds),
                "group": GROUPS[part.name],
                "bound": str(part.bound),
                "origin": part.origin_at(),
                "compute_limit_s": float(part.compute_s),
                "memory_limit_s": float(part.memory_s),
            }
            for part in step.parts
        }
        for name, step in passes.items()
    }


def candidate_dict(candidate: Candidate, cost: float | None = None) -> dict[str, Any]:
    """One plan of a recommendation; `cost` is the price of a million output tokens."""
    scenario = candidate.scenario
    alphas = alpha_interval(scenario)
    origin, source = acceptance_origin(scenario)
    return {
        "label": plan_label(scenario),
        "gain": _number(candidate.gain),
        "tpot_s": _number(candidate.tpot_s),
        "ttft_s": _number(candidate.ttft_s),
        "requests_per_s": _number(candidate.requests_per_s),
        "throughput_per_gpu": _number(candidate.throughput_per_gpu),
        "prefill_share": _number(candidate.prefill_share),
        "cost_per_million_tokens": None if cost is None else _number(cost),
        "decode_speedup": _number(candidate.decode_speedup),
        "decode_tpot_s": _number(candidate.decode_tpot_s),
        "decode_throughput_per_gpu": _number(candidate.decode_throughput_per_gpu),
        "tokens_per_round": _number(candidate.tokens_per_round),
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
        "objective": answer.objective,
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
        "tpot_interval_90": _ends(answer.tpot),
        "length_limit": answer.length_limit,
        "tpot_limit": answer.tpot_limit,
        "gain_interval_90": _ends(answer.interval),
        "advantage": None if answer.advantage is None else _number(answer.advantage.value),
        "advantage_interval_90": _ends(answer.advantage),
        "decode_speedup_interval_90": _ends(answer.decode_interval),
        "gain_probability": answer.gain_probability,
        "faster": None
        if answer.faster is None
        else {
            "sentence": answer.why_not_fastest,
            "lead_interval_90": _ends(answer.faster.lead),
            **plan(answer.faster.candidate),
        },
        "runners_up": [plan(c) for c in answer.runners_up],
        "unmeasured": [
            {"alpha_to_break_even": _number(u.alpha_to_break_even), **plan(u.candidate)}
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
        "break_even_acceptance": _number(
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


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _number(value: Any) -> float | None:
    number = float(np.asarray(value))
    return number if math.isfinite(number) else None
