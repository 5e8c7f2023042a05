"""`service_gain`: what speculation gains a service, with its 90 % interval, over arrays.

The gain is the ratio to plain decoding of the same requests on the same GPUs: of the throughput, or
of the time per token. Independent errors add in quadrature, as logarithms and on each side: the
interval of α, and the error of the ratio of step times at the scenario's batch and γ
(`ratio_error`). If prompts share the GPUs, the error of their time (`prefill_error`) and that of
the closed form are added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Bools, Floats
from perfmodel.errors import ConfigError, either
from perfmodel.scenario import Scenario
from perfmodel.specs.draft import DraftPolicy
from perfmodel.specs.workload import Prefill
from perfmodel.speculation.round import without_speculation
from perfmodel.speculation.service import ServiceEstimate, mean_rounds, service
from perfmodel.speculation.uncertainty.intervals import Interval, alpha_range
from perfmodel.speculation.uncertainty.step_error import (
    pair_error,
    prefill_error,
    ratio_error,
    time_error,
)
from perfmodel.units import Z90

OBJECTIVES = ("throughput", "latency")
GAMMAS = np.arange(1, 17, dtype=float)
# γ beyond the first that is within 1 % of the best is not worth its drafts.
PLATEAU = 0.01
Ends = tuple[float, float]  # of one plan and another, or shifts of α to both ends of its interval
# Standard error of the ratio of two throughputs of `service`, each of which differs from the
# request simulator by an rms of 1 % (tests/perfmodel/serving/test_saturated.py).
CLOSED_FORM_ERROR = 0.014


@dataclass(frozen=True, eq=False, slots=True)
class Gain:
    """A gain over plain decoding and its 90 % interval; arrays broadcast to one shape."""

    low: Floats
    value: Floats
    high: Floats

    @property
    def is_clear(self) -> Bools:
        """Whether the whole interval is above 1."""
        return np.asarray(self.low > 1.0)


def cost_s(result: ServiceEstimate, objective: str) -> Floats:
    """The minimised quantity: machine seconds per request, or seconds per token of a sequence."""
    if objective not in OBJECTIVES:
        raise ConfigError(f"unknown objective {objective!r}; use {either(OBJECTIVES)}")
    return result.tpot_s if objective == "latency" else 1.0 / result.requests_per_s


def service_gain(
    scenario: Scenario,
    *,
    objective: str = "throughput",
    batch: ArrayLike | None = None,
    prompt_tokens: ArrayLike | None = None,
    gamma: ArrayLike | None = None,
    kv_budget_tokens: ArrayLike | None = None,
) -> Gain:
    """The gain of a scenario's draft at one point or over a grid; NaN where α is unknown.

    The objective is "throughput" (requests per second) or "latency" (time per token of a sequence);
    other arguments are those of `service`.
    """

    at = _At(scenario, objective, batch, prompt_tokens, gamma, kv_budget_tokens)
    value = at.gain()
    ends = alpha_shifts(scenario, prompt_tokens, kv_budget_tokens)
    shifts = np.stack([np.broadcast_to(end, np.shape(value)) for end in ends])
    lowest, highest = at.gain(alpha_shift=shifts)
    error = np.exp(Z90 * at.ratio_error())
    by_prompts, closed = at.prompt_distances(value)

    def width(at_alpha: Floats, other_factor: Floats, side: float) -> Floats:
        by_alpha = np.log(value / at_alpha)
        by_time = np.log(value / at.gain(rounds=other_factor))
        by_prompt: Floats = np.zeros(())
        for distance in by_prompts:
            by_prompt = np.maximum(by_prompt, side * distance)
        return np.asarray(np.sqrt(by_alpha**2 + by_time**2 + by_prompt**2 + closed**2))

    down, up = width(lowest, error, 1.0), width(highest, 1.0 / error, -1.0)
    # No round is shorter than a plain step, so the gain is at most the tokens of a round.
    high = np.maximum(value, np.minimum(value * np.exp(up), at.most_tokens(ends[1])))
    return Gain(low=value * np.exp(-down), value=value, high=high)


def least_width(scenario: Scenario) -> float:
    """The least ln of a gain over the low end of its interval: the error of the closed form."""
    return Z90 * CLOSED_FORM_ERROR if scenario.workload.prefill is Prefill.SHARED else 0.0


def gain_value(scenario: Scenario, objective: str = "throughput") -> float:
    """The gain of a scenario's draft without its interval, in a fifth of the time."""
    return float(_At(scenario, objective, None, None, None, None).gain())


