"""Predict the quantities that a validation run times; no measured time is used here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from calibration.records.steps import (
    CHUNK_TOKENS,
    Case,
    at_full_clock,
    case_scenario,
    prompt_chunks,
)
from perfmodel import EngineProfile, RoundEstimate, Scenario, StepTime, estimate
from perfmodel.catalog.engines import engine_profile


def bench_scenario(
    case: Case, *, gpu: str, engine: str = "specroof", curves_of: str | None = None
) -> Scenario:
    """The scenario of a case as `StepBench` times it, where a plain step is one graph replay."""
    scenario = case_scenario(case, gpu=gpu, engine=engine)
    profile = scenario.engine
    if curves_of:
        profile = engine_profile(engine, scenario.machine.gpu, curves_of=curves_of)
    timed = profile.changed(prefill_chunk_tokens=CHUNK_TOKENS, plain_runs_ahead=False)
    return replace(scenario, engine=timed)


def full_clock(engine: EngineProfile) -> EngineProfile:
    """The profile before the power limit lowers the clock, as in short runs."""
    return engine.changed(compute_factor=1.0, sustained_attention_factor=1.0)


def phases_of(point: RoundEstimate, *, to_tokens: bool) -> dict[str, float]:
    """Seconds of T_T, T_V and T_D as `StepBench` times them: short passes at the full clock.

    T_T and T_V end at the logits unless `to_tokens`.
    """
    return _timed_phases(point, _brief(point), to_tokens)


def _timed_phases(point: RoundEstimate, full: RoundEstimate, to_tokens: bool) -> dict[str, float]:
    """The phases of a point, and of the same one at the full clock where a pass is short."""
    long, brief = _phases(point, to_tokens), _phases(full, to_tokens)
    repeats = {"draft_step_s": float(point.scenario.plan.gamma)}  # drafts of a replay
    return {
        name: seconds if at_full_clock(seconds * repeats.get(name, 1.0)) else long[name]
        for name, seconds in brief.items()
    }


def _brief(point: RoundEstimate) -> RoundEstimate:
    engine = full_clock(point.scenario.engine)
    if engine == point.scenario.engine:
        return point
    return estimate(replace(point.scenario, engine=engine))


def _phases(point: RoundEstimate, to_tokens: bool) -> dict[str, float]:
    draft = 0.0 if point.draft_step is None else float(point.draft_step.total_s)
    return {
        "target_step_s": float(timed_pass(point.target_step, to_tokens).total_s),
        "verify_s": float(timed_pass(point.verify, to_tokens).total_s),
        "draft_step_s": draft,
    }


def predicted_times(
    point: RoundEstimate, *, to_tokens: bool, prompt_tokens: int = 0
) -> dict[str, float]:
    """Every timed quantity of a record; the prefill only if there are `prompt_tokens`."""
    brief = _brief(point)
    phases = _timed_phases(point, brief, to_tokens)
    brief_s, round_s = float(brief.round_s), float(point.round_s)
    timed_s = brief_s if at_full_clock(brief_s, is_round=True) else round_s
    speedup = phases["target_step_s"] / float(point.tpot_s) * round_s / timed_s
    times = phases | {"round_s": timed_s, "speedup": speedup}
    if prompt_tokens:
        times["prefill_s"] = prefill_s(point.scenario, prompt_tokens)
    return times


def prefill_s(scenario: Scenario, tokens: int) -> float:
    """Seconds to prefill one prompt in the bench's chunks, up to the last hidden state."""
    launches = scenario.target.layers * scenario.engine.eager_launch_s(scenario.group_tp)
    return sum(max(launches, seconds) for seconds in prompt_chunks(scenario, tokens))


def timed_pass(step: StepTime, to_tokens: bool) -> StepTime:
    """The timed part of a target pass: up to the tokens, or up to the logits in older records."""
    if to_tokens:
        return step
    return StepTime(tuple(part for part in step.parts if part.name != "sampling"))


def datasheet_times(point: RoundEstimate) -> dict[str, float]:
    """Seconds of each phase if every part ran at the datasheet's peaks without gaps."""

    def at_peak(step: StepTime) -> float:
        busy = [float(np.maximum(p.compute_s, p.memory_s)) for p in step.parts if p.name != "host"]
        return sum(busy)

    steps = {"target_step_s": point.target_step, "verify_s": point.verify}
    if point.draft_step is not None:
        steps["draft_step_s"] = point.draft_step
    return {name: at_peak(step) for name, step in steps.items()}
