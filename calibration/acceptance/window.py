"""Measure one window of text: the target's distributions, then those of every draft view.

The target reads the context and then the text (teacher-forced). A draft starts a round every γ
tokens. At position j it reads the view of its policy at the start of the round and the j tokens
since then, with keys and values that it computed itself, as in a real round. All rounds of a window
run as sequences of one pass whose page tables share the pages of the context, to keep a GPU busy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor

from calibration.acceptance.renewal import renewals
from calibration.records.acceptance import LAGS, DraftView, Record, Window
from runtime import Decoder, InputError, SamplingParams
from runtime.attention import (
    AttentionBackend,
    PagedCache,
    PageTable,
    PassLayout,
    ReferenceAttention,
    pages_for,
)
from runtime.drafting import FullView, SinkWindowView, SnapView, View, ViewPolicy, WindowQueries
from runtime.execution import Piece, SequenceState, probabilities
from runtime.kernels.rotary import rotate

LOGIT_ROWS = 64  # distributions that are compared at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The settings of a measurement, which are the same for all windows.

    `gamma` is the number of draft positions per round, and `scored_tokens` a multiple of it.
    `read_bytes` limits the KV that one pass of drafts gathers.
    """

    gamma: int = 16
    scored_tokens: int = 128
    temperature: float = 1.0
    chunk_tokens: int = 1024
    read_bytes: float = 1e9

    def __post_init__(self) -> None:
        if self.gamma < 1 or self.scored_tokens < 1 or self.scored_tokens % self.gamma:
            raise InputError(
                f"scored_tokens={self.scored_tokens} is not a multiple of gamma={self.gamma}; "
                f"use whole rounds"
            )
        if not 1e-5 <= self.temperature < math.inf:  # lower ones overflow
            raise InputError(
                "temperature must be at least 1e-5; greedy agreement is measured at any temperature"
            )

    @property
    def rounds(self) -> int:
        """Rounds per window."""
        return self.scored_tokens // self.gamma

    def window_tokens(self, context_tokens: int) -> int:
        """Tokens of text per window, including the one after the last scored position."""
        return context_tokens + self.scored_tokens + 1


