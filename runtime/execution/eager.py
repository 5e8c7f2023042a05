"""Draft phases and verifications, run operation by operation; `cuda_graphs` replays them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from runtime.attention.base import AttentionBackend, AttentionPlan, PassLayout
from runtime.execution.draft_steps import DraftPhase, NextDraft, PreparedDraft, Proposal
from runtime.execution.sampling import Sampler
from runtime.model.decoder import Decoder

PassTimer = Callable[[str], AbstractContextManager[None]]  # called with "draft" or "verify"


def untimed(name: str) -> AbstractContextManager[None]:
    """A `PassTimer` that measures nothing."""
    return nullcontext()


class Passes(Protocol):
    """One decoder over one cache."""

    def prepare(self, choices: NextDraft, gamma: int, sampler: Sampler) -> PreparedDraft:
        """Prepare `draft` of a phase that is one of these, of which each has one new token."""
        ...

    def draft(self, phase: DraftPhase, gamma: int, sampler: Sampler) -> Proposal:
        """γ steps, each passing its token to the next on the device."""
        ...

    def verify(
        self, layout: PassLayout, last: Sequence[int] | Tensor, drafts: Tensor, *, greedy: bool
    ) -> Tensor:
        """Logits (B, γ + 1, V) after each sequence's `last` token and after its drafts (B, γ);
        `greedy`: the most likely tokens (B, γ + 1). `last` (B,) may be on host or device."""
        ...


class EagerPasses:
    """Operation by operation, on any device; `timer` surrounds each pass once it is planned."""

    def __init__(
        self, decoder: Decoder, backend: AttentionBackend, *, timer: PassTimer = untimed
    ) -> None:
        self.decoder, self.backend, self._timer = decoder, backend, timer

    def prepare(self, choices: NextDraft, gamma: int, sampler: Sampler) -> PreparedDraft:
        """Nothing is done in advance."""
        return lambda verdict: self.draft(choices.select(verdict), gamma, sampler)

    def draft(self, phase: DraftPhase, gamma: int, sampler: Sampler) -> Proposal:
        """All steps are planned before the first."""
        plans = [self.backend.plan(layout) for layout in phase.layouts(gamma)]
        tokens = torch.tensor(phase.first_tokens, device=self.decoder.device).flatten()
        with self._timer("draft"):
            return draft_steps(self.decoder, plans, tokens, phase.num_new_tokens, sampler)

    def verify(
        self, layout: PassLayout, last: Sequence[int] | Tensor, drafts: Tensor, *, greedy: bool
    ) -> Tensor:
        """One pass over γ + 1 tokens per sequence."""
        plan = self.backend.plan(layout)
        first = torch.as_tensor(last, device=drafts.device)[:, None]
        tokens = torch.cat((first, drafts), dim=1)
        with self._timer("verify"):
            normed = self.decoder.forward(tokens.flatten(), plan.positions, plan)
            rows = output_rows(self.decoder, normed, greedy)
        return rows.view(*tokens.shape, *rows.shape[1:])


def output_rows(decoder: Decoder, normed: Tensor, greedy: bool) -> Tensor:
    """A sampler's input from normed hidden states: logits, or the most likely tokens."""
    return decoder.best(normed) if greedy else decoder.logits(normed)


def draft_steps(
    decoder: Decoder,
    plans: Sequence[AttentionPlan],
    tokens: Tensor,
    num_new_tokens: int,
    sampler: Sampler,
) -> Proposal:
    """The device's part of a draft phase; `tokens` (B * num_new_tokens,) enter the first step."""
    drawn, rows = [], []
    for step, plan in enumerate(plans):
        normed = decoder.forward(tokens, plan.positions, plan)
        if step == 0 and num_new_tokens > 1:
            normed = normed[num_new_tokens - 1 :: num_new_tokens].contiguous()
        tokens, probabilities = sampler.draft(output_rows(decoder, normed, sampler.greedy))
        drawn.append(tokens)
        if probabilities is not None:
            rows.append(probabilities)
    return Proposal(torch.stack(drawn, dim=1), torch.stack(rows, dim=1) if rows else None)
