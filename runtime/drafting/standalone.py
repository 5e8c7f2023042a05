"""Draft models: a smaller model with its own KV cache, either full or limited to sink and window.

The draft may run on a subset of the target's ranks; the other ranks receive its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from runtime.attention.base import AttentionBackend
from runtime.attention.paged_cache import PagedCache, PageTable
from runtime.drafting.base import Drafter, NoDraft
from runtime.drafting.sink_keys import Ring, SinkKeys
from runtime.execution.draft_steps import DraftPhase, Proposal
from runtime.execution.eager import Passes
from runtime.execution.prefill import Progress, PromptJob, prefill
from runtime.execution.sampling import Sampler
from runtime.execution.sequence import SequenceState
from runtime.model.decoder import Decoder
from runtime.parallel.groups import Group


@dataclass(slots=True)
class _DraftState:
    """One sequence in the draft's cache; `tokens` includes those that were dropped."""

    table: PageTable = field(default_factory=PageTable)
    tokens: int = 0


class StandaloneDrafter(Drafter):
    """Drafts with a smaller model.

    The first step of a round processes each sequence's last two tokens. The first of them is
    missing from the cache only if all drafts of the previous round were accepted; otherwise it is
    recomputed with the same result, so that every round has the same shape.
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: PagedCache,
        backend: AttentionBackend,
        passes: Passes,
        sampler: Sampler,
        *,
        ring: Ring | None,
        chunk_tokens: int,
        target_group: Group,
    ) -> None:
        self.decoder, self.cache, self.backend, self.passes = decoder, cache, backend, passes
        self.sampler, self.ring, self.target_group = sampler, ring, target_group
        self.chunk_tokens = chunk_tokens if ring is None else min(chunk_tokens, ring.budget_tokens)
        self.sinks = None if ring is None else SinkKeys(cache, decoder.rotary, ring.sink_pages)
        self._states: dict[int, _DraftState] = {}

    def admit(self, sequences: Sequence[SequenceState], progress: Progress) -> None:
        """Prefill the prompts in the draft's cache."""
        states, jobs = [], []
        for sequence in sequences:
            state = self._states[sequence.index] = _DraftState()
            states.append(state)
            jobs.append(PromptJob(sequence.tokens[: sequence.prompt_tokens], state.table))

        prefill(
            self.decoder,
            self.cache,
            self.backend,
            jobs,
            chunk_tokens=self.chunk_tokens,
            make_room=lambda job: self._drop_old_pages([states[job]]),
            progress=progress,
        )
        for state, sequence in zip(states, sequences, strict=True):
            state.tokens = sequence.prompt_tokens

    def admit_without_prefill(self, sequences: Sequence[SequenceState]) -> None:
        """Add sequences without a prefill, for benchmarks; the cache keeps its current contents."""
        for sequence in sequences:
            state = self._states[sequence.index] = _DraftState(tokens=sequence.prompt_tokens)
            budget = sequence.prompt_tokens if self.ring is None else self.ring.budget_tokens
            cached = min(budget, sequence.prompt_tokens)
            self.cache.reserve(state.table, cached)
            state.table.tokens = cached

    def propose(self, sequences: Sequence[SequenceState], gamma: int) -> Proposal:
        """Roll back to the verified tokens, draft γ, and send them to every rank of the target."""
        states = [self._states[sequence.index] for sequence in sequences]
        for state, sequence in zip(states, sequences, strict=True):
            verified = len(sequence.tokens) - 2
            self.cache.truncate(state.table, state.table.tokens - (state.tokens - verified))
            state.tokens = verified
        self._drop_old_pages(states)
        for state in states:
            self.cache.reserve(state.table, gamma + 1)
        phase = DraftPhase(
            first_tokens=[sequence.tokens[-2:] for sequence in sequences],
            first_positions=[state.tokens for state in states],
            page_tables=[state.table.pages for state in states],
            cached=[state.table.tokens for state in states],
            window_tokens=self.decoder.config.sliding_window_tokens,
        )
        proposal = self.passes.draft(phase, gamma, self.sampler)
        for state in states:
            state.table.tokens += gamma + 1
            state.tokens += gamma + 1
        if self.decoder.group.size == self.target_group.size:
            return proposal  # every rank has drafted the same tokens
        received = self.target_group.broadcast(proposal.tokens.clone())
        return Proposal(received, proposal.probabilities, drafted=proposal.tokens)

    def release(self, sequence: SequenceState) -> None:
        """Free the draft's pages."""
        state = self._states.pop(sequence.index)
        if self.sinks is not None:
            self.sinks.release(state.table)
        self.cache.release(state.table)

    def _drop_old_pages(self, states: Sequence[_DraftState]) -> None:
        """Drop the oldest window pages of sequences over the budget, and move their sinks."""
        if self.ring is None or self.sinks is None:
            return
        dropped = {}
        for index, state in enumerate(states):
            table, before = state.table, state.table.tokens
            while table.tokens > self.ring.budget_tokens:
                self.cache.drop_page(table, self.ring.sink_pages)
            if table.tokens < before:
                dropped[index] = before - table.tokens
        self.sinks.follow([states[index].table for index in dropped], list(dropped.values()))


class AbsentDrafter(NoDraft):
    """Receives the drafts on a rank of the target that does not run the draft model."""

    def __init__(self, device: torch.device, target_group: Group) -> None:
        super().__init__(device)
        self.target_group = target_group

    def propose(self, sequences: Sequence[SequenceState], gamma: int) -> Proposal:
        """Receive the drafts from rank 0."""
        shape = (len(sequences), gamma)
        tokens = torch.empty(shape, dtype=torch.long, device=self.device)
        return Proposal(self.target_group.broadcast(tokens))
