"""A draft's small context: sink pages and a window of recent pages, one after the other.

StreamingLLM counts positions inside what is kept, so that a model never meets a distance that it
was not trained on. Rotary attention sees only differences of positions: window keys keep the
position they were written at, and instead the few sink keys move up by as much as was dropped
between them and the window. The draft then runs on the same kernels as everything else.

Source: Xiao et al. 2024 (arXiv 2309.17453), section 3.2, for cache-relative positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.attention.paged_cache import PagedCache, PageTable
from runtime.kernels.rotary import Rotary, rotate


@dataclass(frozen=True, slots=True)
class Ring:
    """What a small-context draft keeps, in tokens and pages."""

    budget_tokens: int
    sink_pages: int


class SinkKeys:
    """The sinks' keys as first written, and how far each sequence's have moved since.

    All sequences are rotated together, by 0 where nothing was dropped, so that a round takes a few
    operations whatever the batch.
    """

    def __init__(self, cache: PagedCache, rotary: Rotary, sink_pages: int) -> None:
        self.cache, self.rotary, self.sink_pages = cache, rotary, sink_pages
        self._moved: dict[int, int] = {}  # by first page
        self._pages_of: dict[int, list[int]] = {}
        self._keys: list[Tensor] = []  # (layers, sink tokens, KV heads, head_dim), in that order
        self._together: tuple[Tensor, Tensor] | None = None  # those keys stacked, and their pages

    def follow(self, tables: Sequence[PageTable], dropped: Sequence[int]) -> None:
        """Move the sinks of these sequences by as many tokens as each has just dropped."""
        if not tables or not self.sink_pages:
            return
        for table, count in zip(tables, dropped, strict=True):
            name = table.pages[0]
            if name not in self._moved:
                self._hold(table)
                self._moved[name] = 0
            self._moved[name] += count
        first, pages = self._all()
        moved = torch.tensor(list(self._moved.values()), device=first.device)
        turned = rotate(first, *self.rotary.tables(moved[:, None]))  # (layers, n, tokens, KV, dim)
        keys = self.cache.storage[:, 0]  # (layers, pages, page tokens, KV heads, dim)
        keys[:, pages] = turned.reshape(len(keys), len(pages), *keys.shape[2:])

    def release(self, table: PageTable) -> None:
        """Forget a finished sequence."""
        if table.pages and table.pages[0] in self._moved:
            del self._keys[list(self._moved).index(table.pages[0])]
            del self._moved[table.pages[0]]
            self._pages_of.pop(table.pages[0])
            self._together = None

    def _hold(self, table: PageTable) -> None:
        pages = list(table.pages[: self.sink_pages])
        self._keys.append(self.cache.storage[:, 0][:, pages].flatten(1, 2))
        self._pages_of[table.pages[0]] = pages
        self._together = None

    def _all(self) -> tuple[Tensor, Tensor]:
        if self._together is None:
            stacked = torch.stack(self._keys, dim=1)
            pages = [page for name in self._moved for page in self._pages_of[name]]
            self._together = stacked, torch.tensor(pages, device=stacked.device)
        return self._together
