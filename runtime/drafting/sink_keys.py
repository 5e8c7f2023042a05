"""StreamingLLM's cache-relative positions for a draft model: rotate the sink keys.

StreamingLLM numbers positions within the cache, so that a model never meets a distance longer than
it was trained on. Rotary attention depends only on differences of positions, so it suffices to move
the few sink keys forward by the number of tokens dropped between them and the window; window keys
stay as they were written, and the draft runs on unchanged kernels.

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
    """Size of a draft's cache in tokens, and the sink pages in it."""

    budget_tokens: int
    sink_pages: int


class SinkKeys:
    """The sink keys as first written, and how far each sequence's have been moved since.

    All sequences are rotated together, so that a round takes the same few operations for any batch.
    """

    def __init__(self, cache: PagedCache, rotary: Rotary, sink_pages: int) -> None:
        self.cache, self.rotary, self.sink_pages = cache, rotary, sink_pages
        self._moved: dict[int, int] = {}  # tokens, by the sequence's first page
        self._pages_of: dict[int, list[int]] = {}
        self._keys: list[Tensor] = []  # (layers, sink tokens, KV heads, head_dim), as in `_moved`
        self._stacked: tuple[Tensor, Tensor] | None = None  # all keys, and their pages

    def follow(self, tables: Sequence[PageTable], dropped: Sequence[int]) -> None:
        """Move each sequence's sink keys forward by the tokens that it has just dropped."""
        if not tables or not self.sink_pages:
            return
        for table, count in zip(tables, dropped, strict=True):
            first_page = table.pages[0]
            if first_page not in self._moved:
                pages = self._pages_of[first_page] = list(table.pages[: self.sink_pages])
                self._keys.append(self.cache.storage[:, 0][:, pages].flatten(1, 2))
                self._moved[first_page] = 0
                self._stacked = None
            self._moved[first_page] += count
        original, all_pages = self._stack()
        moved = torch.tensor(list(self._moved.values()), device=original.device)
        # (layers, sequences, sink tokens, KV heads, head_dim)
        rotated = rotate(original, *self.rotary.tables(moved[:, None]))
        keys = self.cache.storage[:, 0]  # (layers, pages, page tokens, KV heads, head_dim)
        keys[:, all_pages] = rotated.reshape(len(keys), len(all_pages), *keys.shape[2:])

    def release(self, table: PageTable) -> None:
        """Forget a finished sequence."""
        if table.pages and table.pages[0] in self._moved:
            del self._keys[list(self._moved).index(table.pages[0])]
            del self._moved[table.pages[0]]
            del self._pages_of[table.pages[0]]
            self._stacked = None

    def _stack(self) -> tuple[Tensor, Tensor]:
        if self._stacked is None:
            keys = torch.stack(self._keys, dim=1)
            pages = [page for pages in self._pages_of.values() for page in pages]
            self._stacked = keys, torch.tensor(pages, device=keys.device)
        return self._stacked