class CachedText:
    """A text in the KV cache of one model, which drafts read through their views."""

    def __init__(self, decoder: Decoder, task: Task, *, most_tokens: int, page_tokens: int) -> None:
        self.decoder, self.task = decoder, task
        page = page_tokens
        # The text, its longest SnapKV copy, and for each round its drafts and a copy of the sinks.
        scratch = task.rounds * (pages_for(task.gamma, page) + 1 + pages_for(64, page))
        self.cache = PagedCache(
            decoder.config,
            kv_heads=decoder.kv_heads,
            pages=2 * pages_for(most_tokens, page) + scratch + 1,
            page_tokens=page,
            dtype=decoder.dtype,
            device=decoder.device,
        )
        self.backend: AttentionBackend = ReferenceAttention(self.cache)
        self.table = PageTable()
        self.context_tokens = 0
        self._seen: WindowQueries | None = None
        self._tokens: list[int] = []

    def prefill(self, tokens: Many[int], *, context_tokens: int, window_queries: int) -> Tensor:
        """Prefill the text of a window; the hidden states of its scored tokens (scored, hidden).

        The queries of the last `window_queries` tokens of the context are stored for SnapKV.
        """
        self.cache.release(self.table)
        self.table = PageTable()
        self._tokens, self.context_tokens = list(tokens), context_tokens
        self._seen = None
        if window_queries:
            layers = self.decoder.config.layers
            self._seen = WindowQueries([context_tokens], layers, window_queries)
        self._feed(0, context_tokens, self._seen)
        return self._feed(context_tokens, context_tokens + self.task.scored_tokens, None)

    def queries(self, count: int) -> list[Tensor]:
        """The last `count` queries of the context, one tensor per layer."""
        return [] if self._seen is None else [queries[-count:] for queries in self._seen.of(0)]

    def draft_hidden(self, view: DraftView) -> tuple[Tensor, float]:
        """The draft's hidden states (scored, hidden), and the mean tokens read per round."""
        policy = self._policy(view)
        prompt = self._sequence(self.context_tokens)
        policy.admit(prompt, self.queries(view.snapkv_window or 0))
        starts = [self.context_tokens + r * self.task.gamma for r in range(self.task.rounds)]
        parts, read = [], 0
        for group in self._groups(starts, view):
            hidden, tokens = self._rounds(group, policy, relative=view.positions == "relative")
            parts.append(hidden)
            read += tokens
        policy.release(prompt)
        return torch.cat(parts), read / len(starts)

    def _feed(self, start: int, stop: int, observer: WindowQueries | None) -> Tensor:
        """Hidden states of the tokens start..stop, computed in chunks."""
        parts = []
        for first in range(start, stop, self.task.chunk_tokens):
            last = min(stop, first + self.task.chunk_tokens)
            self.cache.reserve(self.table, last - first)
            layout = PassLayout(
                page_tables=[self.table.pages],
                kv_tokens=[last],
                query_tokens=[last - first],
                window_tokens=self.decoder.config.sliding_window_tokens,
            )
            if observer is not None:
                observer.begin([Piece(0, first, last)])
            parts.append(self._forward(range(first, last), layout, observer))
            self.table.tokens = last
        return torch.cat(parts)

    def _forward(
        self, places: Iterable[int], layout: PassLayout, observer: WindowQueries | None = None
    ) -> Tensor:
        tokens = torch.tensor([self._tokens[at] for at in places], device=self.decoder.device)
        plan = self.backend.plan(layout)
        return self.decoder.forward(tokens, plan.positions, plan, observer)

    def _policy(self, view: DraftView) -> ViewPolicy:
        if view.policy == "full":
            return FullView()
        assert view.kv_budget is not None
        if view.policy == "streamingllm":
            return SinkWindowView(
                budget_tokens=view.kv_budget,
                sink_tokens=view.sink or 0,
                page_tokens=self.cache.page_tokens,
            )
        return SnapView(
            self.cache,
            budget_tokens=view.kv_budget,
            window_queries=view.snapkv_window or 0,
            pool_tokens=view.snapkv_pool or 1,
        )

    def _sequence(self, tokens: int) -> SequenceState:
        """The state of the sequence when `tokens` of the text were cached."""
        table = PageTable(self.table.pages, tokens)
        return SequenceState(0, self._tokens, self.context_tokens, self.task.scored_tokens, table)

    def _groups(self, starts: list[int], view: DraftView) -> Iterator[list[int]]:
        """Split the rounds into passes that gather at most `read_bytes` each."""
        config, gamma = self.decoder.config, self.task.gamma
        text = starts[-1] + gamma
        # SnapKV's view also contains all tokens generated since the prompt.
        read = text if view.kv_budget is None else view.kv_budget + self.task.scored_tokens
        tokens = min(text, read + gamma)
        per_token = 4 * self.decoder.kv_heads * config.head_dim * 2 * self.decoder.dtype.itemsize
        per_token += 3 * self.decoder.query_heads * gamma * 4
        count = max(1, int(self.task.read_bytes / (tokens * per_token)))
        for first in range(0, len(starts), count):
            yield starts[first : first + count]

    def _rounds(
        self, starts: list[int], policy: ViewPolicy, *, relative: bool
    ) -> tuple[Tensor, int]:
        """Hidden states of all rounds in one pass (rounds · γ, hidden), and the tokens read."""
        page, gamma = self.cache.page_tokens, self.task.gamma
        tables, cached, borrowed = [], [], []
        for start in starts:
            view = policy.view(self._sequence(start), start)
            skipped = (view.tail_page - len(view.front)) * page
            front, drafts = list(view.front), self._draft_pages(start)
            if relative and skipped:
                front = self._moved(view, skipped)
                borrowed += front
            tables.append([*front, *self.table.pages[view.tail_page : start // page], *drafts])
            cached.append(start - skipped)
            borrowed += drafts
        layout = PassLayout(
            page_tables=tables,
            kv_tokens=[count + gamma for count in cached],
            query_tokens=[gamma] * len(starts),
            first_positions=starts,
            window_tokens=self.decoder.config.sliding_window_tokens
            if isinstance(policy, FullView)
            else None,
        )
        places = [place for start in starts for place in range(start, start + gamma)]
        hidden = self._forward(places, layout)
        self.cache.free(borrowed)
        return hidden, sum(cached)

    def _draft_pages(self, start: int) -> list[int]:
        """Pages for the drafts of a round; the first starts as a copy of the page of `start`."""
        page = self.cache.page_tokens
        pages = self.cache.allocate(pages_for(start % page + self.task.gamma, page))
        if start % page:
            self._copy(self.table.pages[start // page : start // page + 1], pages[:1])
        return pages

    def _moved(self, view: View, tokens: int) -> list[int]:
        """Copies of the sink pages with keys rotated by `tokens`, adjacent to the window.

        Attention only depends on distances, so this is equivalent to moving the window back.
        """
        moved = self.cache.allocate(len(view.front))
        self._copy(view.front, moved)
        slots = self._slots(moved)
        shift = torch.tensor(tokens, device=self.decoder.device)
        angles = self.decoder.rotary.tables(shift)
        for layer in range(self.decoder.config.layers):
            keys, _ = self.cache.slots(layer)
            keys[slots] = rotate(keys[slots], *angles)
        return moved

    def _copy(self, pages: Many[int], into: Many[int]) -> None:
        source, target = self._slots(pages), self._slots(into)
        for layer in range(self.decoder.config.layers):
            for stored in self.cache.slots(layer):
                stored[target] = stored[source]

    def _slots(self, pages: Many[int]) -> Tensor:
        page = self.cache.page_tokens
        first = torch.tensor(list(pages), device=self.decoder.device) * page
        return (first[:, None] + torch.arange(page, device=self.decoder.device)).flatten()


@torch.inference_mode()
def measure_window(
    target: CachedText,
    draft: CachedText | None,
    window: Window,
    tokens: Many[int],
    views: Many[DraftView],
) -> Iterator[Record]:
    """The records of all views on one window, which share one prefill.

    `draft` is None for a self-draft. `tokens` are the context, the scored tokens, and one more.
    """
    task = target.task
    most = max((view.snapkv_window or 0 for view in views), default=0)
    lengths = {"context_tokens": window.context_tokens, "window_queries": most}
    rows = probability_rows(target.decoder, target.prefill(tokens, **lengths), task.temperature)
    reader = target
    if draft is not None:
        draft.prefill(tokens, **lengths)
        reader = draft
    following = torch.tensor(
        tokens[window.context_tokens + 1 : task.window_tokens(window.context_tokens)],
        device=target.decoder.device,
    )
    nll = -rows.gather(1, following[:, None]).clamp(min=1e-30).log().mean()
    for view in views:
        hidden, read = reader.draft_hidden(view)
        scores = compare_rows(rows, reader.decoder, hidden, following, task)
        yield scores.record(window, view, task, read_tokens=read, nll=float(nll))


def probability_rows(decoder: Decoder, hidden: Tensor, temperature: float) -> Tensor:
    """Distributions after each hidden state: (rows, hidden) -> (rows, vocab)."""
    params = SamplingParams(temperature=temperature)
    parts = [probabilities(decoder.logits(part), params) for part in hidden.split(LOGIT_ROWS)]
    return torch.cat(parts)


@dataclass(frozen=True, slots=True)
class Scores:
    """For each scored position: Σ min(p, q), min(1, q(x) / p(x)), and whether argmaxes agree."""

    overlap: Tensor
    ratio: Tensor
    agree: Tensor

    def record(
        self, window: Window, view: DraftView, task: Task, *, read_tokens: float, nll: float
    ) -> Record:
        """The record of these scores."""
        overlap = self.overlap.double().cpu()
        by_round = overlap.view(task.rounds, task.gamma)
        ratio = self.ratio.double().cpu().view_as(by_round)
        agree = self.agree.cpu().view_as(by_round).long()
        reached = torch.cat((torch.ones(task.rounds, 1).double(), ratio[:, :-1]), 1).cumprod(1)
        centred = overlap - overlap.mean()
        lags = [
            float((centred[:-lag] * centred[lag:]).mean()) if lag < len(centred) else 0.0
            for lag in LAGS
        ]
        return Record(
            window=window,
            view=view,
            rounds=task.rounds,
            overlap=_sums(by_round),
            reached=_sums(reached),
            passed=_sums(reached * by_round),
            chain=_sums(by_round.cumprod(1)),
            agree=tuple(agree.sum(0).tolist()),
            agree_chain=tuple(agree.cumprod(1).sum(0).tolist()),
            variance=round(float(centred.square().mean()), 6),
            lags=tuple(round(lag, 6) for lag in lags),
            read_tokens=read_tokens,
            nll=round(nll, 4),
            renewal=renewals(overlap.tolist()),
        )


def compare_rows(
    rows: Tensor, decoder: Decoder, hidden: Tensor, following: Tensor, task: Task
) -> Scores:
    """Compare the draft's distributions with the target's `rows` (scored, vocab)."""
    columns = (rows, hidden, following)
    parts = zip(*(column.split(LOGIT_ROWS) for column in columns), strict=True)
    results = []
    for p, states, tokens in parts:
        q = probability_rows(decoder, states, task.temperature)
        of_text = [side.gather(1, tokens[:, None])[:, 0] for side in (q, p)]
        ratio = (of_text[0] / of_text[1].clamp(min=1e-30)).clamp(max=1.0)
        # A float32 softmax only sums to 1 within 1e-5, so the probability is clamped to 1.
        overlap = torch.minimum(p, q).sum(-1, dtype=torch.float64).clamp(max=1.0)
        results.append((overlap, ratio, p.argmax(-1) == q.argmax(-1)))
    return Scores(*(torch.cat(column) for column in zip(*results, strict=True)))


def _sums(by_round: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 5) for value in by_round.sum(0).tolist())
