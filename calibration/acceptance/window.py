"""Measure one window of text: a pass of the target, then the distributions of every draft view.

The target reads a context and then the text (teacher-forced). A draft starts a round every γ
tokens: at position j it reads its policy's view as of the round's start and the j tokens since,
with keys and values that it computed itself, as in a real round. All rounds of a window are
sequences of one pass whose page tables share the pages of the context, which keeps a GPU busy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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

LOGIT_ROWS = 64  # rows of the vocabulary that are compared at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What every window is measured with.

    `gamma` is the number of draft positions of a round, `scored_tokens` a multiple of it;
    `read_bytes` bounds what one pass of drafts gathers from the cache.
    """

    gamma: int = 16
    scored_tokens: int = 128
    temperature: float = 1.0
    chunk_tokens: int = 1024
    read_bytes: float = 1e9

    def __post_init__(self) -> None:
        if self.gamma < 1 or self.scored_tokens < 1 or self.scored_tokens % self.gamma:
            raise InputError(
                f"{self.scored_tokens} scored tokens are not a multiple of gamma={self.gamma}; a "
                f"window is scored in whole rounds"
            )
        if not self.temperature > 0:
            raise InputError("temperature must be above 0; greedy agreement is measured too")

    @property
    def rounds(self) -> int:
        """Rounds of a window."""
        return self.scored_tokens // self.gamma

    def window_tokens(self, context_tokens: int) -> int:
        """Tokens of text that a window needs: the last scored position's next token included."""
        return context_tokens + self.scored_tokens + 1


class CachedText:
    """A text in one model's cache, fed in bounded passes and read through views."""

    def __init__(self, decoder: Decoder, task: Task, *, most_tokens: int, page_tokens: int) -> None:
        self.decoder, self.task = decoder, task
        page = page_tokens
        # The text, its longest SnapKV copy, and per round a scratch tail and a copy of its sinks.
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
        """Feed a window's text anew; the hidden states of its scored tokens (scored, hidden).

        The queries of the context's last `window_queries` tokens are kept for SnapKV.
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
        """Per layer, the last `count` queries of the context."""
        return [] if self._seen is None else [queries[-count:] for queries in self._seen.of(0)]

    def draft_hidden(self, view: DraftView) -> tuple[Tensor, float]:
        """The draft's hidden states at the scored positions (scored, hidden), and tokens read."""
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
        """Tokens start..stop of the text through bounded passes; their hidden states."""
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
        """The text as the policies know it, when `tokens` of it were cached."""
        table = PageTable(self.table.pages, tokens)
        return SequenceState(0, self._tokens, self.context_tokens, self.task.scored_tokens, table)

    def _groups(self, starts: list[int], view: DraftView) -> Iterator[list[int]]:
        """Rounds that may share a pass without gathering more than the task allows."""
        config, gamma = self.decoder.config, self.task.gamma
        text = starts[-1] + gamma
        # SnapKV's view grows by all that was generated since the prompt.
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
        """γ positions of every round in one pass: (rounds · γ, hidden), and the tokens read."""
        page, gamma = self.cache.page_tokens, self.task.gamma
        tables, cached, borrowed = [], [], []
        for start in starts:
            view = policy.view(self._sequence(start))
            skipped = (view.tail_page - len(view.front)) * page
            front, own = list(view.front), self._scratch(start)
            if relative and skipped:
                front = self._moved(view, skipped)
                borrowed += front
            tables.append([*front, *self.table.pages[view.tail_page : start // page], *own])
            cached.append(start - skipped)
            borrowed += own
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

    def _scratch(self, start: int) -> list[int]:
        """Pages for a round's own drafts; the first continues the page that `start` lies in."""
        page = self.cache.page_tokens
        own = self.cache.allocate(pages_for(start % page + self.task.gamma, page))
        if start % page:
            self._copy(self.table.pages[start // page : start // page + 1], own[:1])
        return own

    def _moved(self, view: View, tokens: int) -> list[int]:
        """Copies of the sinks, their keys turned on by `tokens`: next to the window they stand.

        Attention depends on distances alone, so moving the sinks up is moving the window down.
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
    *,
    progress: Callable[[DraftView], None] = lambda view: None,
) -> Iterator[Record]:
    """Records of every view on one window; `draft` is None where the target drafts for itself.

    `tokens` are the window's: context, scored, and one more. Views share one prefill.
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
        progress(view)
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
    """Per scored position: Σ min(p, q), min(1, q(x) / p(x)) of the text's token, equal argmax."""

    overlap: Tensor
    ratio: Tensor
    agree: Tensor

    def record(
        self, window: Window, view: DraftView, task: Task, *, read_tokens: float, nll: float
    ) -> Record:
        """The record of these scores: sums over the rounds."""
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
    """The draft's distributions against the target's rows (scored, vocab), a part at a time."""
    columns = (rows, hidden, following)
    parts = zip(*(column.split(LOGIT_ROWS) for column in columns), strict=True)
    results = []
    for p, states, tokens in parts:
        q = probability_rows(decoder, states, task.temperature)
        of_text = [side.gather(1, tokens[:, None])[:, 0] for side in (q, p)]
        ratio = (of_text[0] / of_text[1].clamp(min=1e-30)).clamp(max=1.0)
        # A softmax of float32 sums to 1 only to 1e-5: a chance stays at most 1.
        overlap = torch.minimum(p, q).sum(-1, dtype=torch.float64).clamp(max=1.0)
        results.append((overlap, ratio, p.argmax(-1) == q.argmax(-1)))
    return Scores(*(torch.cat(column) for column in zip(*results, strict=True)))


def _sums(by_round: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 5) for value in by_round.sum(0).tolist())
