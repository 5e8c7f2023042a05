"""Round times for a batch with unequal context lengths and padded CUDA-graph rows.

Rounds take what `estimate()` gives at the batch and the mean context of their sequences. For an
engine with the runtime's split-KV schedule, attention over unequal caches takes longer
(`kernels.attention_split`). A graph with more rows than running sequences multiplies all of them in
its matrix products, and its attention launches one block for each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perfmodel.kernels.attention_scheduled import ScheduledAttention
from perfmodel.kernels.attention_split import AttentionCall
from perfmodel.scenario import Scenario
from perfmodel.serving.round_times import estimate_rounds
from perfmodel.speculation.round import RoundEstimate

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
# The factor of unequal lengths is computed anew every 8 rounds while nobody finishes: lengths then
# grow alike.
ROUNDS_PER_FACTOR = 8


def graph_rows(running: Counts, before: int) -> Counts:
    """Rows of the graph that each round runs in: a smaller one once half of them are idle.

    Parameters
    ----------
    running : array (rounds,)
        Sequences of each round.
    before : int
        Rows of the round before the first; 0 for none.
    """
    graphs, rows = np.empty_like(running), before
    for index, count in enumerate(running.tolist()):
        rows = count if 2 * count <= rows or not rows else rows
        graphs[index] = rows
    return graphs


def ragged_round_seconds(
    scenario: Scenario, gamma: int, contexts: Counts, takes_part: NDArray[np.bool_], rows: Counts
) -> tuple[Array, RoundEstimate]:
    """Seconds of rounds of one γ, and the estimate of equal caches that they rest on.

    Parameters
    ----------
    contexts : array of int (rounds, sequences)
        Cached tokens.
    takes_part : array of bool (rounds, sequences)
        Which sequences run.
    rows : array of int (rounds,)
        Rows of the graph, at least as many as take part.
    """
    batch = takes_part.sum(axis=1)
    context = np.sum(contexts * takes_part, axis=1) / batch
    point = estimate_rounds(scenario, batch.astype(float), context, float(gamma))
    shape = batch.shape
    seconds = np.array(np.broadcast_to(point.round_s, shape))
    read, drafted = _attention_s(point, shape)
    if np.any(rows > batch):
        # All but attention runs for all rows; the host's overhead is that of running sequences.
        padded = estimate_rounds(scenario, rows.astype(float), context, float(gamma))
        dense = padded.round_s - padded.overhead_s - sum(_attention_s(padded, shape))
        seconds = dense + read + drafted + point.overhead_s
    if isinstance(scenario.kernels.attention, ScheduledAttention):
        verify, draft = _factors(scenario, gamma, contexts, takes_part, rows - batch)
        seconds = seconds + read * (verify - 1.0) + drafted * (draft - 1.0)
    return seconds, point


def _attention_s(point: RoundEstimate, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Seconds of attention per round: the target's over full caches, and all draft steps'."""
    target = np.where(
        point.gamma > 0, point.verify.group_s("attention"), point.target_step.group_s("attention")
    )
    drafts = np.zeros(())
    if point.draft_step is not None:
        drafts = point.gamma * point.draft_step.group_s("attention")
    return np.broadcast_to(target, shape), np.broadcast_to(drafts, shape)


def _factors(
    scenario: Scenario, gamma: int, contexts: Counts, takes_part: NDArray[np.bool_], idle: Counts
) -> tuple[Array, Array]:
    """Factors of unequal caches and idle rows on attention of the target and of the drafts."""
    calls = _calls(scenario, gamma)
    budget = scenario.plan.kv_budget_tokens
    factors = np.ones((2, len(contexts)))
    for index, (lengths, on, empty) in enumerate(zip(contexts, takes_part, idle, strict=True)):
        same = index % ROUNDS_PER_FACTOR and empty == idle[index - 1]
        if same and np.array_equal(on, takes_part[index - 1]):
            factors[:, index] = factors[:, index - 1]
            continue
        cached = lengths[on].astype(float)
        drafted = cached if budget is None else np.minimum(cached, budget)
        for row, (call, tokens) in enumerate(zip(calls, (cached, drafted), strict=False)):
            factors[row, index] = call.ragged_factor(tokens + call.query_tokens, int(empty))
    return factors[0], factors[1]


def _calls(scenario: Scenario, gamma: int) -> list[AttentionCall]:
    """Attention of the target's pass, then of one draft step."""
    shapes = [(scenario.target, scenario.tp, gamma + 1)]
    if gamma and scenario.draft is not None:
        shapes.append((scenario.draft, scenario.draft_tp, 1))
    return [
        AttentionCall(
            query_tokens=queries,
            query_heads=spec.query_heads_per_rank(tp),
            kv_heads=spec.kv_heads_per_rank(tp),
            head_dim=spec.head_dim,
            sm_count=scenario.machine.gpu.sm_count,
        )
        for spec, tp, queries in shapes
    ]
