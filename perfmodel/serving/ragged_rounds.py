"""Round times for a batch with unequal context lengths and padded CUDA-graph rows.

A round takes the time that `estimate()` gives for its batch and mean context. If the engine uses
the runtime's split-KV schedule, attention over unequal caches takes longer
(`kernels.attention_split`). A graph with more rows than running sequences computes its GEMMs for
all rows and launches at least one attention block per row.
"""

from __future__ import annotations

import numpy as np

from perfmodel._typing import Bools, Counts, Floats
from perfmodel.kernels.attention_scheduled import ScheduledAttention
from perfmodel.kernels.attention_split import AttentionCall
from perfmodel.scenario import Scenario
from perfmodel.serving.round_times import estimate_rounds
from perfmodel.speculation.round import RoundEstimate

# While no sequence finishes, all lengths grow at similar rates, so the factor of unequal lengths is
# computed only every 8 rounds.
ROUNDS_PER_FACTOR = 8


def graph_rows(running: Counts, before: int) -> Counts:
    """Rows of the graph in each round; a smaller graph is used once half of the rows are idle.

    `running` are sequences in each round, `before` the rows of the graph before the first one; 0
    for none.
    """
    graphs, rows = np.empty_like(running), before
    for index, count in enumerate(running.tolist()):
        rows = count if 2 * count <= rows or not rows else rows
        graphs[index] = rows
    return graphs


def ragged_round_seconds(
    scenario: Scenario, gamma: int, contexts: Counts, takes_part: Bools, rows: Counts
) -> tuple[Floats, RoundEstimate]:
    """Seconds of rounds at one γ, and the underlying estimate for equal caches.

    `contexts` (rounds, sequences) are cached tokens, and `takes_part` which sequences are running;
    `rows` (rounds,) are those of the graph, at least the number of running sequences.
    """
    batch = takes_part.sum(axis=1)
    context = np.sum(contexts * takes_part, axis=1) / batch
    point = estimate_rounds(scenario, batch.astype(float), context, float(gamma))
    shape = batch.shape
    seconds = np.array(np.broadcast_to(point.round_s, shape))
    read, drafted = _attention_s(point, shape)
    if np.any(rows > batch):
        # Attention and host overhead depend on running sequences, all other parts on all rows.
        padded = estimate_rounds(scenario, rows.astype(float), context, float(gamma))
        dense = padded.round_s - padded.overhead_s - sum(_attention_s(padded, shape))
        seconds = dense + read + drafted + point.overhead_s
    if isinstance(scenario.kernels.attention, ScheduledAttention):
        verify, draft = _factors(scenario, gamma, contexts, takes_part, rows - batch)
        seconds = seconds + read * (verify - 1.0) + drafted * (draft - 1.0)
    return seconds, point


def _attention_s(point: RoundEstimate, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Seconds of attention per round, of the target and of all draft steps."""
    target = np.where(
        point.gamma > 0, point.verify.group_s("attention"), point.target_step.group_s("attention")
    )
    drafts = np.zeros(())
    if point.draft_step is not None:
        drafts = point.gamma * point.draft_step.group_s("attention")
    return np.broadcast_to(target, shape), np.broadcast_to(drafts, shape)


def _factors(
    scenario: Scenario, gamma: int, contexts: Counts, takes_part: Bools, idle: Counts
) -> tuple[Floats, Floats]:
    """Factors of unequal caches and idle rows, for attention of the target and the drafts."""
    calls = _calls(scenario, gamma)
    plan = scenario.plan
    factors = np.ones((2, len(contexts)))
    for index, (lengths, on, empty) in enumerate(zip(contexts, takes_part, idle, strict=True)):
        same = index % ROUNDS_PER_FACTOR and empty == idle[index - 1]
        if same and np.array_equal(on, takes_part[index - 1]):
            factors[:, index] = factors[:, index - 1]
            continue
        cached = lengths[on].astype(float)
        drafted = plan.budget_at(cached) if plan.budget_text else cached
        for row, (call, tokens) in enumerate(zip(calls, (cached, drafted), strict=False)):
            factors[row, index] = call.ragged_factor(tokens + call.query_tokens, int(empty))
    return factors[0], factors[1]


def _calls(scenario: Scenario, gamma: int) -> list[AttentionCall]:
    """The attention of a target pass, and of a draft step if there is one."""
    shapes = [(scenario.target, scenario.tp, gamma + 1)]
    if gamma and scenario.draft is not None:
        shapes.append((scenario.draft, scenario.draft_tp, 1))
    return [
        AttentionCall(
            query_tokens=queries,
            query_heads=spec.query_heads_per_rank(tp),
            kv_heads=1 if spec.latent else spec.kv_heads_per_rank(tp),
            head_dim=spec.head_dim,
            sm_count=scenario.machine.gpu.sm_count,
        )
        for spec, tp, queries in shapes
    ]