def service_tpot(scenario: Scenario) -> Interval:
    """The time per token of a service, with its 90 % interval. [s]

    The errors are those of α, of the time of a round or plain step (`time_error`), and of prompts.
    """
    at = _At(scenario, "latency", None, None, None, None)
    value, alphas = float(at.cost()), [float(shift) for shift in alpha_shifts(scenario)]
    round_s = math.exp(Z90 * time_error(scenario))
    prompt_s = 1.0
    if scenario.workload.prefill is Prefill.SHARED:
        prompt_s = math.exp(Z90 * float(prefill_error(scenario)))

    def width(alpha: float, rounds: float, prompts: float) -> float:
        changed = (at.cost(alpha or None), at.cost(rounds=rounds), at.cost(prompts=prompts))
        return math.hypot(*(math.log(float(cost) / value) for cost in changed))

    up = width(alphas[0], round_s, prompt_s)
    down = width(alphas[1], 1.0 / round_s, 1.0 / prompt_s)
    return Interval(low=value * math.exp(-down), value=value, high=value * math.exp(up))


@dataclass(frozen=True, eq=False)
class _At:
    """The points of `service_gain`, where inputs can be wrong by a factor or a shift."""

    scenario: Scenario
    objective: str
    batch: ArrayLike | None
    prompt_tokens: ArrayLike | None
    gamma: ArrayLike | None
    kv_budget_tokens: ArrayLike | None

    def gain(
        self,
        alpha_shift: ArrayLike | None = None,
        *,
        rounds: float | Floats = 1.0,
        prompts: float | Floats = 1.0,
    ) -> Floats:
        """The ratio to plain decoding, if rounds, or the prompts of both, take longer."""
        plain = replace(self._plain, prefill_s=self._plain.prefill_s * prompts)
        cost = self.cost(alpha_shift, rounds=rounds, prompts=prompts)
        return cost_s(plain, self.objective) / cost

    def cost(
        self,
        alpha_shift: ArrayLike | None = None,
        *,
        rounds: float | Floats = 1.0,
        prompts: float | Floats = 1.0,
    ) -> Floats:
        """`cost_s` of the draft if α is shifted, or rounds or prompts take longer."""
        known = self._draft if alpha_shift is None else self._service(alpha_shift)
        result = replace(known, round_s=known.round_s * rounds, prefill_s=known.prefill_s * prompts)
        return cost_s(result, self.objective)

    def ratio_error(self) -> Floats:
        """`ratio_error` at each point."""
        work = self.scenario.workload
        batch = work.batch if self.batch is None else self.batch
        prompt = work.prompt_tokens if self.prompt_tokens is None else self.prompt_tokens
        point = self._draft.decode
        return ratio_error(self.scenario, point, batch=batch, prompt_tokens=prompt)

    def most_tokens(self, alpha_shift: Floats) -> Floats:
        """Plain steps over rounds of a request, if α is shifted."""
        tokens = self.scenario.workload.output_tokens - 1
        rounds = mean_rounds(self._draft.decode, tokens, alpha_shift)
        return np.asarray(tokens / np.maximum(rounds, 1.0))

    def prompt_distances(self, value: Floats) -> tuple[list[Floats], float]:
        """ln(value / gain) if prompts take longer and shorter, and the width of the closed form."""
        if self.scenario.workload.prefill is not Prefill.SHARED:
            return [], 0.0
        slower = np.exp(Z90 * prefill_error(self.scenario, self.prompt_tokens))
        gains = (self.gain(prompts=factor) for factor in (slower, 1.0 / slower))
        return [np.log(value / gain) for gain in gains], least_width(self.scenario)

    @cached_property
    def _draft(self) -> ServiceEstimate:
        return self._service(0.0)

    @cached_property
    def _plain(self) -> ServiceEstimate:
        return service(
            without_speculation(self.scenario), batch=self.batch, prompt_tokens=self.prompt_tokens
        )

    def _service(self, alpha_shift: ArrayLike) -> ServiceEstimate:
        return service(
            self.scenario,
            batch=self.batch,
            prompt_tokens=self.prompt_tokens,
            gamma=self.gamma,
            kv_budget_tokens=self.kv_budget_tokens,
            alpha_shift=alpha_shift,
        )


def alpha_shifts(
    scenario: Scenario,
    prompt_tokens: ArrayLike | None = None,
    kv_budget_tokens: ArrayLike | None = None,
) -> tuple[Floats, Floats]:
    """The ends of the 90 % interval of α, relative to α; 0 if there is no interval."""
    ends = alpha_range(scenario, prompt_tokens, kv_budget_tokens)
    if ends is None:
        return np.zeros(()), np.zeros(())
    low, alpha, high = ends
    return low - alpha, high - alpha


