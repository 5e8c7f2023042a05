"""A draft's small context: sink pages and a window of recent pages, one after the other.

StreamingLLM counts positions inside what is kept, so that a model never meets a distance that it
was not trained on. Rotary attention sees only differences of positions: window keys keep the
position they were written at, and instead the few sink keys move up by as much as was dropped
between them and the window. The draft then runs on the same kernels as everything else.

Source: Xiao et al. 2024 (arXiv 2309.17453), section 3.2, for cache-relative positions.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.kv_cache import PagedCache, PageTable
from runtime.layers import Rotary, rotate


@dataclass(frozen=True, slots=True)
class Ring:
    """What a small-context draft keeps, in tokens and pages."""

    budget_tokens: int
    sink_pages: int


class SinkKeys:
    """The sinks' keys as first written, and how far each sequence's have moved since."""

    def __init__(self, cache: PagedCache, rotary: Rotary, sink_pages: int) -> None:
        self.cache, self.rotary, self.sink_pages = cache, rotary, sink_pages
        self._first: dict[int, Tensor] = {}  # by first page: (layers, sink tokens, KV heads, dim)
        self._moved: dict[int, int] = {}

    def follow(self, tables: Many[PageTable], dropped: Many[int]) -> None:
        """Move the sinks of these sequences by as many tokens as each has just dropped."""
        if not tables or not self.sink_pages:
            return
        keys = self.cache.storage[:, 0]  # (layers, pages, page tokens, KV heads, dim)
        for table, count in zip(tables, dropped, strict=True):
            name = table.pages[0]
            if name not in self._first:
                pages = list(table.pages[: self.sink_pages])
                self._first[name] = keys[:, pages].flatten(1, 2)
            self._moved[name] = self._moved.get(name, 0) + count
        names = [table.pages[0] for table in tables]
        first = torch.stack([self._first[name] for name in names], dim=1)
        moved = torch.tensor([self._moved[name] for name in names], device=keys.device)
        turned = rotate(first, *self.rotary.tables(moved[:, None]))
        pages = [page for table in tables for page in table.pages[: self.sink_pages]]
        shape = (turned.shape[0], len(pages), *keys.shape[2:])
        keys[:, torch.tensor(pages, device=keys.device)] = turned.reshape(shape)

    def release(self, table: PageTable) -> None:
        """Forget a finished sequence."""
        if table.pages:
            self._first.pop(table.pages[0], None)
            self._moved.pop(table.pages[0], None)
