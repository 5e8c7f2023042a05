"""SnapKV: choose the prompt tokens that each KV head keeps, by the attention of the last queries.

Attention weights of an observation window at the end of the prompt are summed over its queries and
averaged over neighbouring tokens; the tokens with the largest scores are kept. Scores are scaled by
1 / sqrt(head_dim), causal within the window, and summed over the query heads of each KV head.

Source: Li et al. 2024 (arXiv 2404.14469), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.attention.paged_cache import PagedCache, PageTable, pages_for
from runtime.execution.prefill import Piece
from runtime.kernels.rotary import compute_dtype


class WindowQueries:
    """A `PromptObserver` that keeps the queries of each prompt's last `window_tokens` tokens."""

    def __init__(self, prompt_lengths: Sequence[int], layers: int, window_tokens: int) -> None:
        self._first = [max(0, length - window_tokens) for length in prompt_lengths]
        self._parts: list[list[list[Tensor]]] = [
            [[] for _ in range(layers)] for _ in prompt_lengths
        ]
        self._pieces: Sequence[Piece] = ()

    def begin(self, pieces: Sequence[Piece]) -> None:
        """Set the pieces of the next pass."""
        self._pieces = pieces

    def record(self, layer: int, query: Tensor) -> None:
        """Copy the rows that belong to a window."""
        row = 0
        for piece in self._pieces:
            length = piece.stop - piece.start
            skipped = max(0, self._first[piece.job] - piece.start)
            if skipped < length:
                self._parts[piece.job][layer].append(query[row + skipped : row + length].clone())
            row += length

    def of(self, job: int) -> list[Tensor]:
        """The window's queries of one prompt, per layer: (window, query heads, head_dim)."""
        return [torch.cat(parts) for parts in self._parts[job]]


def prompt_scores(query: Tensor, keys: Tensor, pool_tokens: int) -> Tensor:
    """The window's attention to each token before it.

    Parameters
    ----------
    query : Tensor
        Queries of the last W tokens (W, query heads, head_dim).
    keys : Tensor
        Keys of the whole prompt (L, KV heads, head_dim).
    pool_tokens : int
        Width of the average over neighbours, odd; 1 disables it.

    Returns
    -------
    Tensor
        (KV heads, L - W), summed over the window and over each KV head's query heads.
    """
    window, heads, dim = query.shape
    length, kv_heads, _ = keys.shape
    wide = compute_dtype(query.dtype)
    grouped = query.to(wide).view(window, kv_heads, heads // kv_heads, dim)
    scores = torch.einsum("wkgd,lkd->kgwl", grouped, keys.to(wide)) / math.sqrt(dim)
    position = torch.arange(length, device=query.device)
    later = position > position[length - window :, None]  # (W, L)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    summed = weights[..., : length - window].sum((1, 2))
    return F.avg_pool1d(
        summed[:, None], pool_tokens, stride=1, padding=pool_tokens // 2, count_include_pad=False
    )[:, 0]


def kept_tokens(scores: Tensor, count: int, forced: range) -> Tensor:
    """The `count` tokens that each head keeps, in order of position: (KV heads, count).

    Every head keeps the tokens in `forced` and, of the others, those with the highest scores.
    """
    best = scores.topk(count - len(forced), dim=-1).indices
    always = torch.arange(forced.start, forced.stop, device=scores.device)
    return torch.cat((best, always.expand(len(scores), -1)), dim=1).sort(dim=1).values


def gather_pages(
    cache: PagedCache,
    table: PageTable,
    queries: Sequence[Tensor],
    *,
    pages: int,
    tail_start: int,
    pool_tokens: int,
) -> list[int]:
    """Copy the kept tokens before `tail_start`, per layer and head, to new pages; return the pages.

    Parameters
    ----------
    queries : list of Tensor
        The window's queries, per layer.
    pages : int
        Number of full pages to fill.
    tail_start : int
        The first token that the draft reads from the target's pages.

    Raises
    ------
    OutOfPages
        If the pool has too few free pages.
    """
    new_pages = cache.allocate(pages)
    device = cache.storage.device

    def slots_of(pages: Sequence[int], tokens: int) -> Tensor:
        position = torch.arange(tokens, device=device)
        first = torch.tensor(pages, device=device)[position // cache.page_tokens]
        return first * cache.page_tokens + position % cache.page_tokens

    count = pages * cache.page_tokens
    slots = slots_of(table.pages[: pages_for(table.tokens, cache.page_tokens)], table.tokens)
    new_slots = slots_of(new_pages, count)
    for layer, query in enumerate(queries):
        keys, values = cache.slots(layer)
        scores = prompt_scores(query, keys[slots], pool_tokens)
        first_forced = min(table.tokens - query.shape[0], tail_start)
        kept = kept_tokens(scores[:, :first_forced], count, range(first_forced, tail_start))
        from_slots = slots[kept].T  # (kept, KV heads)
        heads = torch.arange(keys.shape[1], device=device)
        keys[new_slots] = keys[from_slots, heads]
        values[new_slots] = values[from_slots, heads]
    return new_pages
