"""Draft policies for self-speculation: which pages of the target's KV cache a draft reads.

A view is a list of front pages followed by a tail of the target's page table. Drafted tokens are
written to the target's next slots, and verification overwrites them, so a view copies nothing and
is recomputed every round.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from runtime.attention.paged_cache import PagedCache, PageTable, pages_for
from runtime.drafting.snapkv import gather_pages
from runtime.errors import InputError
from runtime.execution.sequence import SequenceState


class View(NamedTuple):
    """Full front pages, then the target's pages from index `tail_page` on."""

    front: Sequence[int]
    tail_page: int

    def pages(self, table: PageTable) -> Sequence[int]:
        """All pages to read, in order."""
        tail = table.pages[self.tail_page :]
        return array("i", self.front) + tail if self.front else tail


class ViewPolicy:
    """Chooses what a self-draft reads of each sequence. By default it reads every page.

    `window_queries` is how many of a prompt's last queries `admit` receives.
    """

    window_queries = 0

    def admit(self, sequence: SequenceState, queries: Sequence[Tensor]) -> None:
        """Add a prefilled sequence; `queries` are those of its last prompt tokens, per layer."""

    def view(self, sequence: SequenceState, cached: int) -> View:
        """What to read of the first `cached` tokens of a sequence."""
        return View((), 0)

    def release(self, sequence: SequenceState) -> None:
        """Free what is stored for a finished sequence."""


class FullView(ViewPolicy):
    """The full KV cache: the draft equals the target, so every draft is accepted."""


class SinkWindowView(ViewPolicy):
    """StreamingLLM: sink pages and the most recent pages, at most `budget_tokens` tokens in total.

    Tokens keep their positions in the target, because the pages are shared with it.
    """

    def __init__(self, *, budget_tokens: int, sink_tokens: int, page_tokens: int) -> None:
        self.sink_pages = whole_sink_pages(budget_tokens, sink_tokens, page_tokens)
        self.budget_tokens, self.page_tokens = budget_tokens, page_tokens

    def view(self, sequence: SequenceState, cached: int) -> View:
        """All pages while they fit the budget, then sink and window."""
        if cached <= self.budget_tokens:
            return View((), 0)
        window_tokens = self.budget_tokens - self.sink_pages * self.page_tokens
        tail = pages_for(cached - window_tokens, self.page_tokens)
        return View(sequence.table.pages[: self.sink_pages], tail)


def whole_sink_pages(budget_tokens: int, sink_tokens: int, page_tokens: int) -> int:
    """Number of pages that the sink occupies.

    Raises
    ------
    InputError
        If the budget is smaller than the sink's pages and one window page.
    """
    pages = pages_for(sink_tokens, page_tokens)
    least = (pages + 1) * page_tokens
    if budget_tokens < least:
        raise InputError(
            f"kv_budget={budget_tokens} is too small for a sink of {sink_tokens} tokens and a "
            f"window of at least one page of {page_tokens} tokens; use {least} or more"
        )
    return pages


class SnapView(ViewPolicy):
    """SnapKV: prompt tokens chosen once per layer and head, then all generated tokens.

    The chosen tokens are gathered into new pages that cover the prompt up to its last full page;
    from there on the draft reads the target's pages. Gathered tokens and the rest of the prompt
    together stay within the budget.
    """

    def __init__(
        self, cache: PagedCache, *, budget_tokens: int, window_queries: int, pool_tokens: int
    ) -> None:
        if pool_tokens % 2 == 0:
            raise InputError(
                f"snapkv_pool={pool_tokens} is even, but SnapKV's pooling window is centred; "
                f"use an odd number"
            )
        page = cache.page_tokens
        # The prompt's last, partly filled page of up to `page` - 1 tokens counts as well.
        least = max(window_queries + page, 2 * page - 1)
        if budget_tokens < least:
            raise InputError(
                f"kv_budget={budget_tokens} is too small for SnapKV with a window of "
                f"{window_queries} tokens and pages of {page} tokens; use {least} or more"
            )
        self.cache, self.budget_tokens = cache, budget_tokens
        self.window_queries, self.pool_tokens = window_queries, pool_tokens
        self._views: dict[int, View] = {}

    def admit(self, sequence: SequenceState, queries: Sequence[Tensor]) -> None:
        """Choose and gather tokens, unless the prompt fits the budget."""
        tail_page, pages = self.gathered_pages(sequence.prompt_tokens)
        front = []
        if pages:
            front = gather_pages(
                self.cache,
                sequence.table,
                queries,
                pages=pages,
                tail_start=tail_page * self.cache.page_tokens,
                pool_tokens=self.pool_tokens,
            )
        self.admit_with_view(sequence, View(front, tail_page))

    def gathered_pages(self, prompt_tokens: int) -> tuple[int, int]:
        """The first target page to read, and the number of gathered pages before it."""
        if prompt_tokens <= self.budget_tokens:
            return 0, 0
        tail_page, rest = divmod(prompt_tokens, self.cache.page_tokens)
        return tail_page, (self.budget_tokens - rest) // self.cache.page_tokens

    def admit_with_view(self, sequence: SequenceState, view: View) -> None:
        """Add a sequence whose pages have been gathered."""
        self._views[sequence.index] = view

    def view(self, sequence: SequenceState, cached: int) -> View:
        """The gathered pages, then the target's pages from the last part of the prompt on."""
        return self._views[sequence.index]

    def release(self, sequence: SequenceState) -> None:
        """Free the gathered pages."""
        self.cache.free(self._views.pop(sequence.index).front)
