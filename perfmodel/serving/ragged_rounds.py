"""What rounds of a fixed batch cost: unequal caches, and rows of a graph without a sequence.

Rounds are priced by `estimate()` at the batch and the mean context of their sequences. For an
engine that cuts attention as the runtime does, attention over unequal caches takes longer
(`attention_cuts`); and where a graph holds more rows than sequences run, its products take them
all, and its attention a block for each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.kernels.attention_scheduled import ScheduledAttention
from perfmodel.kernels.attention_split import AttentionCall
from perfmodel.scenario import Scenario
from perfmodel.serving.round_times import estimate_rounds
from perfmodel.speculation.round import RoundEstimate

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
HELD = 8  # rounds over which lengths stand to each other as in the first, while nobody finishes


@dataclass(frozen=True, eq=False, slots=True)
class RoundPrices:
    """Seconds of some rounds, and the estimate of equal caches that they rest on."""

    seconds: Array
    point: RoundEstimate


def graph_rows(running: Counts, before: int) -> Counts:
    """Rows of the graph that each round runs in: a smaller one once half of them are idle.

    Parameters
    ----------
    running : array (rounds,)
        Sequences of each round.
    before : int
        Rows of the round before the first; 0 for none.
    """
    found, rows = np.empty_like(running), before
    for index, count in enumerate(running.tolist()):
        rows = count if 2 * count <= rows or not rows else rows
        found[index] = rows
    return found


def price_rounds(
    scenario: Scenario, gamma: int, contexts: Counts, costs: NDArray[np.bool_], rows: Counts
) -> RoundPrices:
    """Price rounds of one γ.

    Parameters
    ----------
    contexts : array of int (rounds, sequences)
        Cached tokens.
    costs : array of bool (rounds, sequences)
        Who takes part.
    rows : array of int (rounds,)
        Rows of the graph, at least as many as take part.
    """
    batch = costs.sum(axis=1)
    context = np.sum(contexts * costs, axis=1) / batch
    point = estimate_rounds(scenario, batch.astype(float), context, float(gamma))
    shape = batch.shape
    seconds = np.array(np.broadcast_to(point.round_s, shape))
    read, drafted = _attention_s(point, shape)
    if np.any(rows > batch):
        # All but attention, of all rows; the host still has the running sequences alone.
        whole = estimate_rounds(scenario, rows.astype(float), context, float(gamma))
        own = whole.round_s - whole.overhead_s - sum(_attention_s(whole, shape))
        seconds = own + read + drafted + point.overhead_s
    if isinstance(scenario.kernels.attention, ScheduledAttention):
        verify, draft = _factors(scenario, gamma, contexts, costs, rows - batch)
        seconds = seconds + read * (verify - 1.0) + drafted * (draft - 1.0)
    return RoundPrices(seconds, point)


def _attention_s(point: RoundEstimate, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Seconds of attention in a round: the target's over whole caches, and all draft steps'."""
    pass_of_all = np.where(
        point.gamma > 0, point.verify.group_s("attention"), point.target_step.group_s("attention")
    )
    drafts = np.zeros(())
    if point.draft_step is not None:
        drafts = point.gamma * point.draft_step.group_s("attention")
    return np.broadcast_to(pass_of_all, shape), np.broadcast_to(drafts, shape)


def _factors(
    scenario: Scenario, gamma: int, contexts: Counts, costs: NDArray[np.bool_], idle: Counts
) -> tuple[Array, Array]:
    """What unequal caches and idle rows make of the target's and of the drafts' attention."""
    calls = _calls(scenario, gamma)
    budget = scenario.plan.kv_budget_tokens
    found = np.ones((2, len(costs)))
    for index, (lengths, on, empty) in enumerate(zip(contexts, costs, idle, strict=True)):
        if index % HELD and np.array_equal(on, costs[index - 1]) and empty == idle[index - 1]:
            found[:, index] = found[:, index - 1]
            continue
        held = lengths[on].astype(float)
        kept = held if budget is None else np.minimum(held, budget)
        for row, (call, tokens) in enumerate(zip(calls, (held, kept), strict=False)):
            found[row, index] = call.ragged_factor(tokens + call.query_tokens, int(empty))
    return found[0], found[1]


def _calls(scenario: Scenario, gamma: int) -> list[AttentionCall]:
    """The target's attention in a round, then a draft step's."""
    shapes = [(scenario.target, scenario.tp, gamma + 1)]
    if gamma and scenario.draft is not None:
        shapes.append((scenario.draft, scenario.draft_tp, 1))
    return [
        AttentionCall(
            query_tokens=queries, query_heads=spec.query_heads_per_rank(tp),
            kv_heads=spec.kv_heads_per_rank(tp), head_dim=spec.head_dim,
            sm_count=scenario.machine.gpu.sm_count,
        )
        for spec, tp, queries in shapes
    ]  # fmt: skip
