"""The paged KV cache: one pool of pages, and a list of pages for each sequence.

A page holds keys and values of `page_tokens` tokens in every layer. Page lists exist only on the
host, so growing, rolling back and freeing touch no tensor. Pages are reused without being cleared,
because no sequence reads a slot that it has not written.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from runtime.config import DecoderConfig
from runtime.errors import OutOfPages


@dataclass(slots=True)
class PageTable:
    """One sequence's pages in order, and the number of tokens in them."""

    pages: array[int] = field(default_factory=lambda: array("i"))
    tokens: int = 0


class PagedCache:
    """Keys and values of one model on one rank.

    Parameters
    ----------
    pages, page_tokens : int
        Pages in the pool; tokens per page.
    kv_heads : int
        KV heads on this rank.

    Raises
    ------
    OutOfPages
        If the device has too little memory.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        kv_heads: int,
        pages: int,
        page_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.page_tokens = page_tokens
        self.pages = pages
        self.idle_page = pages  # an extra page for the idle rows of a fixed-size batch
        shape = (config.layers, 2, pages + 1, page_tokens, kv_heads, config.head_dim)
        try:
            # Zeros: padded reads are masked, but 0 times NaN would still be NaN.
            self.storage = torch.zeros(shape, dtype=dtype, device=device)
        except RuntimeError as error:
            needed = torch.Size(shape).numel() * dtype.itemsize
            raise OutOfPages(
                f"not enough memory for a KV cache of {needed / 1e9:.2f} GB ({pages:,} pages of "
                f"{page_tokens} tokens at {needed // ((pages + 1) * page_tokens):,} bytes per "
                f"token); use a smaller batch or shorter sequences"
            ) from error
        self._free = list(range(pages - 1, -1, -1))

    @property
    def free_pages(self) -> int:
        """Pages that no sequence uses."""
        return len(self._free)

    @property
    def bytes(self) -> int:
        """Bytes of the whole pool."""
        return self.storage.numel() * self.storage.element_size()

    @property
    def token_bytes(self) -> int:
        """Bytes per token over all layers, on this rank."""
        return self.bytes // ((self.pages + 1) * self.page_tokens)

    def slots(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each (pages * page_tokens, kv_heads, head_dim)."""
        keys, values = self.storage[layer]
        return keys.flatten(0, 1), values.flatten(0, 1)

    # ---- pages of one sequence ----------------------------------------------------------------

    def allocate(self, count: int) -> list[int]:
        """Take `count` free pages.

        Raises
        ------
        OutOfPages
            If fewer than `count` pages are free.
        """
        if count > len(self._free):
            raise OutOfPages(
                f"the KV cache is out of pages: {count:,} more are needed, but only "
                f"{len(self._free):,} of {self.pages:,} pages of {self.page_tokens} tokens are "
                f"free; use a smaller batch, shorter sequences or more pages"
            )
        return [self._free.pop() for _ in range(count)]

    def free(self, pages: Sequence[int]) -> None:
        """Return these pages to the pool."""
        self._free.extend(reversed(pages))

    def reserve(self, table: PageTable, new_tokens: int) -> None:
        """Allocate pages for `new_tokens` more tokens in this table."""
        missing = pages_for(table.tokens + new_tokens, self.page_tokens) - len(table.pages)
        if missing > 0:
            table.pages.extend(self.allocate(missing))

    def truncate(self, table: PageTable, tokens: int, *, reserved: int = 0) -> None:
        """Roll back to the first `tokens` tokens and free every page after `reserved` more."""
        used = pages_for(tokens + reserved, self.page_tokens)
        if used < len(table.pages):
            self.free(table.pages[used:])
            del table.pages[used:]
        table.tokens = tokens

    def drop_page(self, table: PageTable, index: int) -> None:
        """Remove one full page from the middle, such as the oldest page of a sliding window."""
        self.free([table.pages.pop(index)])
        table.tokens -= self.page_tokens

    def release(self, table: PageTable) -> None:
        """Free all pages of a finished sequence."""
        self.truncate(table, 0)


def pages_for(tokens: int, page_tokens: int) -> int:
    """Number of pages for `tokens` tokens."""
    return -(-tokens // page_tokens)
