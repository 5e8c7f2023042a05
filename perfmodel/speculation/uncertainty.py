"""Intervals, sensitivities and P(speedup > 1), from the errors of acceptance and step times."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from perfmodel.acceptance.tokens import Acceptance, tokens_per_round
from perfmodel.scenario import Scenario
from perfmodel.specs.engine import EngineProfile, HostCosts
from perfmodel.specs.labels import Origin
from perfmodel.specs.model import ModelSpec
from perfmodel.speculation.round import RoundEstimate, estimate
from perfmodel.speculation.step_error import ratio_error
from perfmodel.units import Z90

WEAK_EVIDENCE = 0.95  # the most that P(gain > 1) may be if α is borrowed or has one point
SKEW = 0.75  # of a mixture's experts: about as unequal as the power-law loads of the tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A 90 % interval around a prediction."""

    low: float
    value: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The range of the speedup when one input changes and all others stay the same."""

    name: str
    change: str
    low: float
    high: float


def alpha_interval(scenario: Scenario) -> tuple[float, float, float] | None:
    """(low, value, high) of the scenario's mean α; None if acceptance is unknown."""
    given = scenario.acceptance
    if given is not None:
        return given.low, given.alpha, given.high
    plan, curve = scenario.plan, scenario.curve
    if curve is None:
        return None
    context = scenario.workload.prompt_tokens
    at = {
        "kv_budget_tokens": float(plan.budget_at(context)) or context,
        "context_tokens": context,
    }
    low, high = curve.interval(**at)
    return float(low), float(curve.alpha(**at)), float(high)


def speedup_interval(scenario: Scenario) -> Interval | None:
    """90 % interval of the speedup; None without speculation or if acceptance is unknown.

    Notes
    -----
    Independent errors add in quadrature, as logarithms and on each side: the interval of α, mapped
    through Ω, and the error of the ratio of step times (`ratio_error`).
    """
    alphas = alpha_interval(scenario)
    if alphas is None or not scenario.plan.speculates:
        return None
    point = estimate(scenario)
    low, middle, high = (_speedup_at(point, alpha) for alpha in alphas)
    model = Z90 * ratio_error(scenario, point)
    below = math.hypot(math.log(middle / low), model)
    above = math.hypot(math.log(high / middle), model)
    return Interval(low=middle * math.exp(-below), value=middle, high=middle * math.exp(above))


def probability_of_gain(scenario: Scenario) -> float | None:
    """P(decode speedup > 1); None as for `speedup_interval`."""
    interval = speedup_interval(scenario)
    return None if interval is None else interval_probability(interval, scenario)


def interval_probability(interval: Interval, scenario: Scenario) -> float:
    """P(gain > 1), assuming a log-normal distribution on each side of the prediction.

    At most 95 % if `acceptance_is_weak`: such a curve may not apply to this plan at all, which the
    interval does not include.
    """
    edge = interval.low if interval.value > 1 else interval.high
    spread = abs(math.log(interval.value / edge)) / Z90
    if spread == 0.0:
        chance = 0.5 * (1.0 + np.sign(interval.value - 1.0))
    else:
        chance = 0.5 * math.erfc(-math.log(interval.value) / (spread * math.sqrt(2)))
    return min(float(chance), WEAK_EVIDENCE) if acceptance_is_weak(scenario) else float(chance)


def acceptance_is_weak(scenario: Scenario) -> bool:
    """Whether α is borrowed, rests on one point, or is used outside the measured range."""
    curve = scenario.curve
    if scenario.acceptance is not None:
        return acceptance_is_extrapolated(scenario)
    if curve is None or curve.origin == Origin.IDENTITY:
        return False
    is_thin = curve.origin == Origin.BORROWED or len(curve.points) == 1
    return is_thin or acceptance_is_extrapolated(scenario)


def acceptance_is_extrapolated(scenario: Scenario) -> bool:
    """Whether budget or context lie outside the range in which the acceptance was measured.

    Published acceptances of built-in drafts are of short prompts, and their lengths are not stated.
    """
    curve, context = scenario.curve, scenario.workload.prompt_tokens
    if scenario.acceptance is not None:
        return scenario.plan.method is not None and scenario.acceptance.origin != Origin.GIVEN
    if curve is None or not scenario.plan.speculates:
        return False
    low, high = curve.context_range
    if not low <= context <= high:
        return True
    budget = float(scenario.plan.budget_at(context))
    return budget > 0 and not curve.budget_range[0] <= budget <= curve.budget_range[1]


