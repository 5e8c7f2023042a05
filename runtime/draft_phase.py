"""γ draft steps: planned before the first, and then the host decides nothing between them."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.attention import AttentionBackend, PassLayout
from runtime.sampling import Sampler
from runtime.transformer import Decoder


@dataclass(frozen=True, slots=True)
class Proposal:
    """Drafts (B, γ), and the probabilities (B, γ, V) they were drawn from where a sampler asks."""

    tokens: Tensor
    probabilities: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPhase:
    """What the host knows before the first of γ steps, per sequence.

    The first step feeds `first_tokens` (as many of each sequence), later ones the token drawn.
    """

    first_tokens: Many[Many[int]]
    first_positions: Many[int]
    page_tables: Many[Many[int]]
    cached: Many[int]
    rotate_on_read: bool = False
    window_tokens: int | None = None

    def layouts(self, gamma: int) -> list[PassLayout]:
        """The layout of every step."""
        fed = len(self.first_tokens[0])
        return [
            PassLayout(
                page_tables=self.page_tables,
                kv_tokens=[count + fed + step for count in self.cached],
                query_tokens=[fed if step == 0 else 1] * len(self.cached),
                rotate_on_read=self.rotate_on_read,
                window_tokens=self.window_tokens,
            )
            for step in range(gamma)
        ]


def run_draft_phase(
    phase: DraftPhase, gamma: int, decoder: Decoder, backend: AttentionBackend, sampler: Sampler
) -> Proposal:
    """γ steps, planned first, each feeding the next on the device."""
    layouts = phase.layouts(gamma)
    plans = [backend.plan(layout) for layout in layouts]
    fed = len(phase.first_tokens[0])
    tokens = torch.tensor(phase.first_tokens, device=decoder.device).flatten()
    start = torch.tensor(phase.first_positions, device=decoder.device)
    last_fed = start + fed - 1
    positions = (start[:, None] + torch.arange(fed, device=decoder.device)).flatten()
    drawn, rows = [], []
    for step, plan in enumerate(plans):
        hidden = decoder.forward(tokens, positions, plan)
        if step == 0:
            hidden = hidden[fed - 1 :: fed]
        tokens, probabilities = sampler.draft(decoder.logits(hidden))
        positions = last_fed + step + 1
        drawn.append(tokens)
        if probabilities is not None:
            rows.append(probabilities)
    return Proposal(torch.stack(drawn, dim=1), torch.stack(rows, dim=1) if rows else None)
