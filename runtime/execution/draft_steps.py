"""Host-side metadata of γ draft steps, and their output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from runtime.attention.base import Counts, PassLayout


@dataclass(frozen=True, slots=True)
class Proposal:
    """Drafts (B, γ), and the probabilities (B, γ, V) they were drawn from if a sampler needs them.

    If `tokens` were received from another rank, `drafted` (B, γ) holds this rank's own drafts.
    """

    tokens: Tensor
    probabilities: Tensor | None = None
    drafted: Tensor | None = None

    def of_rows(self, rows: list[int]) -> Proposal:
        """The drafts of these sequences."""
        if len(rows) == len(self.tokens):
            return self
        drawn = self.probabilities
        return Proposal(self.tokens[rows], None if drawn is None else drawn[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPhase:
    """Host-side inputs of γ draft steps, per sequence.

    The first step takes `first_tokens` (equally many for each sequence), every later one the token
    drawn before it. `cached` counts the tokens already in the pages.
    """

    first_tokens: Sequence[Sequence[int]]
    first_positions: Counts
    page_tables: Sequence[Sequence[int]]
    cached: Counts
    window_tokens: int | None = None

    @property
    def num_new_tokens(self) -> int:
        """Tokens of each sequence in the first step."""
        return len(self.first_tokens[0])

    def layouts(self, gamma: int) -> list[PassLayout]:
        """The layout of every step."""
        steps = np.arange(gamma)[:, None]
        cached = np.asarray(self.cached, dtype=np.int64) + self.num_new_tokens + steps
        places = np.asarray(self.first_positions, dtype=np.int64) + steps
        places[1:] += self.num_new_tokens - 1
        one = np.ones_like(cached[0])
        return [
            PassLayout(
                page_tables=self.page_tables,
                kv_tokens=cached[step],
                query_tokens=one if step else self.num_new_tokens * one,
                first_positions=places[step],
                window_tokens=self.window_tokens,
            )
            for step in range(gamma)
        ]


# Launches a prepared phase after a verdict (B, γ + 2) on the device; see `sampling`.
PreparedDraft = Callable[[Tensor], Proposal]


@dataclass(frozen=True, slots=True, kw_only=True)
class NextDraft:
    """The next round's draft phase for every number of drafts that the present round may accept.

    It is prepared while the present round verifies.

    Parameters
    ----------
    page_tables : list of list of sequence of int
        Pages to read, for each sequence and number of accepted drafts from 0 to γ.
    cached, first_positions : array (γ + 1, B)
        As in `DraftPhase`, for each number of accepted drafts.
    """

    page_tables: Sequence[Sequence[Sequence[int]]]
    cached: NDArray[np.int64]
    first_positions: NDArray[np.int64]
    window_tokens: int | None = None

    def select(self, verdict: Tensor) -> DraftPhase:
        """The phase after this verdict (B, γ + 2)."""
        rows = [(row[0], row[row[0] + 1]) for row in verdict.tolist()]
        counts, index = [count for count, _ in rows], np.arange(len(rows))
        return DraftPhase(
            first_tokens=[[last] for _, last in rows],
            first_positions=self.first_positions[counts, index],
            page_tables=[t[count] for t, count in zip(self.page_tables, counts, strict=True)],
            cached=self.cached[counts, index],
            window_tokens=self.window_tokens,
        )
