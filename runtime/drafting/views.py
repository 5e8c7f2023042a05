"""What a self-draft reads: a view of the target's own pages, one small class per policy.

A view is some pages in front, then the target's pages from one on. Drafts are written into the
target's next slots and verification overwrites them, so a view costs no copy and is refreshed every
round.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from runtime.attention.paged_cache import PagedCache, PageTable, pages_for
from runtime.drafting.snapkv import gather_pages
from runtime.errors import InputError
from runtime.execution.sequence import SequenceState


class View(NamedTuple):
    """Pages in front, then the target's own from `tail_page` on; front pages are full."""

    front: Sequence[int]
    tail_page: int

    def pages(self, table: PageTable) -> Sequence[int]:
        """All pages to read, in order."""
        tail = table.pages[self.tail_page :]
        return array("i", self.front) + tail if self.front else tail


class ViewPolicy(Protocol):
    """Chooses what a self-draft reads of one sequence."""

    @property
    def window_queries(self) -> int:
        """How many of a prompt's last queries `admit` wants to see."""
        ...

    def admit(self, sequence: SequenceState, queries: Sequence[Tensor]) -> None:
        """A prompt was prefilled; `queries` are its last ones, per layer."""
        ...

    def view(self, sequence: SequenceState) -> View:
        """What to read this round, beside the round's own drafts."""
        ...

    def release(self, sequence: SequenceState) -> None:
        """A sequence has finished."""
        ...


class FullView:
    """Everything: the draft is the target, and every draft is accepted."""

    window_queries = 0

    def admit(self, sequence: SequenceState, queries: Sequence[Tensor]) -> None:
        """Nothing to choose."""

    def view(self, sequence: SequenceState) -> View:
        """All pages."""
        return View((), 0)

    def release(self, sequence: SequenceState) -> None:
        """Nothing to free."""


class SinkWindowView:
    """StreamingLLM: the sink's pages and the last pages, at most `budget_tokens` tokens together.

    Positions stay those of the target, whose own pages these are.
    """

    window_queries = 0

    def __init__(self, *, budget_tokens: int, sink_tokens: int, page_tokens: int) -> None:
        self.sink_pages = whole_sink_pages(budget_tokens, sink_tokens, page_tokens)
        self.budget_tokens, self.page_tokens = budget_tokens, page_tokens

    def admit(self, sequence: SequenceState, queries: Sequence[Tensor]) -> None:
        """Nothing to choose."""

    def view(self, sequence: SequenceState) -> View:
        """All pages while they fit the budget, then sink and window."""
        cached = sequence.table.tokens
        if cached <= self.budget_tokens:
            return View((), 0)
        window_tokens = self.budget_tokens - self.sink_pages * self.page_tokens
        tail = pages_for(cached - window_tokens, self.page_tokens)
        return View(sequence.table.pages[: self.sink_pages], tail)

    def release(self, sequence: SequenceState) -> None:
        """Nothing to free."""


def whole_sink_pages(budget_tokens: int, sink_tokens: int, page_tokens: int) -> int:
    """Pages of the sink.

    Raises
    ------
    InputError
        If the budget does not hold the sink's pages and one page of window.
    """
    pages = pages_for(sink_tokens, page_tokens)
    least = (pages + 1) * page_tokens
    if budget_tokens < least:
        raise InputError(
            f"kv_budget={budget_tokens} is too small: a sink of {sink_tokens} tokens takes {pages} "
            f"pages of {page_tokens}, and the window at least one; use {least} or more"
        )
    return pages


class SnapView:
    """SnapKV: prompt tokens chosen per layer and head, gathered once, then all that is generated.

    The gathered pages end where a page of the target starts; from there on the draft reads the
    target's own pages. Gathered tokens and the prompt's tail together are at most the budget.
    """

    def __init__(
        self, cache: PagedCache, *, budget_tokens: int, window_queries: int, pool_tokens: int
    ) -> None:
        if pool_tokens % 2 == 0:
            raise InputError(f"SnapKV pools over an odd number of tokens, not {pool_tokens}")
        page = cache.page_tokens
        # A prompt's last, partly filled page of up to `page` - 1 tokens counts against the budget.
        least = max(window_queries + page, 2 * page - 1)
        if budget_tokens < least:
            raise InputError(
                f"kv_budget={budget_tokens} is too small for SnapKV: its window of "
                f"{window_queries} tokens and pages of {page} need {least}"
            )
        self.cache, self.budget_tokens = cache, budget_tokens
        self.window_queries, self.pool_tokens = window_queries, pool_tokens
        self._views: dict[int, View] = {}

    def admit(self, sequence: SequenceState, queries: Sequence[Tensor]) -> None:
        """Choose and gather, unless the prompt fits the budget."""
        prompt, page = sequence.prompt_tokens, self.cache.page_tokens
        if prompt <= self.budget_tokens:
            self._views[sequence.index] = View((), 0)
            return
        tail_page = prompt // page
        pages = (self.budget_tokens - prompt % page) // page
        front = gather_pages(
            self.cache,
            sequence.table,
            queries,
            pages=pages,
            tail_start=tail_page * page,
            pool_tokens=self.pool_tokens,
        )
        self._views[sequence.index] = View(front, tail_page)

    def admit_with_view(self, sequence: SequenceState, view: View) -> None:
        """Take pages that were gathered elsewhere, as a benchmark does."""
        self._views[sequence.index] = view

    def view(self, sequence: SequenceState) -> View:
        """The gathered pages, then the target's from the prompt's end on."""
        return self._views[sequence.index]

    def release(self, sequence: SequenceState) -> None:
        """Free the gathered pages."""
        self.cache.free(self._views.pop(sequence.index).front)
