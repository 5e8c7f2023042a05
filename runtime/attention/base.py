"""The interface of attention backends: `plan` once per pass, `attend` once per layer.

A layout consists of pages and counts that the host has before the pass starts, so planning never
waits for the device, and all steps of a draft phase can be planned before the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from runtime.attention.paged_cache import PagedCache

Counts = Sequence[int] | NDArray[np.int64]  # one per sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class PassLayout:
    """What one pass reads and writes, per sequence.

    `page_tables` lists the pages to read, in order, all full but the last. `kv_tokens` counts the
    tokens read from them, including the new tokens of the pass, which are the last `query_tokens`.
    `first_positions` are the rotary positions of each sequence's first new token, by default its
    index among the tokens read. `window_tokens` limits how far back a query sees.
    """

    page_tables: Sequence[Sequence[int]]
    kv_tokens: Counts
    query_tokens: Counts
    first_positions: Counts | None = None
    window_tokens: int | None = None

    @property
    def last_rows(self) -> list[int]:
        """The row of each sequence's last token among all the tokens of the pass."""
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
    """Layouts in order, neighbours with the same query counts and window in one list."""
    runs: list[list[PassLayout]] = []
    for layout in layouts:
        if runs and _same_queries(runs[-1][-1], layout):
            runs[-1].append(layout)
        else:
            runs.append([layout])
    return runs


def _same_queries(one: PassLayout, other: PassLayout) -> bool:
    same_window = one.window_tokens == other.window_tokens
    return same_window and np.array_equal(one.query_tokens, other.query_tokens)


class AttentionPlan(Protocol):
    """One planned pass of T tokens."""

    @property
    def cache(self) -> PagedCache:
        """The cache that keys and values are written to and read from."""
        ...

    @property
    def positions(self) -> Tensor:
        """(T,) rotary positions."""
        ...

    @property
    def write_slots(self) -> Tensor:
        """(T,) slots of the cache that the pass's keys and values are written to."""
        ...

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """Attend to the cache, into which this pass's keys and values have been written.

        query (T, query heads, head_dim), sequences concatenated; returns the same shape.
        """
        ...


class AttentionBackend(Protocol):
    """Attention over one paged cache."""

    def plan(self, layout: PassLayout) -> AttentionPlan:
        """Prepare one pass; `attend` then only launches work on the device."""
        ...
