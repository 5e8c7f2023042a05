"""Where speculation clearly pays: break-even batch and context, and γ over batch and context.

It pays where the whole 90 % interval of its gain is above 1, at the best γ within the limits: the
rule by which a plan is recommended. The best γ is the smallest within 1 % of the lowest cost or, if
its gain is not clear, the fastest smaller one whose gain is. Intervals widen with γ, since more of
the gain then depends on α: without the second case, a gain would cease to be clear at a slightly
larger batch only because a larger γ is a little faster there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
from perfmodel.speculation.paying_ranges import BreakEven, End, changes, paying_ranges, widest
from perfmodel.speculation.round import estimate, without_speculation
from perfmodel.speculation.service import ServiceEstimate, service

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
EVERY_BATCH, MOST_BATCH = 256, 4096  # up to which every batch, and some batches, are tried
CONTEXTS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How a gain is judged: the objective ("throughput" or "latency"), and limits of plans."""

    objective: str = "throughput"
    limits: SLO = field(default_factory=SLO)


DEFAULT_RULE = Rule()


@dataclass(frozen=True, slots=True, kw_only=True)
class GammaSchedule:
    """Best γ of a draft choice per batch and context; 0 is plain decoding, -1 does not fit.

    `clear` is whether the gain is clear at every γ above 0; otherwise plain decoding misses the
    limits at some of them.
    """

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    gamma: tuple[tuple[int, ...], ...]  # [batch][context]
    clear: bool = True

    def ranges(self, context_tokens: int) -> tuple[tuple[int, int, int], ...]:
        """(first batch, last batch, γ) at the tabulated context nearest to `context_tokens`."""
        nearest = int(np.argmin(np.abs(np.log(np.array(self.contexts) / context_tokens))))
        column = [(b, row[nearest]) for b, row in zip(self.batches, self.gamma, strict=True)]
        fitting = [(b, g) for b, g in column if g >= 0]
        rows = [(g, [*row][-1][0]) for g, row in groupby(fitting, key=lambda at: at[1])]
        return tuple((end + 1, last, g) for (_, end), (g, last) in pairwise([(0, 0), *rows]))


@dataclass(frozen=True, eq=False, slots=True)
class BestGain:
    """The gain at the best γ of each point, and that γ; NaN and -1 where no γ is possible."""

    gain: Gain
    gamma: Floats
    plain_allowed: Bools  # where plain decoding meets the limits
    fits: Bools  # where some γ fits in memory
    near: Bools  # (..., γ): which γ are within 1 % of the best, or the one that is chosen instead
    fastest: Floats  # the γ of the lowest cost
    plateau: Floats  # the smallest γ within 1 % of it

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

    The rule has limits in addition to the memory capacity. Batch, which counts requests in the
    system, and prompt tokens broadcast; `gammas` has the drafts per round to choose from.
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
    plain = service(
        without_speculation(scenario), batch=batch[..., None], prompt_tokens=prompt[..., None]
    )
    allowed = within(result, rule.limits, plain) & ~np.isnan(cost)
    allowed = allowed & ~reads_own_cache(scenario, prompt, budget)[..., None]
    bounded = np.where(allowed, cost, np.inf)
    first = index = plateau(bounded).astype(int)
    near = allowed & (bounded <= np.min(bounded, axis=-1, keepdims=True) * (1.0 + PLATEAU))
    possible = np.any(allowed, axis=-1)
    points = (batch, prompt, np.broadcast_to(budget, batch.shape))
    ends = _gain_ends(scenario, rule, points, gammas[index])
    plain_allowed = np.broadcast_to(within(plain, rule.limits), (*batch.shape, 1))[..., 0]
    # Where the gain is not clear, all smaller γ that are faster than plain decoding are tried.
    tried = (cost_s(plain, rule.objective) > bounded) & (np.arange(len(gammas)) < index[..., None])
    tried = tried & (possible & plain_allowed & (ends[0] <= 1.0))[..., None]
    if np.any(tried):
        changed, surer, taken = _surest(scenario, rule, points, gammas, tried, bounded)
        index, ends = np.where(changed, surer, index), np.where(changed, taken, ends)
        near = np.where(changed[..., None], np.arange(len(gammas)) == index[..., None], near)
    return BestGain(
        gain=Gain(*np.where(possible, ends, np.nan)),
        gamma=np.where(possible, gammas[index], -1.0),
        plain_allowed=plain_allowed,
        fits=np.any(within(result, SLO()), axis=-1),
        near=near,
        fastest=gammas[np.argmin(bounded, axis=-1)],
        plateau=gammas[first],
    )


