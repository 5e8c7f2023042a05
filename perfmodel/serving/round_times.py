"""`RoundTimes`: tables of round and prefill times, for fast look-up in simulations.

Round times are tabulated at every batch and at contexts evenly spaced in their square root, with
linear interpolation. Prefill times are tabulated over tokens, separately for dense layers,
which all rows of a pass share, and for attention, which each prompt needs for itself. A prompt that
is alone in a pass therefore takes the time that `estimate()` gives.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Counts, Floats
from perfmodel.errors import ConfigError, DoesNotFit
from perfmodel.passes.forward import prefill_pass
from perfmodel.passes.memory import memory_estimate
from perfmodel.scenario import Scenario
from perfmodel.speculation.drafting import draft_start_s
from perfmodel.speculation.round import RoundEstimate, estimate, round_seconds, target_rank

BOUNDS = ("compute", "weights", "kv", "activations", "link", "host", "latency")
INTERVALS = 1024  # between contexts, evenly spaced in the square root
COARSE = 32  # bounds are tabulated at every 32nd context
PROMPT_KNOTS = 400  # a geometric grid from 1 token


class RoundTimes:
    """The times of a scenario over batch, context and γ; its own workload and γ are not used.

    The longest context of a sequence, in tokens, is by default the limit of the target.
    """

    def __init__(
        self, scenario: Scenario, *, max_batch: int, max_context_tokens: int | None = None
    ) -> None:
        if scenario.dp > 1:
            raise ConfigError(
                f"dp={scenario.dp}: requests of a data-parallel engine are not simulated; use "
                f"predict, sweep, or recommend with prefill=disaggregated"
            )
        self.scenario, self.max_batch = scenario, max_batch
        self.max_context = max_context_tokens or scenario.target.max_context_tokens
        # Contexts at which round times are tabulated. [tokens]
        self.contexts = self.max_context * np.linspace(0, 1, INTERVALS + 1) ** 2
        self._scale = INTERVALS / math.sqrt(self.max_context)
        self._batches = np.arange(1.0, max_batch + 1)[:, None]
        self._starts: list[float] = self.contexts.tolist()
        self._rows: dict[int, list[list[float]]] = {}
        self._bounds: dict[int, list[list[int]]] = {}
        columns = _prefill_columns(scenario, self.max_context)
        self._prompts, self._dense, self._per_prompt, self._selection = columns

    def round_seconds(self, gamma: int, batch: int, context: float) -> float:
        """Seconds of one round of `batch` sequences with a mean context of `context` tokens."""
        row = (self._rows.get(gamma) or self._tabulated(gamma))[batch]
        index = min(int(math.sqrt(context) * self._scale), INTERVALS - 1)
        low, start = row[index], self._starts[index]
        slope = (row[index + 1] - low) / (self._starts[index + 1] - start)
        return low + slope * (context - start)

    def bound(self, gamma: int, batch: int, context: float) -> int:
        """Index in `BOUNDS` of what takes most of the time of that round."""
        row = (self._bounds.get(gamma) or self._tabulated_bounds(gamma))[batch]
        return row[min(int(math.sqrt(context) * self._scale) // COARSE, len(row) - 1)]

    def prefill_seconds(self, rows_before: int, done: int, take: int) -> float:
        """Seconds that `take` prompt tokens add to a pass.

        `rows_before` are tokens of other sequences in the pass, `done` those of this prompt in
        earlier passes.
        """
        dense = self._at(self._dense, rows_before + take) - self._at(self._dense, rows_before)
        return dense + self._at(self._per_prompt, done + take) - self._at(self._per_prompt, done)

    def selection_seconds(self, prompt: int) -> float:
        """Seconds once per prefilled prompt in which a self-draft selects its KV."""
        return self._at(self._selection, prompt)

    def seconds_by_gamma(self, gammas: ArrayLike) -> Floats:
        """Round times, of shape (γ, batch from 1, `contexts`). [s]"""
        return np.array([self._seconds(int(gamma)) for gamma in np.asarray(gammas)])

    def kv_capacity(self, gamma: int) -> int:
        """Cached tokens that fit in memory, over all sequences; `DoesNotFit` if none do."""
        window = self.scenario.target.sliding_window_tokens
        longest = float(min(self.max_context, window or self.max_context))
        work = replace(self.scenario.workload, output_tokens=1)
        plan = self.scenario.plan
        memory = memory_estimate(
            replace(self.scenario, workload=work),
            batch=self.max_batch,
            prompt_tokens=np.array([0.5, 1.0]) * longest - 1.0,
            gamma=gamma,
            kv_budget_tokens=plan.kv_budget_tokens
            or plan.budget_at(np.array([0.5, 1.0]) * longest),
        )
        caches = np.broadcast_to(memory.target_kv + memory.draft_kv, (2,)) / self.max_batch
        per_token = float(caches[1] - caches[0]) / (0.5 * longest)
        fixed = self.max_batch * (float(caches[1]) - per_token * longest)
        others = memory.weights + memory.draft_weights + memory.lookahead_kv + memory.activations
        free = memory.usable - float(np.max(others + memory.reserved)) - fixed
        if free < per_token:
            raise DoesNotFit(
                f"the weights and {self.max_batch} sequences leave no memory for the KV cache on "
                f"{self.scenario.machine.gpu.name}; use more GPUs or a smaller batch"
            )
        return int(free / per_token)

    def _at(self, column: list[float], tokens: int) -> float:
        if tokens <= 0:
            return 0.0
        index = min(bisect_right(self._prompts, tokens), len(self._prompts) - 1) - 1
        x0, x1 = self._prompts[index], self._prompts[index + 1]
        return column[index] + (column[index + 1] - column[index]) * (tokens - x0) / (x1 - x0)

    def _seconds(self, gamma: int) -> Floats:
        contexts = np.maximum(self.contexts, 1.0)
        seconds = round_seconds(
            self.scenario,
            batch=self._batches,
            prompt_tokens=contexts,
            gamma=np.asarray(float(gamma)),
            kv_budget_tokens=_budget_of_rounds(self.scenario, contexts, gamma),
        )
        return np.asarray(np.broadcast_to(seconds, (self.max_batch, INTERVALS + 1)))

    def _tabulated(self, gamma: int) -> list[list[float]]:
        self._rows[gamma] = [[], *self._seconds(gamma).tolist()]
        return self._rows[gamma]

    def _tabulated_bounds(self, gamma: int) -> list[list[int]]:
        middles = self.contexts[COARSE // 2 :: COARSE]
        codes = round_bounds(
            estimate_rounds(self.scenario, self._batches, np.maximum(middles, 1.0), gamma)
        )
        shape = (self.max_batch, middles.size)
        self._bounds[gamma] = [[], *np.broadcast_to(codes, shape).tolist()]
        return self._bounds[gamma]


def estimate_rounds(
    scenario: Scenario, batch: ArrayLike, contexts: ArrayLike, gamma: ArrayLike
) -> RoundEstimate:
    """`estimate()` for rounds in which a draft reads its budget or the context, if shorter."""
    budget = _budget_of_rounds(scenario, contexts, gamma)
    return estimate(
        scenario, batch=batch, prompt_tokens=contexts, gamma=gamma, kv_budget_tokens=budget
    )


def _budget_of_rounds(scenario: Scenario, contexts: ArrayLike, gamma: ArrayLike) -> Floats:
    """The cached tokens that a draft may read; a `ConfigError` if γ has no draft."""
    if np.any(np.asarray(gamma) > 0) and scenario.plan.draft == "none":
        raise ConfigError(f"gamma={np.max(gamma)} needs a draft; give one or use gamma=0")
    return np.asarray(scenario.plan.budget_at(contexts), float)


def round_bounds(point: RoundEstimate) -> Counts:
    """Index in `BOUNDS` of what takes most of the time of each round."""
    shape = np.broadcast_shapes(np.shape(point.round_s), np.shape(point.gamma))
    seconds = np.zeros((len(BOUNDS), *shape))
    speculates = point.gamma > 0
    passes = [(point.verify, np.where(speculates, 1.0, 0.0))]
    passes.append((point.target_step, np.where(speculates, 0.0, 1.0)))
    if point.draft_step is not None:
        passes.append((point.draft_step, point.gamma))
    for step, times in passes:
        for part in step.parts:
            bound = part.bound
            for code, name in enumerate(BOUNDS):
                seconds[code] += np.where(bound == name, times * part.seconds, 0.0)
    seconds[BOUNDS.index("host")] += point.overhead_s
    return np.asarray(np.argmax(seconds, axis=0), np.int64)


def _prefill_columns(
    scenario: Scenario, longest: int
) -> tuple[list[float], list[float], list[float], list[float]]:
    """Tokens, and seconds for each count: dense layers of a pass, a prompt's rest, a selection."""
    # A pass may have rows of several prompts, so the grid extends beyond one context.
    tokens = np.unique(np.geomspace(1, 2 * max(longest, 65_536), PROMPT_KNOTS).round())
    step = prefill_pass(target_rank(scenario), batch=1, prompt_tokens=tokens)
    attention = np.broadcast_to(step.group_s("attention"), tokens.shape)
    dense = np.broadcast_to(step.total_s, tokens.shape) - attention
    budget = np.asarray(scenario.plan.budget_at(tokens), float)
    draft = np.broadcast_to(draft_start_s(scenario, tokens, budget), tokens.shape)
    once = draft if scenario.plan.is_self else np.zeros(tokens.shape)
    # Interpolated kernel curves may fall, but a pass with more rows is never faster.
    per_prompt = np.maximum.accumulate(attention + draft - once)
    columns = (tokens, np.maximum.accumulate(dense), per_prompt, once)
    first, second, third, fourth = (column.tolist() for column in columns)
    return first, second, third, fourth
