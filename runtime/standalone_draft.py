"""A smaller model that drafts with a cache of its own: whole, or a ring of sink and recent pages.

It may run on a subset of the target's ranks; the others receive its drafts.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import torch

from runtime.attention import AttentionBackend
from runtime.distributed import Group
from runtime.draft import NoDraft
from runtime.draft_phase import DraftPhase, Proposal, run_draft_phase
from runtime.kv_cache import PagedCache, PageTable
from runtime.prefill import Progress, PromptJob, PromptObserver, prefill
from runtime.sampling import Sampler
from runtime.sequence import Sequence
from runtime.transformer import Decoder


@dataclass(slots=True)
class _DraftState:
    """One sequence in the draft's cache; `tokens` counts those fed, which a ring may have lost."""

    table: PageTable = field(default_factory=PageTable)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ring:
    """What a small-context draft keeps: sink pages and recent ones, positions counted inside it."""

    budget_tokens: int
    sink_pages: int


class StandaloneDrafter:
    """A smaller model with a cache of its own: whole, or a ring.

    Every round feeds the last two tokens, though the first is mostly cached: after a round in which
    all drafts were accepted it is not, and one shape serves both (its keys come out the same).
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: PagedCache,
        backend: AttentionBackend,
        sampler: Sampler,
        *,
        ring: Ring | None,
        chunk_tokens: int,
        target_group: Group,
    ) -> None:
        self.decoder, self.cache, self.backend = decoder, cache, backend
        self.sampler, self.ring, self.target_group = sampler, ring, target_group
        self.chunk_tokens = chunk_tokens if ring is None else min(chunk_tokens, ring.budget_tokens)
        self._states: dict[int, _DraftState] = {}

    def observer(self, prompt_lengths: Many[int]) -> PromptObserver | None:
        """Nothing to see in the target."""
        return None

    def admit(self, sequences: Many[Sequence], progress: Progress) -> None:
        """Prefill the prompts in the draft's own cache."""
        jobs = []
        for sequence in sequences:
            state = self._states[sequence.index] = _DraftState(tokens=sequence.prompt_tokens)
            jobs.append(PromptJob(sequence.tokens[: sequence.prompt_tokens], state.table))
        prefill(
            self.decoder,
            self.cache,
            self.backend,
            jobs,
            chunk_tokens=self.chunk_tokens,
            rotate_on_read=self.ring is not None,
            make_room=self._forget,
            progress=progress,
        )

    def propose(self, sequences: Many[Sequence], gamma: int) -> Proposal:
        """Roll back to what is verified, then γ steps; every rank of the target gets the drafts."""
        states = [self._states[sequence.index] for sequence in sequences]
        for state, sequence in zip(states, sequences, strict=True):
            self._roll_back(state, len(sequence.tokens) - 2)
            self._forget(state.table)
            self.cache.reserve(state.table, gamma + 1)
        phase = DraftPhase(
            first_tokens=[sequence.tokens[-2:] for sequence in sequences],
            first_positions=[state.tokens for state in states],
            page_tables=[state.table.pages for state in states],
            cached=[state.table.tokens for state in states],
            rotate_on_read=self.ring is not None,
            window_tokens=self.decoder.config.sliding_window_tokens,
        )
        proposal = run_draft_phase(phase, gamma, self.decoder, self.backend, self.sampler)
        for state in states:
            state.table.tokens += gamma + 1
            state.tokens += gamma + 1
        return Proposal(self.target_group.broadcast(proposal.tokens), proposal.probabilities)

    def release(self, sequence: Sequence) -> None:
        """Free its pages."""
        self.cache.release(self._states.pop(sequence.index).table)

    def _roll_back(self, state: _DraftState, tokens: int) -> None:
        rejected = state.tokens - tokens
        self.cache.truncate(state.table, state.table.tokens - rejected)
        state.tokens = tokens

    def _forget(self, table: PageTable) -> None:
        """Drop the oldest window pages until the ring holds no more than its budget."""
        if self.ring is not None:
            while table.tokens > self.ring.budget_tokens:
                self.cache.drop_page(table, self.ring.sink_pages)


class AbsentDrafter(NoDraft):
    """On a rank of the target that has no part of the draft: receives the drafts."""

    def __init__(self, device: torch.device, target_group: Group) -> None:
        super().__init__(device)
        self.target_group = target_group

    def propose(self, sequences: Many[Sequence], gamma: int) -> Proposal:
        """Wait for the drafts."""
        shape = (len(sequences), gamma)
        tokens = torch.empty(shape, dtype=torch.long, device=self.device)
        return Proposal(self.target_group.broadcast(tokens))