def _surest(
    scenario: Scenario,
    rule: Rule,
    points: tuple[Floats, ...],
    gammas: Floats,
    tried: Bools,
    cost: Floats,
) -> tuple[Bools, NDArray[np.intp], Floats]:
    """Where a γ that is tried has a clear gain; the index of the cheapest, and its gain's ends."""
    ends = np.full((3, *cost.shape), np.nan)
    *at, gamma = (
        np.broadcast_to(values, cost.shape)[tried]
        for values in (*(axis[..., None] for axis in points), gammas)
    )
    ends[:, tried] = _gain_ends(scenario, rule, tuple(at), gamma)
    is_clear = ends[0] > 1.0
    index = np.asarray(np.argmin(np.where(is_clear, cost, np.inf), axis=-1))
    taken = np.take_along_axis(ends, index[None, ..., None], axis=-1)[..., 0]
    return np.any(is_clear, axis=-1), index, taken


def _gain_ends(scenario: Scenario, rule: Rule, points: tuple[Floats, ...], gamma: Floats) -> Floats:
    """(low, value, high) of the gain along the first axis, at (batch, prompt, KV budget)."""
    batch, prompt, budget = points
    gain = service_gain(
        scenario,
        objective=rule.objective,
        batch=batch,
        prompt_tokens=prompt,
        gamma=gamma,
        kv_budget_tokens=budget,
    )
    return np.stack([np.broadcast_to(g, batch.shape) for g in (gain.low, gain.value, gain.high)])


def within(result: ServiceEstimate, limits: SLO, plain: ServiceEstimate | None = None) -> Bools:
    """Where a service fits in memory and meets its limits.

    `plain` is the same service without its draft. A draft that finishes fewer requests per second
    can shorten the time per token only because more requests wait, as plain decoding with fewer
    requests does. It therefore meets a limit on it only where plain decoding meets all limits.
    """
    fits = result.feasible & (result.decode.memory.fraction <= (limits.memory_fraction or 1.0))
    if limits.tpot_s is not None:
        fits = fits & (result.tpot_s <= limits.tpot_s)
    if limits.ttft_s is not None:
        fits = fits & (result.ttft_s <= limits.ttft_s)
    if plain is not None and limits.tpot_s is not None:
        is_slower = result.requests_per_s < plain.requests_per_s
        fits = fits & (~is_slower | within(plain, limits))
    return np.asarray(fits)


def service_within(
    scenario: Scenario,
    limits: SLO,
    *,
    batch: ArrayLike | None = None,
    gamma: ArrayLike | None = None,
) -> tuple[ServiceEstimate, Bools]:
    """The scenario's service over batch and γ, and where it is `within` the limits."""
    result, plain = service(scenario, batch=batch, gamma=gamma), None
    if scenario.plan.speculates and limits.tpot_s is not None:
        plain = service(without_speculation(scenario), batch=batch)
    return result, within(result, limits, plain)


def break_even_batch(scenario: Scenario, rule: Rule = DEFAULT_RULE) -> BreakEven:
    """The batches at which the scenario's draft choice pays at its context and the best γ.

    Every batch up to 256 is tried. If that fits, so are steps of 3 % up to 4,096, and every batch
    between two of them at which the answer differs.
    """
    prompt = np.asarray(float(scenario.workload.prompt_tokens))

    def tried(values: Floats) -> BestGain:
        return best_gain(scenario, rule, batch=values, prompt_tokens=prompt)

    values = np.arange(1.0, EVERY_BATCH + 1.0)
    best = tried(values)
    if best.fits[-1]:
        steps = math.ceil(math.log(MOST_BATCH / EVERY_BATCH) / math.log(1.03))
        more = np.geomspace(EVERY_BATCH, MOST_BATCH, steps + 1).round()
        found = tried(more)
        values = np.unique([*values, *more, *changes(more, found.pays, found.possible, found.fits)])
        best = tried(values)
    return _paying_ranges(scenario, "batch", values, best)


