"""The drafter interface, plain decoding and self-speculation; `standalone` has draft models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch

from runtime.attention.paged_cache import PagedCache
from runtime.drafting.snapkv import WindowQueries
from runtime.drafting.views import FullView, View, ViewPolicy
from runtime.execution.draft_steps import DraftPhase, NextDraft, PreparedDraft, Proposal
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

    def prepare(self, sequences: Sequence[SequenceState], gamma: int) -> PreparedDraft | None:
        """The next round's draft phase, before the verdict of this one, for which slots of both
        rounds are reserved; None if it depends on more than the verdict."""
        return None

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
        tables, cached = [], []
        for sequence in sequences:
            view = self.policy.view(sequence, sequence.table.tokens)
            tables.append(view.pages(sequence.table))
            cached.append(sequence.table.tokens - self._skipped(view))
        steps = DraftPhase(
            first_tokens=[[sequence.tokens[-1]] for sequence in sequences],
            first_positions=[sequence.table.tokens for sequence in sequences],
            page_tables=tables,
            cached=cached,
            window_tokens=self._window_tokens,
        )
        return self.passes.draft(steps, gamma, self.sampler)

    def prepare(self, sequences: Sequence[SequenceState], gamma: int) -> PreparedDraft:
        """A view for every number of tokens that the sequences may have after this round.

        A sequence that ends with the round drafts too, to no effect: its tokens are counted only as
        far as it could go on, for which it has pages.
        """
        tables, width = [], gamma + 1
        skipped = np.empty((len(sequences), width), dtype=np.int64)
        room = np.array([max(1, sequence.room - 1) for sequence in sequences], dtype=np.int64)
        added = np.minimum(1 + np.arange(width)[:, None], room)
        for row, sequence in enumerate(sequences):
            least, most = (sequence.table.tokens + int(added[at, row]) for at in (0, -1))
            views = [self.policy.view(sequence, most)]
            if views[0] == self.policy.view(sequence, least):  # mostly
                views *= width
                tables.append([views[0].pages(sequence.table)] * width)
            else:
                tokens = (sequence.table.tokens + added[:, row]).tolist()
                views = [self.policy.view(sequence, count) for count in tokens]
                tables.append([view.pages(sequence.table) for view in views])
            skipped[row] = [self._skipped(view) for view in views]
        positions = added + np.array([sequence.table.tokens for sequence in sequences])
        choices = NextDraft(
            page_tables=tables,
            cached=positions - skipped.T,
            first_positions=positions,
            window_tokens=self._window_tokens,
        )
        return self.passes.prepare(choices, gamma, self.sampler)

    @property
    def _window_tokens(self) -> int | None:
        full = isinstance(self.policy, FullView)
        return self.decoder.config.sliding_window_tokens if full else None

    def _skipped(self, view: View) -> int:
        """Tokens that a view leaves out."""
        return (view.tail_page - len(view.front)) * self.cache.page_tokens

    def release(self, sequence: SequenceState) -> None:
        """Free the pages that the policy gathered."""
        self.policy.release(sequence)
