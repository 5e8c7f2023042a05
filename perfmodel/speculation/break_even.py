"""Where speculation pays: break-even batch and context, and the best γ over batch and context."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel._typing import Floats
from perfmodel.scenario import Scenario
from perfmodel.speculation.round import estimate, without_speculation

GAMMAS = np.arange(1, 17, dtype=float)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CONTEXTS = (1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """The last contiguous range of values at which speculation pays.

    `lowest` is the smallest value tried. `from_value` is None if speculation never pays. `until` is
    None if it pays up to the largest value that was tried and fits; otherwise it is the end of the
    range, as large batches may be bound by compute.
    """

    axis: str
    lowest: int
    from_value: int | None
    until: int | None


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


def best_speedup(
    scenario: Scenario, *, batch: Floats, prompt_tokens: Floats
) -> tuple[Floats, Floats]:
    """The speedup at the best γ, and that γ, over arrays of batch and context.

    Parameters
    ----------
    batch, prompt_tokens : array, mutually broadcastable
        Sequences; prompt tokens. [1]

    Returns
    -------
    speedup, gamma : array
        -inf and -1 where no γ fits.
    """
    batch, prompt = np.broadcast_arrays(np.asarray(batch, float), np.asarray(prompt_tokens, float))
    budget = scenario.plan.budget_at(prompt)
    point = estimate(
        scenario,
        batch=batch[..., None],
        prompt_tokens=prompt[..., None],
        gamma=GAMMAS,
        kv_budget_tokens=budget[..., None],
    )
    speedup = np.where(point.feasible & ~np.isnan(point.speedup), point.speedup, -np.inf)
    best = np.argmax(speedup, axis=-1)
    at_best = np.take_along_axis(speedup, best[..., None], axis=-1)[..., 0]
    return at_best, np.where(np.isfinite(at_best), GAMMAS[best], -1)


def break_even_batch(scenario: Scenario) -> BreakEven:
    """The batches at which the scenario's draft choice pays at its context and the best γ.

    Every batch up to 256 is tried, then steps of less than 4 % up to the scenario's batch.
    """
    values = np.arange(1.0, 257.0)
    if scenario.workload.batch > 256:
        beyond = np.geomspace(256, scenario.workload.batch, 200).round()
        values = np.unique(np.concatenate([values, beyond]))
    speedup, _ = best_speedup(
        scenario, batch=values, prompt_tokens=np.asarray(float(scenario.workload.prompt_tokens))
    )
    return _paying_range("batch", values, speedup)


def break_even_context(scenario: Scenario) -> BreakEven:
    """The contexts at which the scenario's draft choice pays at its batch and the best γ."""
    lowest = 256.0
    last = float(max(scenario.target.max_context_tokens, scenario.workload.prompt_tokens))
    values = np.unique(np.geomspace(lowest, last, 200).round())
    speedup, _ = best_speedup(
        scenario, batch=np.asarray(float(scenario.workload.batch)), prompt_tokens=values
    )
    return _paying_range("prompt_tokens", values, speedup)


def gamma_schedule(scenario: Scenario) -> GammaSchedule:
    """The best γ of the scenario's draft choice over powers of two of batch and context."""
    batch = np.array(BATCHES, float)[:, None]
    speedup, gamma = best_speedup(scenario, batch=batch, prompt_tokens=np.array(CONTEXTS, float))
    plain = estimate(without_speculation(scenario), batch=batch, prompt_tokens=np.array(CONTEXTS))
    # If only the draft does not fit, plain decoding is chosen.
    chosen = np.where(speedup > 1.0, gamma, np.where(plain.feasible, 0, -1)).astype(int)
    return GammaSchedule(
        batches=BATCHES, contexts=CONTEXTS, gamma=tuple(tuple(map(int, row)) for row in chosen)
    )


def _paying_range(axis: str, values: Floats, speedup: Floats) -> BreakEven:
    fits = np.isfinite(speedup)
    tried, pays = values[fits], speedup[fits] > 1.0
    lowest = int(values[0])
    if not np.any(pays):
        return BreakEven(axis=axis, lowest=lowest, from_value=None, until=None)
    last = int(np.flatnonzero(pays)[-1])
    losses = np.flatnonzero(~pays[:last])
    first = int(losses[-1]) + 1 if len(losses) else 0
    until = None if last == len(tried) - 1 else int(tried[last])
    return BreakEven(axis=axis, lowest=lowest, from_value=int(tried[first]), until=until)