def break_even_context(scenario: Scenario, rule: Rule = DEFAULT_RULE) -> BreakEven:
    """The contexts at which the scenario's draft choice pays at its batch and the best γ.

    Steps of about 3 % are tried, and the scenario's context.
    """
    asked = scenario.workload.prompt_tokens
    last = float(max(scenario.target.max_context_tokens, asked))
    values = np.unique(np.append(np.geomspace(256.0, last, 200).round(), asked))
    batch = np.asarray(float(scenario.workload.batch))
    best = best_gain(scenario, rule, batch=batch, prompt_tokens=values)
    return _paying_ranges(scenario, "prompt_tokens", values, best)


def _paying_ranges(scenario: Scenario, axis: str, values: Floats, best: BestGain) -> BreakEven:
    found = paying_ranges(
        values,
        pays=best.pays,
        clear=best.gain.is_clear,
        possible=best.possible,
        fits=best.fits,
    )
    if found.end is not End.MEMORY:
        return found
    last = widest(found.ranges)[1]
    fitting = np.flatnonzero(estimate(scenario, **{axis: float(last)}, gamma=GAMMAS).feasible)
    return replace(found, most_gamma=int(GAMMAS[fitting[-1]]))


def gamma_schedule(
    scenario: Scenario,
    rule: Rule = DEFAULT_RULE,
    *,
    batches: tuple[int, ...] = BATCHES,
    contexts: tuple[int, ...] = CONTEXTS,
) -> GammaSchedule:
    """The best γ of the scenario's draft choice over batches and contexts, which ascend.

    Among the γ within 1 % of the best, it is the one that does not fall as the context grows.
    """
    batch, context = np.array(batches, float)[:, None], np.array(contexts, float)
    best = best_gain(scenario, rule, batch=batch, prompt_tokens=context)
    plain = estimate(without_speculation(scenario), batch=batch, prompt_tokens=context)
    # If only the draft does not fit, plain decoding is chosen.
    otherwise = np.where(plain.feasible, 0, -1)
    chosen = np.where(best.pays, _steady(best), otherwise).astype(int)
    return GammaSchedule(
        batches=batches,
        contexts=contexts,
        gamma=tuple(tuple(map(int, row)) for row in chosen),
        clear=bool(np.all(best.gain.is_clear[best.pays])),
    )


def gamma_ranges(scenario: Scenario, rule: Rule = DEFAULT_RULE) -> tuple[tuple[int, int, int], ...]:
    """(first batch, last batch, γ) at the scenario's prompt length, with a row up to its batch.

    Its γ at that batch is that of `best_gamma` if speculation pays there.
    """
    prompt = scenario.workload.prompt_tokens
    batches = tuple(sorted({*BATCHES, scenario.workload.batch}))
    schedule = gamma_schedule(scenario, rule, batches=batches, contexts=(prompt,))
    return schedule.ranges(prompt)


def best_gamma(scenario: Scenario, rule: Rule = DEFAULT_RULE) -> tuple[int, int, int]:
    """The γ that is chosen at the scenario's batch and context, the first on the plateau, the best.

    They ascend: the fastest with a clear gain, the smallest within 1 % of the lowest cost within
    the limits, and the γ of the lowest cost.
    """
    work = scenario.workload
    batch, prompt = np.asarray(float(work.batch)), np.asarray(float(work.prompt_tokens))
    best = best_gain(scenario, rule, batch=batch, prompt_tokens=prompt)
    return int(best.gamma), int(best.plateau), int(best.fastest)


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
    for _ in range(4):  # each divides the interval by 32
        tried = np.linspace(low, high, 33)
        cost = cost_s(service(rejecting, alpha_shift=tried), objective)
        loses = np.broadcast_to(cost > plain, tried.shape)
        if high == 1.0 and loses[-1]:
            return float("inf")
        if low == 0.0 and not loses[0]:
            return 0.0
        last = int(np.argmin(loses))  # the first that does not lose
        low, high = float(tried[last - 1]), float(tried[last])
    return high
