"""Whole passes as CUDA graphs: one launch per draft phase, one per verification.

A graph has room for a number of sequences and of pages each; rows without a sequence read and write
the cache's idle page. A graph is captured when first needed, and a smaller one in addition once
half of its rows have been idle for `_PATIENCE` passes: a capture stalls the run for 0.1 to 0.5 s,
more than a few smaller passes save at the end of a run. Capturing every size at the start would
take as long per size, needed or not, and store an output per size, in total up to as much memory as
the first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from runtime.attention.base import Counts, PassLayout
from runtime.attention.choices import TableChoices
from runtime.attention.flashinfer_backend import FlashInferAttention, PlannedPasses
from runtime.execution.draft_steps import DraftPhase, NextDraft, PreparedDraft, Proposal
from runtime.execution.eager import PassTimer, draft_steps, output_rows, untimed
from runtime.execution.sampling import Sampler
from runtime.model.decoder import Decoder

_Output = TypeVar("_Output")
_Key = tuple[Any, ...]
_PATIENCE = 32


@dataclass(slots=True)
class Captured(Generic[_Output]):
    """A graph, the passes whose tables it reads, and what it writes.

    `too_large` counts the passes in a row that left half of its rows idle.
    """

    graph: torch.cuda.CUDAGraph
    passes: PlannedPasses
    output: _Output
    too_large: int = 0
    choices: TableChoices | None = None  # of a draft phase

    def replay(self) -> _Output:
        """Launch it; the output is valid until the next replay."""
        self.graph.replay()
        return self.output


class GraphPasses:
    """One decoder over one cache, on a GPU; `timer` surrounds each replay and nothing else."""

    def __init__(
        self, decoder: Decoder, backend: FlashInferAttention, *, timer: PassTimer = untimed
    ) -> None:
        self.decoder, self.backend, self._timer = decoder, backend, timer
        self._drafts: dict[_Key, list[Captured[Proposal]]] = {}
        self._verifies: dict[_Key, list[Captured[Tensor]]] = {}
        self._latest: dict[str, Captured[Any]] = {}
        # Drafts are read after the verification's replay, whose intermediates must not lie where a
        # draft graph that was captured later has its output: each kind has a separate memory pool.
        self._draft_pool: Any = torch.cuda.graph_pool_handle()
        self._verify_pool: Any = torch.cuda.graph_pool_handle()

    def captured(self, name: str) -> Captured[Any]:
        """The graph of the latest "draft" or "verify", with its tables as that call filled them."""
        return self._latest[name]

    def draft(self, phase: DraftPhase, gamma: int, sampler: Sampler) -> Proposal:
        """One replay of γ steps."""
        layouts = phase.layouts(gamma)
        key = (gamma, phase.num_new_tokens, phase.window_tokens, sampler.greedy)

        def steps(passes: PlannedPasses) -> Proposal:
            tokens = passes.tables.tokens
            return draft_steps(self.decoder, passes.plans, tokens, phase.num_new_tokens, sampler)

        tokens = np.asarray(phase.first_tokens).ravel()
        captured = self._graph(self._drafts, self._draft_pool, key, layouts, tokens, steps, sampler)
        return self._replay_draft(captured, len(phase.cached))

    def prepare(self, choices: NextDraft, gamma: int, sampler: Sampler) -> PreparedDraft:
        """The tables of all choices, if there is a graph that fits them all."""
        batch = len(choices.page_tables)
        longest = max(len(table) for tables in choices.page_tables for table in tables)
        key = (gamma, 1, choices.window_tokens, sampler.greedy)
        captured = self._fitting(self._drafts.get(key, ()), batch, longest)

        def by_host(verdict: Tensor) -> Proposal:
            return self.draft(choices.select(verdict), gamma, sampler)

        if captured is None:
            return by_host
        if captured.choices is None:
            captured.choices = TableChoices(captured.passes.tables, gamma + 1)
        tables, steps = captured.choices, np.arange(gamma)[:, None]
        fits = tables.prepare(
            choices.page_tables,
            kv_tokens=choices.cached[:, None] + 1 + steps,
            positions=choices.first_positions[:, None] + steps,
        )
        if not fits:
            return by_host

        def launch(verdict: Tensor) -> Proposal:
            accepted = verdict[:, 0]
            tables.select(accepted, verdict.gather(1, accepted[:, None] + 1)[:, 0])
            return self._replay_draft(captured, batch)

        return launch

    def _replay_draft(self, captured: Captured[Proposal], batch: int) -> Proposal:
        self._latest["draft"] = captured
        with self._timer("draft"):
            drafts = captured.replay()
        rows = drafts.probabilities
        return Proposal(drafts.tokens[:batch], None if rows is None else rows[:batch])

    def verify(
        self, layout: PassLayout, last: Sequence[int] | Tensor, drafts: Tensor, *, greedy: bool
    ) -> Tensor:
        """One replay."""
        batch, gamma = drafts.shape
        width = gamma + 1
        key = (width, layout.window_tokens, greedy)

        def run(passes: PlannedPasses) -> Tensor:
            plan = passes.plans[0]
            normed = self.decoder.forward(passes.tables.tokens, plan.positions, plan)
            rows = output_rows(self.decoder, normed, greedy)
            return rows.view(-1, width, *rows.shape[1:])

        tokens = []
        if not isinstance(last, Tensor):
            tokens = [token for first in last for token in (first, *[0] * gamma)]
        captured = self._graph(self._verifies, self._verify_pool, key, [layout], tokens, run, None)
        self._latest["verify"] = captured
        inputs = captured.passes.tables.tokens.view(-1, width)[:batch]
        if isinstance(last, Tensor):
            inputs[:, 0].copy_(last)
        inputs[:, 1:].copy_(drafts)
        with self._timer("verify"):
            rows: Tensor = captured.replay()
        return rows[:batch]

    def _graph(
        self,
        graphs: dict[_Key, list[Captured[_Output]]],
        pool: Any,
        key: _Key,
        layouts: Sequence[PassLayout],
        tokens: Counts,
        run: Callable[[PlannedPasses], _Output],
        sampler: Sampler | None,
    ) -> Captured[_Output]:
        """The graph for these passes, with its tables filled."""
        known, batch = graphs.setdefault(key, []), len(layouts[0].kv_tokens)
        longest = max(len(table) for table in layouts[0].page_tables)
        fitting = self._fitting(known, batch, longest)
        if fitting is not None:
            fitting.passes.tables.fill(layouts, tokens)
            return fitting
        room = longest + longest // 8 + 8  # sequences grow
        passes = self.backend.plan_passes(layouts, batch=batch, page_room=room)
        passes.tables.fill(layouts, tokens)
        known.append(self._capture(passes, pool, run, sampler))
        return known[-1]

    def _fitting(
        self, known: Sequence[Captured[_Output]], batch: int, pages: int
    ) -> Captured[_Output] | None:
        """The smallest graph with this room, unless it has been too large for long."""
        fitting = [graph for graph in known if graph.passes.tables.fits(batch, pages)]
        smallest = min(fitting, key=lambda graph: graph.passes.tables.batch, default=None)
        if smallest is not None:
            half_idle = 2 * batch <= smallest.passes.tables.batch
            smallest.too_large = smallest.too_large + 1 if half_idle else 0
            if smallest.too_large > _PATIENCE:
                return None
        return smallest

    def _capture(
        self,
        passes: PlannedPasses,
        pool: Any,
        run: Callable[[PlannedPasses], _Output],
        sampler: Sampler | None,
    ) -> Captured[_Output]:
        """Run once, so that every kernel is built and every library is ready, then record."""
        stream = _capture_stream(self.backend.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run(passes)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        for generator in sampler.draft_streams if sampler is not None else ():
            graph.register_generator_state(generator)
        # Other threads, such as NCCL's watchdog, may query events meanwhile.
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            output = run(passes)
        return Captured(graph, passes, output)


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of all trial runs and captures: cuBLAS keeps 32 MiB for every stream it uses."""
    return torch.cuda.Stream(device)
