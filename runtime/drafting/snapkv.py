"""SnapKV: which prompt tokens each KV head keeps, chosen once by the prompt's last queries.

Source: Li et al. 2024 (arXiv 2404.14469), section 4: attention of an observation window at the end
of the prompt, summed over its queries, pooled over neighbours, then the largest. Scores carry
1 / sqrt(head_dim) and a causal mask inside the window, for any number of query heads a KV head.
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
    """Keeps the rotated queries of each prompt's last `window_tokens` tokens, layer by layer."""

    def __init__(self, prompt_lengths: Sequence[int], layers: int, window_tokens: int) -> None:
        self._first = [max(0, length - window_tokens) for length in prompt_lengths]
        self._kept: list[list[list[Tensor]]] = [[[] for _ in range(layers)] for _ in prompt_lengths]
        self._pieces: Sequence[Piece] = ()

    def begin(self, pieces: Sequence[Piece]) -> None:
        """Remember what the next pass holds."""
        self._pieces = pieces

    def record(self, layer: int, query: Tensor) -> None:
        """Copy the rows that lie in a window."""
        row = 0
        for piece in self._pieces:
            length = piece.stop - piece.start
            skipped = max(0, self._first[piece.job] - piece.start)
            if skipped < length:
                self._kept[piece.job][layer].append(query[row + skipped : row + length].clone())
            row += length

    def of(self, job: int) -> list[Tensor]:
        """Per layer, the window's queries (window, query heads, head_dim)."""
        return [torch.cat(parts) for parts in self._kept[job]]


def prompt_scores(query: Tensor, keys: Tensor, pool_tokens: int) -> Tensor:
    """How much the window attends to each token before it.

    Parameters
    ----------
    query : Tensor
        The last W tokens' queries (W, query heads, head_dim).
    keys : Tensor
        The prompt's keys (L, KV heads, head_dim), the window's own included.
    pool_tokens : int
        Width of the average over neighbours, odd; 1 pools nothing.

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
    place = torch.arange(length, device=query.device)
    later = place > place[length - window :, None]  # (W, L)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    summed = weights[..., : length - window].sum((1, 2))
    return F.avg_pool1d(
        summed[:, None], pool_tokens, stride=1, padding=pool_tokens // 2, count_include_pad=False
    )[:, 0]


def kept_tokens(scores: Tensor, count: int, forced: range) -> Tensor:
    """The `count` tokens that each head keeps, in order of position: (KV heads, count).

    `forced` are kept by every head; the rest are its best scored ones.
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
    """New pages that hold, per layer and head, the kept tokens before `tail_start`.

    Parameters
    ----------
    queries : list of Tensor
        Per layer, the window's queries.
    pages : int
        Whole pages to fill.
    tail_start : int
        The first token that the draft reads from the target's own pages.

    Raises
    ------
    OutOfPages
        If the pool has too few.
    """
    taken, page = cache.allocate(pages), cache.page_tokens
    device = cache.storage.device
    used = table.pages[: pages_for(table.tokens, page)]
    place = torch.arange(table.tokens, device=device)
    slots = torch.tensor(used, device=device)[place // page] * page + place % page
    target = torch.arange(pages * page, device=device)
    new_slots = torch.tensor(taken, device=device)[target // page] * page + target % page
    for layer, query in enumerate(queries):
        keys, values = cache.slots(layer)
        first_seen = table.tokens - query.shape[0]
        scores = prompt_scores(query, keys[slots], pool_tokens)
        forced = range(min(first_seen, tail_start), tail_start)
        kept = kept_tokens(scores[:, : min(first_seen, tail_start)], pages * page, forced)
        from_slots = slots[kept].T  # (kept, KV heads)
        heads = torch.arange(keys.shape[1], device=device)
        keys[new_slots] = keys[from_slots, heads]
        values[new_slots] = values[from_slots, heads]
    return taken
