"""Where speculation clearly pays: break-even batch and context, and γ over batch and context.

It pays where the whole 90 % interval of its gain is above 1, at the best γ within the limits: the
rule by which a plan is recommended.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from perfmodel._typing import Bools, Floats
from perfmodel.acceptance.tokens import Acceptance
from perfmodel.scenario import Scenario
from perfmodel.specs.workload import SLO
from perfmodel.speculation.gain import (
    GAMMAS,
    PLATEAU,
    Gain,
    cost_s,
    plateau,
    reads_own_cache,
    service_gain,
)
from perfmodel.speculation.round import estimate, without_speculation
from perfmodel.speculation.service import ServiceEstimate, service

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CONTEXTS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How a gain is judged: the objective ("throughput" or "latency"), and limits of plans."""

    objective: str = "throughput"
    limits: SLO = field(default_factory=SLO)


DEFAULT_RULE = Rule()


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """The contiguous range of values at which speculation clearly pays.

    It is the range that contains the scenario's value if speculation pays there, and otherwise the
    last one. `lowest` is the smallest value tried. `from_value` is None if speculation never pays.
    `until` is None if it pays up to the largest value that was tried and fits in memory; otherwise
    it is the end of the range: larger values may be bound by compute or miss the limits.
    """

    axis: str
    lowest: int
    from_value: int | None
    until: int | None

    def contains(self, value: int) -> bool:
        """Whether speculation pays at a value that fits."""
        if self.from_value is None or value < self.from_value:
            return False
        return self.until is None or value <= self.until


@dataclass(frozen=True, slots=True, kw_only=True)
class GammaSchedule:
    """Best γ of a draft choice per batch and context; 0 is plain decoding, -1 does not fit."""

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    gamma: tuple[tuple[int, ...], ...]  # [batch][context]

    def ranges(self, context_tokens: int) -> tuple[tuple[int, int, int], ...]:
        """(first batch, last batch, γ) at the tabulated context nearest to `context_tokens`."""
        nearest = int(np.argmin(np.abs(np.log(np.array(self.contexts) / context_tokens))))
        column = [(b, row[nearest]) for b, row in zip(self.batches, self.gamma, strict=True)]
        fitting = [(b, g) for b, g in column if g >= 0]
        ranges: list[tuple[int, int, int]] = []
        for batch, gamma in fitting:
            if ranges and ranges[-1][2] == gamma:
                ranges[-1] = (ranges[-1][0], batch, gamma)
            else:
                first = ranges[-1][1] + 1 if ranges else 1
                ranges.append((first, batch, gamma))
        return tuple(ranges)


@dataclass(frozen=True, eq=False, slots=True)
class BestGain:
    """The gain at the best γ of each point, and that γ; NaN and -1 where no γ is possible."""

    gain: Gain
    gamma: Floats
    plain_allowed: Bools  # where plain decoding meets the limits
    fits: Bools  # where some γ fits in memory
    near: Bools  # (..., γ): which γ are within 1 % of the best
    fastest: Floats  # the γ of the lowest cost

    @property
    def possible(self) -> Bools:
        """Where some γ fits in memory and meets the limits, for a draft that reads less KV."""
        return np.asarray(self.gamma > 0)

    @property
    def pays(self) -> Bools:
        """Where the gain is clear, or only speculation meets the limits."""
        return self.possible & (self.gain.is_clear | ~self.plain_allowed)


def best_gain(
    scenario: Scenario,
    rule: Rule = DEFAULT_RULE,
    *,
    batch: Floats,
    prompt_tokens: Floats,
    gammas: Floats = GAMMAS,
) -> BestGain:
    """The gain of the scenario's draft at the best γ, over arrays of batch and context.

    Parameters
    ----------
    rule : Rule
        Objective, and limits in addition to the memory capacity.
    batch, prompt_tokens : array, mutually broadcastable
        Requests in the system; prompt tokens. [1]
    gammas : array (γ,)
        The drafts per round to choose from.
    """
    batch, prompt = np.broadcast_arrays(np.asarray(batch, float), np.asarray(prompt_tokens, float))
    budget = scenario.plan.budget_at(prompt)
    result = service(
        scenario,
        batch=batch[..., None],
        prompt_tokens=prompt[..., None],
        gamma=gammas,
        kv_budget_tokens=budget[..., None],
    )
    cost = cost_s(result, rule.objective)
    allowed = within(result, rule.limits) & ~np.isnan(cost)
    allowed = allowed & ~reads_own_cache(scenario, prompt, budget)[..., None]
    bounded = np.where(allowed, cost, np.inf)
    index = plateau(bounded)
    near = allowed & (bounded <= np.min(bounded, axis=-1, keepdims=True) * (1.0 + PLATEAU))
    possible = np.any(allowed, axis=-1)
    gain = service_gain(
        scenario,
        objective=rule.objective,
        batch=batch,
        prompt_tokens=prompt,
        gamma=gammas[index],
        kv_budget_tokens=budget,
    )
    low, value, high = (np.where(possible, g, np.nan) for g in (gain.low, gain.value, gain.high))
    plain = service(without_speculation(scenario), batch=batch, prompt_tokens=prompt)
    chosen = np.where(possible, gammas[index], -1.0)
    return BestGain(
        gain=Gain(low, value, high),
        gamma=chosen,
        plain_allowed=within(plain, rule.limits),
        fits=np.any(within(result, SLO()), axis=-1),
        near=near,
        fastest=gammas[np.argmin(bounded, axis=-1)],
    )


