"""Simulate a fixed batch round by round, drawing every acceptance.

Tokens do not depend on time, so a block of rounds is drawn first and then timed in one broadcast
call of `estimate()`. Round times are those of the closed form, plus the cost of unequal caches and
idle rows (`serving.ragged_rounds`). The first `TIMED_ROUNDS` rounds are all timed. Later, only some
are: those beside the end of a sequence, and in between every n-th, so that caches grow by less than
2/`TIMED_ROUNDS` from one to the next. The times of the others are interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from perfmodel._typing import Bools, Counts, Floats
from perfmodel.display import one_line
from perfmodel.errors import ConfigError, either
from perfmodel.scenario import Scenario
from perfmodel.serving.acceptance import AcceptanceProcess
from perfmodel.serving.ragged_rounds import graph_rows, ragged_round_seconds
from perfmodel.serving.round_times import BOUNDS, round_bounds
from perfmodel.serving.stats import Durations
from perfmodel.serving.timeline import Timeline
from perfmodel.units import format_seconds

BLOCK = 256  # rounds
BLOCK_CELLS = 1 << 18  # most rounds x sequences of longer blocks
MOST_TOKENS = 20_000_000
TIMED_ROUNDS = 4096


class Finished(StrEnum):
    """What happens to the row of a finished sequence."""

    COMPACTION = "compaction"  # the batch shrinks
    PADDING = "padding"  # the row keeps costing what it did
    GRAPHS = "graphs"  # the row of the CUDA graph is idle, until a graph with half the rows is used


@dataclass(eq=False, slots=True)
class FixedBatchRun:
    """Times in seconds and tokens of a fixed batch; arrays have one entry per sequence."""

    gamma: int
    makespan_s: float = 0.0
    rounds: int = 0
    tokens: int = 0
    sequence_rounds: int = 0  # rounds, summed over unfinished sequences
    finish_s: Floats = field(default_factory=lambda: np.zeros(0))
    produced: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    rounds_by_bound: list[int] = field(default_factory=lambda: [0] * len(BOUNDS))
    timeline: Timeline = field(default_factory=Timeline)
    rows: int = 0  # of the graph in the last round

    def __repr__(self) -> str:
        values = {
            "gamma": self.gamma,
            "sequences": self.produced.size,
            "rounds": self.rounds,
            "makespan": format_seconds(self.makespan_s),
            "throughput": f"{self.throughput:.0f} tokens/s" if self.rounds else None,
        }
        return one_line("FixedBatchRun", values)

    @property
    def throughput(self) -> float:
        """Tokens per second of the whole batch."""
        return self.tokens / self.makespan_s

    @property
    def tokens_per_round(self) -> float:
        """Mean tokens per round of a sequence."""
        return self.tokens / self.sequence_rounds

    def tpot(self) -> Durations:
        """Seconds per token of each sequence until it finishes."""
        return Durations(self.finish_s / np.maximum(self.produced, 1))


def simulate_batch(
    scenario: Scenario,
    process: AcceptanceProcess,
    *,
    prompt_tokens: Counts,
    output_tokens: Counts,
    gamma: int | None = None,
    rounds: int | None = None,
    finished: Finished | str = Finished.COMPACTION,
    grow: bool = True,
    seed: int = 0,
) -> FixedBatchRun:
    """Decode a batch whose prompts are already cached.

    Raises `ConfigError` for lengths below 1, more than `MOST_TOKENS` sequences x longest output, an
    unknown `finished`, or γ above 0 without a draft.

    Parameters
    ----------
    scenario : Scenario
        Machine, models, engine and draft; its workload is not used.
    process : AcceptanceProcess
        Accepted drafts; not used at γ = 0.
    prompt_tokens, output_tokens : array of int, of one shape (sequences,)
        Tokens cached at the start; tokens to decode. [tokens]
    gamma : int, optional
        Drafts per round; by default those of the scenario.
    rounds : int, optional
        Stop after this many rounds, in which no sequence finishes; by default all finish.
    finished : Finished or str
        What happens to the row of a finished sequence. With "graphs" a smaller graph is used once
        half of the rows are idle, as in the runtime, without counting the time to capture it.
    grow : bool
        Whether caches grow; otherwise every round takes as long as the first.
    seed : int
        Seed of the acceptance.
    """
    chosen = scenario.plan.gamma if gamma is None else gamma
    if np.min(prompt_tokens) < 1 or np.min(output_tokens) < 1:
        raise ConfigError("every sequence needs a prompt and an output of at least 1 token")
    if finished not in list(Finished):
        raise ConfigError(f"finished={str(finished)!r} is not valid; use {either(Finished)}")
    if rounds is not None and rounds < 1:
        raise ConfigError(f"rounds={rounds} must be at least 1")
    most = int(output_tokens.max()) if rounds is None else rounds
    if prompt_tokens.size * most > MOST_TOKENS:
        raise ConfigError(
            f"a batch of {prompt_tokens.size:,} with up to {most:,} tokens each is too long to "
            f"simulate; the limit is {MOST_TOKENS:,} tokens: use a smaller batch or shorter outputs"
        )
    rng = np.random.default_rng([seed, 1])
    traits = process.traits(rng, prompt_tokens.size) if chosen else np.zeros(prompt_tokens.size)
    run = FixedBatchRun(chosen, finish_s=np.zeros(prompt_tokens.size))
    run.produced = np.zeros(prompt_tokens.size, np.int64)
    wanted = None if rounds is not None else output_tokens
    while rounds is None or run.rounds < rounds:
        size = BLOCK
        if run.rounds >= TIMED_ROUNDS:
            size = min(run.rounds // 4, max(BLOCK, BLOCK_CELLS // run.produced.size))
        size = size if rounds is None else min(size, rounds - run.rounds)
        before, gained = _draw(process, rng, traits, run, wanted, size)
        alive = np.ones(gained.shape, bool) if wanted is None else before < wanted
        size = int(alive.any(axis=1).sum())
        before, gained, alive = before[:size], gained[:size], alive[:size]
        if not size:
            break
        contexts = prompt_tokens + (before if grow else 0)
        timed = _timed_rounds(alive, max(1, 2 * run.rounds // TIMED_ROUNDS))
        seconds = _round_seconds(scenario, chosen, contexts, alive, finished, run, timed)
        _count(run, seconds, gained, alive, wanted, timed)
    return run


def _timed_rounds(alive: Bools, every: int) -> Counts:
    """The rounds of a block to time: each `every`-th, the last, and those beside the end of one."""
    timed = np.zeros(len(alive), bool)
    timed[::every] = timed[-1] = True
    ends = np.any(alive[1:] != alive[:-1], axis=1)
    timed[1:] |= ends
    timed[:-1] |= ends
    return np.flatnonzero(timed)


def _draw(
    process: AcceptanceProcess,
    rng: np.random.Generator,
    traits: Floats,
    run: FixedBatchRun,
    wanted: Counts | None,
    size: int,
) -> tuple[Counts, Counts]:
    """Tokens of each sequence before each of `size` rounds, and tokens gained in it."""
    done = run.rounds + np.arange(size)[:, None]
    shape = (size, traits.size)
    each, at = np.broadcast_to(traits, shape), np.broadcast_to(done, shape)
    after = run.produced + np.cumsum(1 + process.accepted(rng, run.gamma, each, at), axis=0)
    if wanted is not None:
        after = np.minimum(after, wanted)
    before = np.concatenate([run.produced[None], after[:-1]])
    return before, after - before


def _round_seconds(
    scenario: Scenario,
    gamma: int,
    contexts: Counts,
    alive: Bools,
    finished: str,
    run: FixedBatchRun,
    timed: Counts,
) -> Floats:
    """Seconds of each round; also counts the rounds by what bounds them."""
    takes_part = np.ones(alive.shape, bool) if finished == Finished.PADDING else alive
    running = takes_part.sum(axis=1)
    rows = graph_rows(running, run.rows) if finished == Finished.GRAPHS else running
    run.rows = int(rows[-1])
    contexts = np.broadcast_to(contexts, alive.shape)[timed]
    seconds, point = ragged_round_seconds(scenario, gamma, contexts, takes_part[timed], rows[timed])
    codes = np.broadcast_to(round_bounds(point), timed.shape)
    for code, count in zip(codes.tolist(), np.diff(timed, append=len(alive)), strict=True):
        run.rounds_by_bound[code] += int(count)
    return np.interp(np.arange(len(alive)), timed, seconds)


def _count(
    run: FixedBatchRun,
    seconds: Floats,
    gained: Counts,
    alive: Bools,
    wanted: Counts | None,
    timed: Counts,
) -> None:
    ends = run.makespan_s + np.cumsum(seconds)
    after = run.produced + np.cumsum(gained, axis=0)
    last = alive.shape[0] - 1 - np.argmax(alive[::-1], axis=0)
    here = alive.any(axis=0)
    if wanted is None or here.any():
        run.finish_s[here] = ends[last[here]]
    spans = (np.add.reduceat(each, timed) for each in (seconds, gained.sum(axis=1)))
    for start, on, spent, tokens in zip(
        (ends - seconds)[timed], alive[timed].sum(axis=1), *spans, strict=True
    ):
        run.timeline.add(float(start), float(spent), int(on), 0.0, run.gamma, float(tokens))
    run.produced = after[-1]
    run.makespan_s, run.rounds = float(ends[-1]), run.rounds + seconds.size
    run.tokens += int(gained.sum())
    run.sequence_rounds += int(alive.sum())
