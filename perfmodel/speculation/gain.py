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
from perfmodel.speculation.service import ServiceEstimate, service
from perfmodel.speculation.step_error import prefill_error, ratio_error
from perfmodel.units import Z90

OBJECTIVES = ("throughput", "latency")
GAMMAS = np.arange(1, 17, dtype=float)
# γ beyond the first that is within 1 % of the best is not worth its drafts.
PLATEAU = 0.01
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

    Parameters
    ----------
    scenario, batch, prompt_tokens, gamma, kv_budget_tokens
        As for `service`.
    objective : str
        "throughput" (requests per second) or "latency" (time per token of a sequence).
    """

    at = _At(scenario, objective, batch, prompt_tokens, gamma, kv_budget_tokens)
    value = at.gain()
    below, above = alpha_shifts(scenario, prompt_tokens, kv_budget_tokens)
    error = math.exp(Z90 * ratio_error(scenario))
    by_prompts, closed = at.prompt_distances(value)

    def width(other_alpha: Floats, other_factor: float, side: float) -> Floats:
        by_alpha = np.log(value / at.gain(alpha_shift=other_alpha))
        by_time = np.log(value / at.gain(rounds=other_factor))
        by_prompt: Floats = np.zeros(())
        for distance in by_prompts:
            by_prompt = np.maximum(by_prompt, side * distance)
        return np.asarray(np.sqrt(by_alpha**2 + by_time**2 + by_prompt**2 + closed**2))

    down, up = width(below, error, 1.0), width(above, 1.0 / error, -1.0)
    return Gain(low=value * np.exp(-down), value=value, high=value * np.exp(up))


def gain_value(scenario: Scenario, objective: str = "throughput") -> float:
    """The gain of a scenario's draft without its interval, in a fifth of the time."""
    return float(_At(scenario, objective, None, None, None, None).gain())


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
        self, alpha_shift: ArrayLike | None = None, *, rounds: float = 1.0, prompts: float = 1.0
    ) -> Floats:
        """The ratio to plain decoding, if rounds, or the prompts of both, take longer."""
        known = self._draft if alpha_shift is None else self._service(alpha_shift)
        result = replace(known, round_s=known.round_s * rounds, prefill_s=known.prefill_s * prompts)
        plain = replace(self._plain, prefill_s=self._plain.prefill_s * prompts)
        return cost_s(plain, self.objective) / cost_s(result, self.objective)

    def prompt_distances(self, value: Floats) -> tuple[list[Floats], float]:
        """ln(value / gain) if prompts take longer and shorter, and the width of the closed form."""
        if self.scenario.workload.prefill is not Prefill.SHARED:
            return [], 0.0
        slower = math.exp(Z90 * prefill_error(self.scenario))
        gains = (self.gain(prompts=factor) for factor in (slower, 1.0 / slower))
        return [np.log(value / gain) for gain in gains], Z90 * CLOSED_FORM_ERROR

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
    scenario: Scenario, prompt_tokens: ArrayLike | None, kv_budget_tokens: ArrayLike | None
) -> tuple[Floats, Floats]:
    """The ends of the 90 % interval of α, relative to α; 0 if there is no interval."""
    given, curve, plan = scenario.acceptance, scenario.curve, scenario.plan
    if given is not None:
        return np.asarray(given.low - given.alpha), np.asarray(given.high - given.alpha)
    if curve is None:
        return np.zeros(()), np.zeros(())
    context = np.asarray(
        scenario.workload.prompt_tokens if prompt_tokens is None else prompt_tokens, float
    )
    budget = plan.budget_at(context) if kv_budget_tokens is None else kv_budget_tokens
    read = context if plan.policy == DraftPolicy.FULL else np.asarray(budget, float)
    alpha = curve.alpha(kv_budget_tokens=read, context_tokens=context)
    low, high = curve.interval(kv_budget_tokens=read, context_tokens=context)
    return low - alpha, high - alpha


def plateau(cost: Floats) -> Floats:
    """Index along the last axis of the first cost within 1 % of the lowest."""
    lowest = np.min(cost, axis=-1, keepdims=True)
    return np.asarray(np.argmax(cost <= lowest * (1.0 + PLATEAU), axis=-1))


def reads_own_cache(scenario: Scenario, prompt_tokens: ArrayLike, budget: ArrayLike) -> Bools:
    """Where a self-draft would read its target's whole cache unquantised, and so be the target."""
    is_target = scenario.plan.is_self and not scenario.draft_is_quantised
    whole = scenario.plan.policy == DraftPolicy.FULL
    return np.asarray(is_target & (whole | (np.asarray(budget) >= prompt_tokens)))
