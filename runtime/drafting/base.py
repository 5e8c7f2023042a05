"""The drafter interface, for no draft and for self-speculation; `standalone` has draft models.

Every way of drafting meets one interface, so that the engine's loop does not know which it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from runtime.attention.paged_cache import PagedCache
from runtime.drafting.snapkv import WindowQueries
from runtime.drafting.views import FullView, ViewPolicy
from runtime.execution.draft_steps import DraftPhase, Proposal
from runtime.execution.eager import Passes
from runtime.execution.prefill import Progress, PromptObserver
from runtime.execution.sampling import Sampler
from runtime.execution.sequence import SequenceState
from runtime.model.decoder import Decoder


class Drafter(Protocol):
    """Proposes γ tokens a round for every active sequence."""

    def observer(self, prompt_lengths: Sequence[int]) -> PromptObserver | None:
        """What must see the target's prefill, if anything."""
        ...

    def admit(self, sequences: Sequence[SequenceState], progress: Progress) -> None:
        """Take in sequences that the target has just prefilled."""
        ...

    def propose(self, sequences: Sequence[SequenceState], gamma: int) -> Proposal:
        """Draft γ tokens after each sequence's last; the target's slots for them are reserved."""
        ...

    def release(self, sequence: SequenceState) -> None:
        """Forget a finished sequence."""
        ...


class NoDraft:
    """Proposes nothing: the baseline, on the loop that speculation uses."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def observer(self, prompt_lengths: Sequence[int]) -> PromptObserver | None:
        """Nothing to see."""
        return None

    def admit(self, sequences: Sequence[SequenceState], progress: Progress) -> None:
        """Nothing to keep."""

    def propose(self, sequences: Sequence[SequenceState], gamma: int) -> Proposal:
        """No drafts at all."""
        return Proposal(torch.empty((len(sequences), 0), dtype=torch.long, device=self.device))

    def release(self, sequence: SequenceState) -> None:
        """Nothing to free."""


class SelfDrafter:
    """The target drafts for itself through a view of its own pages."""

    def __init__(
        self,
        decoder: Decoder,
        cache: PagedCache,
        passes: Passes,
        policy: ViewPolicy,
        sampler: Sampler,
    ) -> None:
        self.decoder, self.cache, self.passes = decoder, cache, passes
        self.policy, self.sampler = policy, sampler
        self._seen: WindowQueries | None = None

    def observer(self, prompt_lengths: Sequence[int]) -> PromptObserver | None:
        """SnapKV's window, where the policy wants one."""
        if not self.policy.window_queries:
            return None
        layers = self.decoder.config.layers
        self._seen = WindowQueries(prompt_lengths, layers, self.policy.window_queries)
        return self._seen

    def admit(self, sequences: Sequence[SequenceState], progress: Progress) -> None:
        """Let the policy choose; no second prefill."""
        for job, sequence in enumerate(sequences):
            self.policy.admit(sequence, self._seen.of(job) if self._seen else ())
        self._seen = None

    def propose(self, sequences: Sequence[SequenceState], gamma: int) -> Proposal:
        """γ steps of one token each over the view."""
        views = [self.policy.view(sequence) for sequence in sequences]
        tables, cached = [], []
        for view, sequence in zip(views, sequences, strict=True):
            tables.append(view.pages(sequence.table))
            skipped = (view.tail_page - len(view.front)) * self.cache.page_tokens
            cached.append(sequence.table.tokens - skipped)
        whole = isinstance(self.policy, FullView)
        steps = DraftPhase(
            first_tokens=[[sequence.tokens[-1]] for sequence in sequences],
            first_positions=[sequence.table.tokens for sequence in sequences],
            page_tables=tables,
            cached=cached,
            window_tokens=self.decoder.config.sliding_window_tokens if whole else None,
        )
        return self.passes.draft(steps, gamma, self.sampler)

    def release(self, sequence: SequenceState) -> None:
        """Let the policy free what it gathered."""
        self.policy.release(sequence)
