"""`AttentionCall.split_kv`: the runtime's split-KV heuristic.

The runtime runs a block per (sequence, tile of query rows, range of KV, KV head) and merges the
ranges afterwards. It splits the longest sequence evenly, all others into ranges of that length, and
takes the split of least estimated time. The rule of `runtime/attention/split_kv.py` is mirrored
here, because the time of a pass depends on it and neither package imports the other;
`tests/calibration/test_split_rule.py` checks that both agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from perfmodel._typing import Floats, Ints

BLOCKS_PER_SM = 2  # that the kernel is built to run side by side, flashinfer 0.6.6
TILE_ROWS = (16, 64, 128)  # packed query rows of one block
PAGE_TOKENS = 16.0  # ranges are whole pages
LEAST_PAGES = 8.0  # of a range
MOST_WAVES = 4.0  # of blocks that KV is split into: their partial results take memory
NEAR = 1.02  # of splits whose estimates are this near the coarsest is taken

# The estimate of one call; runtime/attention/split_kv.py has the source.
_TOKEN_S = np.array([3.6e-9, 8.8e-9, 17e-9])  # by tile
_TOKEN_DIM_S, _BLOCK_S, _LAUNCH_S, _PAIRED = 0.09e-9, 3.7e-6, 1.3e-6, 1.4
_BYTES_PER_S, _MERGE_S, _MERGE_ROW_S = 4.6e12, 2.5e-6, 3.4e-9


class SplitKV(NamedTuple):
    """The splits of some batches; arrays of one shape."""

    blocks: Floats  # of all sequences, tiles of query rows, ranges and KV heads
    range_tokens: Floats  # of the longest range
    merged: Floats  # 1 where results of several ranges are merged, else 0
    seconds: Floats  # the runtime's estimate


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class AttentionCall:
    """One pass's attention on one rank, without the lengths of its caches.

    The first three may be arrays (batches,).
    """

    query_tokens: Floats | float  # of each sequence
    query_heads: Floats | float
    kv_heads: Floats | float
    head_dim: int
    sm_count: int

    def split_kv(self, kv_tokens: Floats, sequences: Floats | float = 1.0) -> SplitKV:
        """The runtime's split of each batch.

        Parameters
        ----------
        kv_tokens : array (batches, lengths)
            Tokens read of each sequence, those of its queries included.
        sequences : float or array, broadcast to `kv_tokens`
            How many sequences have that length: a batch of equal ones has one length.

        Returns
        -------
        SplitKV
            Of shape (batches,).
        """
        tokens, counts = np.broadcast_arrays(kv_tokens, sequences)
        pages = np.maximum(np.ceil(tokens / PAGE_TOKENS), 1.0)
        longest = pages.max(axis=1)
        count, at_longest = counts.sum(axis=1), (counts * (pages == longest[:, None])).sum(axis=1)
        kv_heads = np.broadcast_to(np.asarray(self.kv_heads, float), longest.shape)
        packed = self.query_tokens * (self.query_heads / kv_heads)
        tile = tile_index(packed)
        tiles = np.maximum(np.ceil(packed / np.array(TILE_ROWS)[tile]), 1.0)
        wave = np.floor(BLOCKS_PER_SM * self.sm_count / kv_heads)
        room = np.maximum(MOST_WAVES * wave, tiles * count + wave)
        # Every sequence has a block, the longest ones one a range.
        most = np.minimum(longest / LEAST_PAGES, (room / tiles - count) / at_longest + 1.0)
        ways = np.ceil(most).astype(int)
        first = np.cumsum(ways) - ways
        of = np.repeat(np.arange(len(ways)), ways)
        ranges = np.ceil(longest[of] / (np.arange(len(of)) - first[of] + 1.0))
        ranges = np.maximum(ranges, np.minimum(longest, LEAST_PAGES)[of])
        blocks = tiles[of] * (counts[of] * np.ceil(pages[of] / ranges[:, None])).sum(axis=1)
        rows = (count * self.query_tokens * self.query_heads)[of]
        seconds = call_seconds(
            blocks=blocks * kv_heads[of],
            longest=ranges * PAGE_TOKENS,
            total=(tiles * (counts * pages).sum(axis=1) * PAGE_TOKENS * kv_heads)[of],
            merged=np.where(ranges < longest[of], rows, 0.0),
            tile=tile[of],
            head_dim=self.head_dim,
            sm_count=self.sm_count,
        )
        chosen = _chosen(np.where(blocks <= room[of], seconds, np.inf), blocks, first, of)
        return SplitKV(
            blocks=blocks[chosen] * kv_heads,
            range_tokens=np.minimum(ranges[chosen] * PAGE_TOKENS, tokens.max(axis=1)),
            merged=(ranges[chosen] < longest).astype(float),
            seconds=seconds[chosen],
        )

    def ragged_factor(self, kv_tokens: Floats, idle: int = 0) -> float:
        """Estimated seconds over those of equal caches of the same mean; 1 where they are equal.

        Parameters
        ----------
        kv_tokens : array (sequences,)
            Tokens read of each.
        idle : int
            Rows of a graph without a sequence, which read the tokens of their queries only.
        """
        if not idle and kv_tokens.min() == kv_tokens.max():
            return 1.0
        rows = np.concatenate([kv_tokens, np.full(idle, float(self.query_tokens))])
        equal = self.split_kv(np.array([[kv_tokens.mean()]]), float(kv_tokens.size))
        return float(self.split_kv(rows[None]).seconds[0] / equal.seconds[0])


def _chosen(seconds: Floats, blocks: Floats, first: Ints, of: Ints) -> Ints:
    """Of each batch's ways to split, coarsest first, the one that the runtime takes."""
    number = np.arange(len(of))
    near = seconds <= NEAR * np.minimum.reduceat(seconds, first)[of]
    chosen = np.minimum.reduceat(np.where(near, number, len(of)), first)
    # The choice fixes the blocks; where KV is split, ranges are the shortest that need no more.
    fits = (blocks <= blocks[chosen][of]) & (chosen > first)[of]
    return np.maximum(chosen, np.maximum.reduceat(np.where(fits, number, 0), first))


def tile_index(rows: Floats) -> Ints:
    """Index into `TILE_ROWS` of the tile that these packed query rows take."""
    return np.minimum(np.searchsorted(TILE_ROWS, rows), len(TILE_ROWS) - 1)


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
    """The runtime's estimate of one call for ways to split it; arrays of one shape. [s]

    Parameters
    ----------
    blocks, longest : array
        Blocks over all KV heads; tokens of the longest range.
    total, merged : array
        Tokens of all blocks; query tokens x query heads to merge, 0 where nothing is split.
    tile : array of int
        Index into `TILE_ROWS`.
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
