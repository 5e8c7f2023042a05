"""The drafter interface, plain decoding and self-speculation; `standalone` has draft models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

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


class Drafter(ABC):
    """Proposes γ tokens per round for every active sequence. By default it keeps no state."""

    def observer(self, prompt_lengths: Sequence[int]) -> PromptObserver | None:
        """The observer to attach to the target's prefill, if any."""
        return None

    def admit(self, sequences: Sequence[SequenceState], progress: Progress) -> None:
        """Add sequences that the target has just prefilled."""
        return

    @abstractmethod
    def propose(self, sequences: Sequence[SequenceState], gamma: int) -> Proposal:
        """Draft γ tokens for each sequence; the target's slots for them are already reserved."""

    def release(self, sequence: SequenceState) -> None:
        """Free what is stored for a finished sequence."""
        return


class NoDraft(Drafter):
    """Plain decoding: proposes zero tokens, in the same loop as speculation."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def propose(self, sequences: Sequence[SequenceState], gamma: int) -> Proposal:
        """An empty proposal."""
        return Proposal(torch.empty((len(sequences), 0), dtype=torch.long, device=self.device))


class SelfDrafter(Drafter):
    """The target drafts for itself, reading a subset of its KV cache."""

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
        self._window: WindowQueries | None = None

    def observer(self, prompt_lengths: Sequence[int]) -> PromptObserver | None:
        """Records the queries of SnapKV's observation window, if the policy needs them."""
        if not self.policy.window_queries:
            return None
        layers = self.decoder.config.layers
        self._window = WindowQueries(prompt_lengths, layers, self.policy.window_queries)
        return self._window

    def admit(self, sequences: Sequence[SequenceState], progress: Progress) -> None:
        """Let the policy choose tokens; there is no second prefill."""
        for job, sequence in enumerate(sequences):
            self.policy.admit(sequence, self._window.of(job) if self._window else ())
        self._window = None

    def propose(self, sequences: Sequence[SequenceState], gamma: int) -> Proposal:
        """Draft γ tokens, one per step, over the policy's view."""
        views = [self.policy.view(sequence) for sequence in sequences]
        tables, cached = [], []
        for view, sequence in zip(views, sequences, strict=True):
            tables.append(view.pages(sequence.table))
            skipped = (view.tail_page - len(view.front)) * self.cache.page_tokens
            cached.append(sequence.table.tokens - skipped)
        full = isinstance(self.policy, FullView)
        steps = DraftPhase(
            first_tokens=[[sequence.tokens[-1]] for sequence in sequences],
            first_positions=[sequence.table.tokens for sequence in sequences],
            page_tables=tables,
            cached=cached,
            window_tokens=self.decoder.config.sliding_window_tokens if full else None,
        )
        return self.passes.draft(steps, gamma, self.sampler)

    def release(self, sequence: SequenceState) -> None:
        """Free the pages that the policy gathered."""
        self.policy.release(sequence)
