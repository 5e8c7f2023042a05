"""Predictions as JSON data (see docs/reference/json.md)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from perfmodel.acceptance.tokens import accepted_distribution
from perfmodel.errors import DoesNotFit
from perfmodel.flat_values import scenario_dict
from perfmodel.passes.memory import TERMS, largest_batch
from perfmodel.passes.parts import GROUPS
from perfmodel.scenario import Scenario
from perfmodel.speculation.evidence import Evidence, acceptance_origin, evidence, waiting_notes
from perfmodel.speculation.round import RoundEstimate, without_speculation
from perfmodel.speculation.uncertainty.intervals import (
    Interval,
    speedup_interval,
    tpot_interval,
    ttft_interval,
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
        "tokens_per_round": number(point.tokens_per_round),
        "tpot_s": number(point.tpot_s),
        "tpot_interval_90": ends(tpot_interval(scenario)),
        "plain_tpot_s": float(point.plain_tpot_s),
        "plain_tpot_interval_90": ends(tpot_interval(without_speculation(scenario))),
        "speedup": number(point.speedup),
        "speedup_low": None if interval is None else interval.low,
        "speedup_high": None if interval is None else interval.high,
        "break_even_acceptance": number(point.break_even_alpha),
        "throughput_tokens_per_s": number(scenario.workload.batch / point.tpot_s),
        "ttft_s": float(point.ttft_s),
        "ttft_interval_90": ends(ttft_interval(point)),
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
        "notes": [*scenario.notes, *waiting_notes(point)],
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
        "alpha": number(point.alpha),
        "accepted_drafts": tokens - 1.0 if known else None,
        "accepted_fraction": (tokens - 1.0) / gamma if known else None,
        "tokens_per_round": number(tokens),
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


def ends(interval: Interval | None) -> list[float] | None:
    """The ends of an interval for JSON; None if there is none."""
    return None if interval is None else [interval.low, interval.high]


def number(value: Any) -> float | None:
    """A number for JSON; None if it is unknown or infinite."""
    found = float(np.asarray(value))
    return found if math.isfinite(found) else None
