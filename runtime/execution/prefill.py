"""Chunked prefill: run prompts of any length in passes of a limited number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from runtime.attention.base import AttentionBackend, PassLayout
from runtime.attention.paged_cache import PagedCache, PageTable
from runtime.model.decoder import Decoder

Progress = Callable[[int, int], None]  # tokens done, tokens in total


@dataclass(frozen=True, slots=True)
class PromptJob:
    """A prompt and the page table that its keys and values are written to."""

    tokens: Sequence[int]
    table: PageTable


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens start..stop of one job, in one pass."""

    job: int
    start: int
    stop: int


class PromptObserver(Protocol):
    """Records the queries of prompts during prefill."""

    def begin(self, pieces: Sequence[Piece]) -> None:
        """Set the pieces of the next pass, in order."""
        ...

    def record(self, layer: int, query: Tensor) -> None:
        """Record a layer's queries of that pass (tokens, query heads, head_dim)."""
        ...


def prompt_pieces(lengths: Sequence[int], chunk_tokens: int) -> list[list[Piece]]:
    """Passes of at most `chunk_tokens` tokens; short prompts share one, long ones take several."""
    passes: list[list[Piece]] = [[]]
    room = chunk_tokens
    for job, length in enumerate(lengths):
        start = 0
        while start < length:
            if room == 0:
                passes.append([])
                room = chunk_tokens
            stop = min(length, start + room)
            passes[-1].append(Piece(job, start, stop))
            room -= stop - start
            start = stop
    return passes


def prefill(
    decoder: Decoder,
    cache: PagedCache,
    backend: AttentionBackend,
    jobs: Sequence[PromptJob],
    *,
    chunk_tokens: int,
    make_room: Callable[[int], None] = lambda job: None,
    observer: PromptObserver | None = None,
    progress: Progress = lambda done, total: None,
) -> Tensor:
    """Run every prompt; return the normed hidden state of each last token (jobs, hidden).

    `make_room` is called with a job's index before each of its pieces, to drop pages of a sliding
    window.
    """
    last: list[Tensor | None] = [None] * len(jobs)
    done, total = 0, sum(len(job.tokens) for job in jobs)
    for pieces in prompt_pieces([len(job.tokens) for job in jobs], chunk_tokens):
        for piece in pieces:
            make_room(piece.job)
            cache.reserve(jobs[piece.job].table, piece.stop - piece.start)
        plan = backend.plan(layout := _layout(decoder, jobs, pieces))
        if observer is not None:
            observer.begin(pieces)
        tokens = [token for p in pieces for token in jobs[p.job].tokens[p.start : p.stop]]
        hidden = decoder.forward(
            torch.tensor(tokens, device=decoder.device),
            plan.positions,
            plan,
            observer,
        )
        for piece, row in zip(pieces, layout.last_rows, strict=True):
            jobs[piece.job].table.tokens += piece.stop - piece.start
            last[piece.job] = hidden[row].clone()  # a view would keep the pass's memory
        done += len(tokens)
        progress(done, total)
    return torch.stack([row for row in last if row is not None])


def _layout(decoder: Decoder, jobs: Sequence[PromptJob], pieces: Sequence[Piece]) -> PassLayout:
    tables = [jobs[piece.job].table for piece in pieces]
    new = [piece.stop - piece.start for piece in pieces]
    return PassLayout(
        page_tables=[table.pages for table in tables],
        kv_tokens=[table.tokens + count for table, count in zip(tables, new, strict=True)],
        query_tokens=new,
        first_positions=[piece.start for piece in pieces],
        window_tokens=decoder.config.sliding_window_tokens,
    )