def decode_speedup(scenario: Scenario) -> float:
    """The speedup of decoding alone, as `estimate` predicts it."""
    return float(estimate(scenario).speedup)


def sensitivities(
    scenario: Scenario, gain: Callable[[Scenario], float] = decode_speedup
) -> list[Sensitivity]:
    """The gain when α, bandwidth, compute, overheads or the choice of experts change."""
    results = []
    alphas = alpha_interval(scenario)
    if alphas is not None:
        shifts = [float(np.clip(alphas[1] + delta, 0.0, 1.0)) for delta in (-0.05, 0.05)]
        low, high = (gain(_at_alpha(scenario, alpha)) for alpha in shifts)
        results.append(Sensitivity(name="acceptance", change="±0.05", low=low, high=high))
    for name, change, worse, better in _hardware_changes(scenario):
        low, high = gain(worse), gain(better)
        results.append(Sensitivity(name=name, change=change, low=low, high=high))
    if scenario.target.experts is not None:
        low, high = sorted((gain(scenario), gain(_skewed(scenario))))
        change = f"uniform or Zipf {SKEW:g}"
        results.append(Sensitivity(name="choice of experts", change=change, low=low, high=high))
    return results


def _skewed(scenario: Scenario) -> Scenario:
    """The scenario with some experts more popular than others, also in the draft."""

    def of(spec: ModelSpec) -> ModelSpec:
        if spec.experts is None:
            return spec
        return replace(spec, experts=replace(spec.experts, skew=SKEW))

    draft = scenario.draft
    return replace(scenario, target=of(scenario.target), draft=None if draft is None else of(draft))


def _hardware_changes(scenario: Scenario) -> list[tuple[str, str, Scenario, Scenario]]:
    def on_gpu(field: str, factor: float) -> Scenario:
        gpu = scenario.machine.gpu
        changed = replace(gpu, **{field: getattr(gpu, field) * factor})
        return replace(scenario, machine=replace(scenario.machine, gpu=changed))

    def on_engine(factor: float) -> Scenario:
        engine = scenario.engine
        scaled = {f: getattr(engine, f) * factor for f in _OVERHEADS}
        host = tuple(
            replace(costs, **{f: getattr(costs, f) * factor for f in _HOST_COSTS})
            for costs in engine.host
        )
        return replace(scenario, engine=replace(engine, **scaled, host=host))

    return [
        (
            "bandwidth efficiency",
            "±10 %",
            on_gpu("hbm_bandwidth", 0.9),
            on_gpu("hbm_bandwidth", 1.1),
        ),
        ("compute efficiency", "±10 %", on_gpu("peak_flops", 0.9), on_gpu("peak_flops", 1.1)),
        ("engine overhead", "x2 and none", on_engine(2.0), on_engine(0.0)),
    ]


# The engine's overheads; the two excluded fields are times of kernels.
_OVERHEADS = tuple(
    f.name
    for f in fields(EngineProfile)
    if f.name.endswith("_s") and f.name not in ("sampling_column_s", "rank_choice_s")
)
_HOST_COSTS = tuple(f.name for f in fields(HostCosts) if f.name.endswith("_s"))


def _speedup_at(point: RoundEstimate, alpha: float) -> float:
    """The speedup with acceptance shifted to mean `alpha`, which changes no time."""
    acceptance = _at_alpha(point.scenario, alpha).acceptance
    assert acceptance is not None
    tokens = tokens_per_round(acceptance, point.gamma)
    return float(replace(point, tokens_per_round=tokens).speedup)


def _at_alpha(scenario: Scenario, alpha: float) -> Scenario:
    """The scenario with its acceptance shifted to mean `alpha`."""
    given = scenario.acceptance or Acceptance.from_alpha(alpha)
    return replace(scenario, acceptance=given.shifted(alpha - given.alpha))
