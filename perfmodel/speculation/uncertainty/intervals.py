"""Intervals, sensitivities and P(speedup > 1), from the errors of acceptance and step times."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats
from perfmodel.acceptance.tokens import Acceptance, tokens_per_round
from perfmodel.scenario import Scenario
from perfmodel.specs.draft import DraftPolicy
from perfmodel.specs.engine import EngineProfile, HostCosts
from perfmodel.specs.labels import Origin
from perfmodel.specs.model import ModelSpec
from perfmodel.speculation.prompt import prompt_ends
from perfmodel.speculation.round import RoundEstimate, estimate, without_speculation
from perfmodel.speculation.uncertainty.step_error import ratio_error, time_error
from perfmodel.units import Z90

WEAK_EVIDENCE = 0.95  # the most that P(gain > 1) may be if α is borrowed or has one point
# Published acceptance of heads was counted with prompts of up to about this many tokens. Beyond it,
# those that are trained apart from their target lose acceptance, by how much was not measured here:
# the interval reaches from the published value to a loss that grows with this power of the context.
# (OWL, arXiv 2510.07535, reports that EAGLE-3 is slower than plain decoding at 4,000 to 64,000
# tokens, with 1.28 tokens per round; the exponent gives 1.3 at 32,000. Figures from memory.)
SHORT_HEADS = ("eagle3", "p-eagle", "dflash")
HEAD_CONTEXT, HEAD_EXPONENT = 4096.0, 0.6
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


def alpha_range(
    scenario: Scenario,
    prompt_tokens: ArrayLike | None = None,
    kv_budget_tokens: ArrayLike | None = None,
) -> tuple[Floats, Floats, Floats] | None:
    """(low, value, high) of the mean α over contexts and budgets; None if acceptance is unknown.

    The defaults are the scenario's. Published acceptance of a head that was not trained with its
    target has a lower end that falls with contexts beyond `HEAD_CONTEXT`.
    """
    given, curve, plan = scenario.acceptance, scenario.curve, scenario.plan
    stated = scenario.workload.prompt_tokens if prompt_tokens is None else prompt_tokens
    context = np.asarray(stated, float)
    if given is not None:
        low: Floats = np.asarray(given.low)
        if plan.draft in SHORT_HEADS and given.origin != Origin.GIVEN and given.alpha < 1.0:
            loss = 1.0 - given.alpha
            by_context = HEAD_EXPONENT * np.log(np.maximum(context / HEAD_CONTEXT, 1.0))
            width = np.hypot(math.log((1.0 - given.low) / loss), by_context)
            low = np.maximum(1.0 - loss * np.exp(width), 0.0)
        return low, np.asarray(given.alpha), np.asarray(given.high)
    if curve is None:
        return None
    budget = plan.budget_at(context) if kv_budget_tokens is None else kv_budget_tokens
    read = context if plan.policy == DraftPolicy.FULL else np.asarray(budget, float)
    low, high = curve.interval(kv_budget_tokens=read, context_tokens=context)
    return low, curve.alpha(kv_budget_tokens=read, context_tokens=context), high


def alpha_interval(scenario: Scenario) -> tuple[float, float, float] | None:
    """(low, value, high) of the scenario's mean α; None if acceptance is unknown."""
    ends = alpha_range(scenario)
    return None if ends is None else (float(ends[0]), float(ends[1]), float(ends[2]))


def speedup_interval(scenario: Scenario) -> Interval | None:
    """90 % interval of the speedup; None without speculation or if acceptance is unknown.

    Independent errors add in quadrature, as logarithms and on each side: the interval of α, mapped
    through Ω, and the error of the ratio of step times (`ratio_error`). No round is shorter than a
    plain step, so the high end is at most Ω at the high end of α.
    """
    alphas = alpha_interval(scenario)
    if alphas is None or not scenario.plan.speculates:
        return None
    point = estimate(scenario)
    low, middle, high = (_speedup_at(point, alpha) for alpha in alphas)
    model = Z90 * float(ratio_error(scenario, point))
    below = math.hypot(math.log(middle / low), model)
    above = math.hypot(math.log(high / middle), model)
    most = high * float(point.break_even_tokens_per_round)
    top = max(middle, min(middle * math.exp(above), most))
    return Interval(low=middle * math.exp(-below), value=middle, high=top)


def tpot_interval(scenario: Scenario) -> Interval | None:
    """90 % interval of the time per token of decoding alone; None if acceptance is unknown. [s]

    Without a draft it is that of T_T, or of the host's work if that takes longer.
    """
    alphas = alpha_interval(scenario) if scenario.plan.speculates else (1.0, 1.0, 1.0)
    if alphas is None:
        return None
    at = (_at_alpha(scenario, alpha) for alpha in alphas)
    slow, middle, fast = (float(estimate(changed).tpot_s) for changed in at)
    error = Z90 * time_error(scenario)
    below = math.hypot(math.log(middle / fast), error)
    above = math.hypot(math.log(slow / middle), error)
    return Interval(low=middle * math.exp(-below), value=middle, high=middle * math.exp(above))


def ttft_interval(point: RoundEstimate) -> Interval:
    """90 % interval of the time to the first token on an idle machine. [s]

    The errors of the prompt (`prompt_ends`) and of the step after it are independent.
    """
    plain, step_s = without_speculation(point.scenario), float(point.plain_tpot_s)
    error, value = time_error(plain), float(point.ttft_s)
    low, prompt_s, high = (float(end) for end in prompt_ends(point.scenario, error=error))
    below = math.hypot(prompt_s - low, step_s * -math.expm1(-Z90 * error))
    above = math.hypot(high - prompt_s, step_s * math.expm1(Z90 * error))
    return Interval(low=value - below, value=value, high=value + above)


def probability_of_gain(scenario: Scenario) -> float | None:
    """P(decode speedup > 1); None as for `speedup_interval`."""
    interval = speedup_interval(scenario)
    return None if interval is None else interval_probability(interval, scenario)


def interval_probability(interval: Interval, scenario: Scenario) -> float:
    """P(gain > 1), assuming a log-normal distribution on each side of the prediction.

    At most 95 % if `acceptance_is_weak`: such a curve may not apply to this plan at all, which the
    interval does not include. 0 if no draft token is ever accepted.
    """
    alphas = alpha_interval(scenario)
    if alphas is not None and alphas[2] == 0.0:
        return 0.0
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
    One that was carried to another KV budget is outside too.
    """
    curve, context = scenario.curve, scenario.workload.prompt_tokens
    if scenario.acceptance is not None:
        origin = scenario.acceptance.origin
        is_published = scenario.plan.method is not None and origin != Origin.GIVEN
        return is_published or origin == Origin.EXTRAPOLATED
    if curve is None or not scenario.plan.speculates:
        return False
    budget = scenario.plan.budget_at(context)
    return bool(curve.is_outside(kv_budget_tokens=budget, context_tokens=context))


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


# The engine's overheads; the excluded field is a time of kernels.
_OVERHEADS = tuple(
    f.name for f in fields(EngineProfile) if f.name.endswith("_s") and f.name != "sampling_s"
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
