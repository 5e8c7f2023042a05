"""`AttentionCall.split_kv`: the runtime's split-KV heuristic.

The runtime runs one block per (sequence, tile of query rows, range of KV, KV head) and merges the
ranges afterwards. It splits the longest sequence evenly and all others into ranges of that length,
and chooses the split with the least estimated time. This module repeats the rule of
`runtime/attention/split_kv.py`, because the time of a pass depends on it and neither package may
import the other; `tests/calibration/test_split_rule.py` checks that both agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from perfmodel._typing import Floats, Ints

BLOCKS_PER_SM = 2  # resident blocks of the kernel in flashinfer 0.6.6
TILE_ROWS = (16, 64, 128)  # packed query rows per block
PAGE_TOKENS = 16.0  # ranges consist of whole pages
LEAST_PAGES = 8.0  # minimum length of a range
MOST_WAVES = 4.0  # limit on the blocks, whose partial results take memory
NEAR = 1.02  # of splits within this factor of the best, the coarsest is chosen

# Constants of the estimate; runtime/attention/split_kv.py states their source.
_TOKEN_S = np.array([3.6e-9, 8.8e-9, 17e-9])  # per tile size
_TOKEN_DIM_S, _BLOCK_S, _LAUNCH_S, _PAIRED = 0.09e-9, 3.7e-6, 1.3e-6, 1.4
_BYTES_PER_S, _MERGE_S, _MERGE_ROW_S = 4.6e12, 2.5e-6, 3.4e-9


class SplitKV(NamedTuple):
    """The splits of some batches, as arrays of one shape."""

    blocks: Floats  # over all sequences, tiles of query rows, ranges and KV heads
    range_tokens: Floats  # of the longest range
    merged: Floats  # 1 if several ranges are merged, otherwise 0
    seconds: Floats  # the runtime's estimate


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class AttentionCall:
    """The attention of one pass on one rank, without the lengths of the caches.

    The first three fields may be arrays of shape (batches,).
    """

    query_tokens: Floats | float  # per sequence
    query_heads: Floats | float
    kv_heads: Floats | float
    head_dim: int
    sm_count: int

    def split_kv(self, kv_tokens: Floats, sequences: Floats | float = 1.0) -> SplitKV:
        """The runtime's split of each batch, in arrays of shape (batches,).

        `kv_tokens` (batches, lengths) are read per sequence, including those of its queries;
        `sequences`, which broadcast to them, have that length.
        """
        tokens, counts = np.broadcast_arrays(kv_tokens, sequences)
        pages = np.maximum(np.ceil(tokens / PAGE_TOKENS), 1.0)
        longest = pages.max(axis=1)
        count, at_longest = counts.sum(axis=1), (counts * (pages == longest[:, None])).sum(axis=1)
        kv_heads = np.broadcast_to(np.asarray(self.kv_heads, float), longest.shape)
        packed = self.query_tokens * (self.query_heads / kv_heads)
        tile = tile_index(packed, self.head_dim)
        tiles = np.maximum(np.ceil(packed / np.array(TILE_ROWS)[tile]), 1.0)
        wave = np.floor(BLOCKS_PER_SM * self.sm_count / kv_heads)
        room = np.maximum(MOST_WAVES * wave, tiles * count + wave)
        # Every sequence has one block, the longest ones one per range.
        most = np.minimum(longest / LEAST_PAGES, (room / tiles - count) / at_longest + 1.0)
        ways = np.ceil(most).astype(int)
        first = np.cumsum(ways) - ways
        batch_of = np.repeat(np.arange(len(ways)), ways)
        ranges = np.ceil(longest[batch_of] / (np.arange(len(batch_of)) - first[batch_of] + 1.0))
        ranges = np.maximum(ranges, np.minimum(longest, LEAST_PAGES)[batch_of])
        blocks = tiles[batch_of] * (
            counts[batch_of] * np.ceil(pages[batch_of] / ranges[:, None])
        ).sum(axis=1)
        rows = (count * self.query_tokens * self.query_heads)[batch_of]
        seconds = call_seconds(
            blocks=blocks * kv_heads[batch_of],
            longest=ranges * PAGE_TOKENS,
            total=(tiles * (counts * pages).sum(axis=1) * PAGE_TOKENS * kv_heads)[batch_of],
            merged=np.where(ranges < longest[batch_of], rows, 0.0),
            tile=tile[batch_of],
            head_dim=self.head_dim,
            sm_count=self.sm_count,
        )
        chosen = _chosen(
            np.where(blocks <= room[batch_of], seconds, np.inf), blocks, first, batch_of
        )
        return SplitKV(
            blocks=blocks[chosen] * kv_heads,
            range_tokens=np.minimum(ranges[chosen] * PAGE_TOKENS, tokens.max(axis=1)),
            merged=(ranges[chosen] < longest).astype(float),
            seconds=seconds[chosen],
        )

    def ragged_factor(self, kv_tokens: Floats, idle: int = 0) -> float:
        """Estimated seconds over those of equal caches with the same mean; 1 if all are equal.

        `kv_tokens` (sequences,) are read per sequence; `idle` graph rows without a sequence only
        read the tokens of their queries.
        """
        if not idle and kv_tokens.min() == kv_tokens.max():
            return 1.0
        rows = np.concatenate([kv_tokens, np.full(idle, float(self.query_tokens))])
        equal = self.split_kv(np.array([[kv_tokens.mean()]]), float(kv_tokens.size))
        return float(self.split_kv(rows[None]).seconds[0] / equal.seconds[0])


def _chosen(seconds: Floats, blocks: Floats, first: Ints, batch_of: Ints) -> Ints:
    """The index of the split that the runtime chooses for each batch; coarsest come first."""
    number = np.arange(len(batch_of))
    near = seconds <= NEAR * np.minimum.reduceat(seconds, first)[batch_of]
    chosen = np.minimum.reduceat(np.where(near, number, len(batch_of)), first)
    # This fixes the number of blocks; if KV is split, the shortest ranges within it are used.
    fits = (blocks <= blocks[chosen][batch_of]) & (chosen > first)[batch_of]
    return np.maximum(chosen, np.maximum.reduceat(np.where(fits, number, 0), first))


def tile_index(rows: Floats, head_dim: int = 128) -> Ints:
    """Index into `TILE_ROWS` of the tile for these packed query rows.

    The largest one does not fit a head dimension of 256.
    """
    last = len(TILE_ROWS) - (1 if head_dim < 256 else 2)
    return np.minimum(np.searchsorted(TILE_ROWS, rows), last)


def call_seconds(
    *,
    blocks: Floats,
    longest: Floats,
    total: Floats,
    merged: Floats,
    tile: Ints,
    head_dim: int,
    sm_count: int,
) -> Floats:
    """The runtime's time estimate of one call for several splits; arrays of one shape. [s]

    `blocks` over all KV heads read `total` tokens, those of the longest range `longest`; `merged`
    rows (query tokens x query heads) are to merge, 0 if KV is not split; `tile` is an index into
    `TILE_ROWS`.
    """
    per_token, mean = _TOKEN_S[tile] + _TOKEN_DIM_S * head_dim, total / blocks
    full = np.floor(blocks / (BLOCKS_PER_SM * sm_count))
    rest = blocks - full * (BLOCKS_PER_SM * sm_count)
    last = np.where(rest == 0, 0.0, np.where(rest <= sm_count, 1.0, _PAIRED))
    waves = (full * _PAIRED + last) * (_BLOCK_S + mean * per_token)
    work = waves + (longest - mean) * per_token
    memory = total * head_dim * 4 / _BYTES_PER_S
    body = np.sqrt(np.hypot(work * work, memory * memory))  # the 4-norm
    return np.asarray(body + _LAUNCH_S + np.where(merged > 0, _MERGE_S + merged * _MERGE_ROW_S, 0))
