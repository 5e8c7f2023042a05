"""Whole passes as CUDA graphs: one launch a draft phase, one a verification.

A graph has room for a number of sequences and of pages each; rows without a sequence read and write
the cache's idle page. One is captured when first needed, and a smaller one beside it once half of
its rows are idle. That stalls a run for 0.1 to 0.5 s. Capturing every size at the start would take
as long for each, drained to or not, and hold each one's output: up to as much again as the first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Sequence as Many
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from runtime.attention.base import PassLayout
from runtime.attention.flashinfer_backend import FlashInferAttention, PlanTables
from runtime.execution.draft_steps import DraftPhase, Proposal
from runtime.execution.eager import draft_steps, output_rows
from runtime.execution.sampling import Sampler
from runtime.model.decoder import Decoder

_Output = TypeVar("_Output")
_Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Captured(Generic[_Output]):
    """A graph, the tables and first tokens that it reads, and what it writes."""

    graph: torch.cuda.CUDAGraph
    tables: PlanTables
    output: _Output

    def replay(self) -> _Output:
        """Launch it; the output holds until the next replay."""
        self.graph.replay()
        return self.output


class GraphPasses:
    """One decoder over one cache, on a GPU."""

    def __init__(self, decoder: Decoder, backend: FlashInferAttention) -> None:
        self.decoder, self.backend = decoder, backend
        self._drafts: dict[_Key, list[Captured[Proposal]]] = {}
        self._verifies: dict[_Key, list[Captured[Tensor]]] = {}
        # Drafts are read after the verification's replay, whose intermediates must not lie where a
        # draft graph that was captured later has its output: each kind has memory of its own.
        self._draft_pool: Any = torch.cuda.graph_pool_handle()
        self._verify_pool: Any = torch.cuda.graph_pool_handle()
        self.last: Captured[Any] | None = None  # what ran last, ready to be replayed
        self.around: Callable[[str], AbstractContextManager[None]] = _untimed  # of a replay alone

    def draft(self, phase: DraftPhase, gamma: int, sampler: Sampler) -> Proposal:
        """One replay of γ steps."""
        layouts, batch = phase.layouts(gamma), len(phase.cached)
        key = (gamma, phase.fed, phase.window_tokens, sampler.greedy)

        def steps(tables: PlanTables) -> Proposal:
            return draft_steps(self.decoder, tables.plans, tables.tokens, phase.fed, sampler)

        tokens = [token for row in phase.first_tokens for token in row]
        captured = self._captured(
            self._drafts, self._draft_pool, key, layouts, tokens, steps, sampler
        )
        with self.around("draft"):
            found = captured.replay()
        rows = found.probabilities
        return Proposal(found.tokens[:batch], None if rows is None else rows[:batch])

    def verify(
        self, layout: PassLayout, last: Many[int], drafts: Tensor, *, greedy: bool
    ) -> Tensor:
        """One replay."""
        batch, gamma = drafts.shape
        width = gamma + 1
        key = (width, layout.window_tokens, greedy)

        def run(tables: PlanTables) -> Tensor:
            plan = tables.plans[0]
            normed = self.decoder.forward(tables.tokens, plan.positions, plan)
            rows = output_rows(self.decoder, normed, greedy)
            return rows.view(-1, width, *rows.shape[1:])

        tokens = [token for first in last for token in (first, *[0] * gamma)]
        captured = self._captured(
            self._verifies, self._verify_pool, key, [layout], tokens, run, None
        )
        captured.tables.tokens.view(-1, width)[:batch, 1:].copy_(drafts)
        with self.around("verify"):
            rows: Tensor = captured.replay()
        return rows[:batch]

    def _captured(
        self,
        graphs: dict[_Key, list[Captured[_Output]]],
        pool: Any,
        key: _Key,
        layouts: Many[PassLayout],
        tokens: Many[int],
        run: Callable[[PlanTables], _Output],
        sampler: Sampler | None,
    ) -> Captured[_Output]:
        """The graph for these passes, its tables filled."""
        known, batch = graphs.setdefault(key, []), len(layouts[0].kv_tokens)
        fitting = [graph for graph in known if graph.tables.fits(layouts)]
        found = min(fitting, key=lambda graph: graph.tables.batch, default=None)
        if found is not None and 2 * batch > found.tables.batch:
            found.tables.fill(layouts, tokens)
        else:
            longest = max(len(table) for table in layouts[0].page_tables)
            room = longest + longest // 8 + 8  # sequences grow
            tables = PlanTables(self.backend, layouts, batch=batch, page_room=room)
            tables.fill(layouts, tokens)
            found = Captured(*self._capture(tables, pool, run, sampler))
            known.append(found)
        self.last = found
        return found

    def _capture(
        self,
        tables: PlanTables,
        pool: Any,
        run: Callable[[PlanTables], _Output],
        sampler: Sampler | None,
    ) -> tuple[torch.cuda.CUDAGraph, PlanTables, _Output]:
        """Run once, so that every kernel is built and every library ready, then record."""
        stream = _capture_stream(self.backend.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run(tables)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        for generator in sampler.draft_streams if sampler is not None else ():
            graph.register_generator_state(generator)
        # Other threads, such as NCCL's watchdog, may query events meanwhile.
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            output = run(tables)
        return graph, tables, output


def _untimed(phase: str) -> AbstractContextManager[None]:
    """Around a replay that nobody times."""
    return nullcontext()


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all trials and captures: cuBLAS keeps 32 MiB for every stream that it meets."""
    return torch.cuda.Stream(device)
