"""The interface of attention backends: `plan` once per pass, `attend` once per layer.

A layout consists of page tables and token counts that the host has before the pass starts, so
planning never waits for the device, and all steps of a draft phase can be planned before the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from runtime.attention.paged_cache import PagedCache

Counts = Sequence[int] | NDArray[np.int64]  # one per sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class PassLayout:
    """Pages and token counts of one pass, per sequence.

    `page_tables` lists the pages to read, in order; all but the last are full. `kv_tokens` counts
    the tokens in them, including the pass's new tokens, which are the last `query_tokens`.
    `first_positions` holds the rotary position of each sequence's first new token, by default its
    index among the tokens read. `window_tokens` is the sliding window.
    """

    page_tables: Sequence[Sequence[int]]
    kv_tokens: Counts
    query_tokens: Counts
    first_positions: Counts | None = None
    window_tokens: int | None = None

    @property
    def last_rows(self) -> list[int]:
        """The index of each sequence's last token among all tokens of the pass."""
        return [int(row) - 1 for row in np.cumsum(self.query_tokens)]

    @property
    def positions(self) -> NDArray[np.int64]:
        """The rotary position of every token of the pass."""
        new = np.asarray(self.query_tokens)
        first = self.first_positions
        start = np.asarray(self.kv_tokens) - new if first is None else np.asarray(first)
        shift = start - (np.cumsum(new) - new)
        return np.repeat(shift, new) + np.arange(int(new.sum()))


def runs_of_equal_queries(layouts: Sequence[PassLayout]) -> list[list[PassLayout]]:
    """Group consecutive layouts with the same query counts and window."""
    runs = groupby(layouts, key=lambda one: (one.window_tokens, tuple(one.query_tokens)))
    return [list(run) for _, run in runs]


class AttentionPlan(Protocol):
    """One planned pass of T tokens."""

    @property
    def cache(self) -> PagedCache:
        """The cache that keys and values are written to and read from."""

    @property
    def positions(self) -> Tensor:
        """(T,) rotary positions."""

    @property
    def write_slots(self) -> Tensor:
        """(T,) slots of the cache that the pass's keys and values are written to."""

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """Attend to the cache, which must already contain this pass's keys and values.

        query (T, query heads, head_dim), sequences concatenated; returns the same shape.
        """


class AttentionBackend(Protocol):
    """Attention over one paged cache."""

    def plan(self, layout: PassLayout) -> AttentionPlan:
        """Prepare one pass; `attend` then only launches work on the device."""