def relative_gain(one: Scenario, other: Scenario, *, objective: str = "throughput") -> Gain:
    """How much better one draft is than another for the same service, per GPU; 0-dimensional.

    Errors that both plans share cancel: that of T_T, of prompts, and most of that of T_V and of an
    engine or a GPU that was not timed (`pair_error`). Those of acceptance are independent, unless
    both plans have the same draft and policy, or both are self-drafts whose curves are borrowed
    from one model: what a target loses more than the lender, it loses with either policy (from
    Llama-3.1-8B to SmolLM2-135M, ln(1 - α) is missed by 0.40 with StreamingLLM, 0.45 with SnapKV).
    """
    at, rival = (_At(plan, objective, None, None, None, None) for plan in (one, other))
    per_gpu = 1.0 if objective == "latency" else other.tp / one.tp
    value = _ratio(at, rival) * per_gpu
    common, mine, theirs = _alpha_errors(one, other)
    together = [[_ratio(at, rival, *shifts) * per_gpu for shifts in common]]
    closed = 0.0
    if one.workload.prefill is Prefill.SHARED:
        slower = math.exp(Z90 * max(float(prefill_error(plan)) for plan in (one, other)))
        factors = (slower, 1.0 / slower)
        together.append([_ratio(at, rival, prompts=factor) * per_gpu for factor in factors])
        closed = Z90 * CLOSED_FORM_ERROR
    rounds = math.exp(Z90 * pair_error(one, other) / math.sqrt(2.0))  # half of the variance each

    def width(side: float, alphas: Ends, factors: Ends) -> float:
        """ln(value / low) for side 1, ln(high / value) for side -1."""
        changed = (
            _ratio(at, rival, alphas[0]),
            _ratio(at, rival, 0.0, alphas[1]),
            _ratio(at, rival, rounds=(factors[0], 1.0)),
            _ratio(at, rival, rounds=(1.0, factors[1])),
        )
        apart = [math.log(value / (ratio * per_gpu)) for ratio in changed]
        worst = [max(0.0, *(side * math.log(value / r) for r in ratios)) for ratios in together]
        return math.hypot(closed, *apart, *worst)

    down = width(1.0, (mine[0], theirs[1]), (rounds, 1.0 / rounds))
    up = width(-1.0, (mine[1], theirs[0]), (1.0 / rounds, rounds))
    return Gain(*(np.asarray(value * math.exp(end)) for end in (-down, 0.0, up)))


def _ratio(
    one: _At,
    other: _At,
    alpha_shift: float = 0.0,
    other_shift: float = 0.0,
    *,
    prompts: float = 1.0,
    rounds: Ends = (1.0, 1.0),
) -> float:
    """The cost of `other` over that of `one` if α is shifted, or prompts or rounds take longer."""
    mine = one.cost(alpha_shift or None, prompts=prompts, rounds=rounds[0])
    return float(other.cost(other_shift or None, prompts=prompts, rounds=rounds[1]) / mine)


def _alpha_errors(one: Scenario, other: Scenario) -> tuple[list[Ends], Ends, Ends]:
    """Shifts of both α together, to the low and the high end, and those of each α alone."""
    plans, curves = (one.plan, other.plan), (one.curve, other.curve)
    lent = [0.0, 0.0]  # 90 % width of ln(1 - α) that both plans share
    if len({(plan.draft, plan.policy) for plan in plans}) == 1:
        lent = [math.inf, math.inf]
    elif all(plan.is_self for plan in plans) and one.acceptance is other.acceptance is None:
        lenders = {curve.lender for curve in curves if curve is not None}
        if len(lenders) == 1 and "" not in lenders:
            lent = [Z90 * curve.sigma_lent for curve in curves if curve is not None]
    parts = [_by_source(plan, width) for plan, width in zip((one, other), lent, strict=True)]
    together = list(zip(parts[0][0], parts[1][0], strict=True))
    return together, parts[0][1], parts[1][1]


def _by_source(scenario: Scenario, shared: float) -> tuple[Ends, Ends]:
    """Shifts of α by the shared part of its interval in ln(1 - α), at most `shared`, and alone."""
    ends = alpha_range(scenario)
    if ends is None or ends[1] == 1.0:
        return (0.0, 0.0), (0.0, 0.0)
    low, alpha, high = (float(end) for end in ends)
    loss, both, alone = 1.0 - alpha, [], []
    for edge in (low, high):
        width = abs(math.log(max(1.0 - edge, 1e-9) / loss))
        part = min(width, shared)
        sign = 1.0 if edge < alpha else -1.0
        both.append(loss * -math.expm1(sign * part))
        alone.append(loss * -math.expm1(sign * math.sqrt(width**2 - part**2)))
    return (both[0], both[1]), (alone[0], alone[1])


def plateau(cost: Floats) -> Floats:
    """Index along the last axis of the first cost within 1 % of the lowest."""
    lowest = np.min(cost, axis=-1, keepdims=True)
    return np.asarray(np.argmax(cost <= lowest * (1.0 + PLATEAU), axis=-1))


def reads_own_cache(scenario: Scenario, prompt_tokens: ArrayLike, budget: ArrayLike) -> Bools:
    """Where a self-draft would read its target's whole cache unquantised, and so be the target."""
    is_target = scenario.plan.is_self and not scenario.draft_is_quantised
    whole = scenario.plan.policy == DraftPolicy.FULL
    return np.asarray(is_target & (whole | (np.asarray(budget) >= prompt_tokens)))