def within(result: ServiceEstimate, limits: SLO) -> Bools:
    """Where a service fits in memory and meets its limits."""
    fits = result.feasible & (result.decode.memory.fraction <= (limits.memory_fraction or 1.0))
    if limits.tpot_s is not None:
        fits = fits & (result.tpot_s <= limits.tpot_s)
    if limits.ttft_s is not None:
        fits = fits & (result.ttft_s <= limits.ttft_s)
    return np.asarray(fits)


def break_even_batch(scenario: Scenario, rule: Rule = DEFAULT_RULE) -> BreakEven:
    """The batches at which the scenario's draft choice pays at its context and the best γ.

    Every batch up to 256 is tried, then steps of less than 4 % up to the scenario's batch.
    """
    asked = scenario.workload.batch
    values = np.arange(1.0, 257.0)
    if asked > 256:
        values = np.unique(np.concatenate([values, np.geomspace(256, asked, 200).round()]))
    prompt = np.asarray(float(scenario.workload.prompt_tokens))
    best = best_gain(scenario, rule, batch=values, prompt_tokens=prompt)
    return _paying_range("batch", values, best, asked)


def break_even_context(scenario: Scenario, rule: Rule = DEFAULT_RULE) -> BreakEven:
    """The contexts at which the scenario's draft choice pays at its batch and the best γ."""
    asked = scenario.workload.prompt_tokens
    last = float(max(scenario.target.max_context_tokens, asked))
    values = np.unique(np.append(np.geomspace(256.0, last, 200).round(), asked))
    batch = np.asarray(float(scenario.workload.batch))
    best = best_gain(scenario, rule, batch=batch, prompt_tokens=values)
    return _paying_range("prompt_tokens", values, best, asked)


def gamma_schedule(scenario: Scenario, rule: Rule = DEFAULT_RULE) -> GammaSchedule:
    """The best γ of the scenario's draft choice over powers of two of batch and context.

    Among the γ within 1 % of the best, it is the one that does not fall as the context grows.
    """
    batch, context = np.array(BATCHES, float)[:, None], np.array(CONTEXTS, float)
    best = best_gain(scenario, rule, batch=batch, prompt_tokens=context)
    plain = estimate(without_speculation(scenario), batch=batch, prompt_tokens=context)
    # If only the draft does not fit, plain decoding is chosen.
    otherwise = np.where(plain.feasible, 0, -1)
    chosen = np.where(best.pays, _steady(best), otherwise).astype(int)
    return GammaSchedule(
        batches=BATCHES, contexts=CONTEXTS, gamma=tuple(tuple(map(int, row)) for row in chosen)
    )


def fastest_gamma(scenario: Scenario, rule: Rule = DEFAULT_RULE) -> int:
    """The γ of the lowest cost within the limits, at the scenario's batch and context."""
    work = scenario.workload
    batch, prompt = np.asarray(float(work.batch)), np.asarray(float(work.prompt_tokens))
    return int(best_gain(scenario, rule, batch=batch, prompt_tokens=prompt).fastest)


def _steady(best: BestGain) -> Floats:
    """The γ of each point: per row the smallest good one that is not below its left neighbour's."""
    chosen = best.gamma.copy()
    for row, near in zip(chosen, best.near, strict=True):
        before = 0.0
        for column in np.flatnonzero(row > 0):
            good = GAMMAS[near[column]]
            above = good[good >= before]
            row[column] = before = above[0] if above.size else good[0]
    return chosen


def break_even_alpha(scenario: Scenario, *, objective: str = "throughput") -> float:
    """The i.i.d. α at which the gain of the scenario's plan is 1; inf if no α reaches it."""
    plain = float(cost_s(service(without_speculation(scenario)), objective))
    rejecting = replace(scenario, acceptance=Acceptance.from_alpha(0.0))
    low, high = 0.0, 1.0
    for _ in range(4):  # five bisections each, whose points are evaluated together
        tried = np.linspace(low, high, 33)
        cost = cost_s(service(rejecting, alpha_shift=tried), objective)
        loses = np.broadcast_to(cost > plain, tried.shape)
        if high == 1.0 and loses[-1]:
            return float("inf")
        if low == 0.0 and not loses[0]:
            return 0.0
        first, last = 0, 32
        while last - first > 1:
            middle = (first + last) // 2
            first, last = (middle, last) if loses[middle] else (first, middle)
        low, high = float(tried[first]), float(tried[last])
    return high


def _paying_range(axis: str, values: Floats, best: BestGain, asked: int) -> BreakEven:
    tried, pays = values[best.possible], best.pays[best.possible]
    lowest = int(values[0])
    if not np.any(pays):
        return BreakEven(axis=axis, lowest=lowest, from_value=None, until=None)
    here = np.flatnonzero((tried == asked) & pays)
    inside = int(here[0]) if here.size else int(np.flatnonzero(pays)[-1])
    before = np.flatnonzero(~pays[:inside])
    after = np.flatnonzero(~pays[inside:])
    first = int(before[-1]) + 1 if before.size else 0
    last = inside + int(after[0]) - 1 if after.size else len(tried) - 1
    until = None if tried[last] == values[best.fits][-1] else int(tried[last])
    return BreakEven(axis=axis, lowest=lowest, from_value=int(tried[first]), until=until)
