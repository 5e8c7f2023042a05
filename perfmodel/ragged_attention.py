"""What attention over caches of unequal length takes, over that of as many equal ones.

The runtime cuts the longest cache of a pass evenly and all others into ranges of that length, so
that sequences end in part-filled ranges and blocks in part-filled waves. Which cut it takes, and
what unequal lengths cost, is its own estimate of a call: `runtime/split_cost.py`, whose constants
stand here again, since the two packages are blind to each other (a test holds them together).

Source: 3,118 timings of equal caches on an H200 (calibration/measured/h200-splits.jsonl.gz); no
unequal ones were seen. On another GPU only the number of multiprocessors differs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BLOCKS_PER_SM = 2
TILE_ROWS = (16, 64, 128)  # packed query rows of a block
LEAST_RANGE_TOKENS = 128
MOST_WAVES = 4  # of split blocks: their partial results take memory
_TOKEN_S = {16: 3.6e-9, 64: 8.8e-9, 128: 17e-9}  # of a lone block, by rows of its tile
_TOKEN_DIM_S = 0.09e-9  # the same, by head dimension
_BLOCK_S = 3.7e-6
_LAUNCH_S = 1.3e-6
_PAIRED = 1.4  # how much longer two blocks on a multiprocessor take than one
_BYTES_PER_S = 4.6e12
_MERGE_S = 2.5e-6
_MERGE_ROW_S = 3.4e-9  # of one query head
_SMOOTH = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCall:
    """One pass's attention on one rank, but for the lengths of its caches."""

    query_tokens: int  # of each sequence
    query_heads: int
    kv_heads: int
    head_dim: int
    sm_count: int

    @property
    def tile_rows(self) -> int:
        """Packed query rows of one block."""
        rows = self.query_tokens * self.query_heads // self.kv_heads
        return next((tile for tile in TILE_ROWS if rows <= tile), TILE_ROWS[-1])

    @property
    def tiles(self) -> int:
        """Blocks of query rows that a sequence and KV head has."""
        rows = self.query_tokens * self.query_heads // self.kv_heads
        return -(-rows // self.tile_rows)

    def ragged_factor(self, kv_tokens: Array, idle: int = 0) -> float:
        """Seconds over those of equal caches of the same mean; 1 where they are equal.

        Parameters
        ----------
        kv_tokens : array (sequences,)
            Tokens that each reads, those of its own queries included.
        idle : int
            Rows of a graph without a sequence, which read no cache but their own queries' tokens.
        """
        if not idle and kv_tokens.min() == kv_tokens.max():
            return 1.0
        equal = np.full(kv_tokens.size, float(kv_tokens.mean()))
        rows = np.concatenate([kv_tokens, np.full(idle, float(self.query_tokens))])
        return self.seconds(rows) / self.seconds(equal)

    def seconds(self, kv_tokens: Array) -> float:
        """Estimated seconds of one call, cut as the runtime would."""
        longest = float(kv_tokens.max())
        most = max(int(longest // LEAST_RANGE_TOKENS), 1)
        ranges = longest / np.arange(1, most + 1)
        blocks = self.tiles * np.ceil(kv_tokens / ranges[:, None] - 1e-9).sum(axis=1)
        wave = BLOCKS_PER_SM * self.sm_count // self.kv_heads
        within = blocks <= max(MOST_WAVES * wave, float(blocks[0]) + wave)
        found = cut_seconds(
            blocks=blocks[within] * self.kv_heads,
            longest_tokens=ranges[within],
            total_tokens=float(kv_tokens.sum()) * self.tiles * self.kv_heads,
            merged_rows=float(kv_tokens.size * self.query_tokens * self.query_heads),
            tile_rows=self.tile_rows,
            head_dim=self.head_dim,
            sm_count=self.sm_count,
        )
        return float(found.min())


def cut_seconds(
    *, blocks: Array, longest_tokens: Array, total_tokens: float, merged_rows: float,
    tile_rows: int, head_dim: int, sm_count: int,
) -> Array:  # fmt: skip
    """Seconds of one call for each way to cut it, uncut first; arrays of one shape.

    Parameters
    ----------
    blocks, longest_tokens : array
        Blocks over all KV heads, and the longest one's KV.
    total_tokens : float
        KV of all blocks together, the same however cut.
    merged_rows : float
        Query tokens times query heads: what a cut has to merge.
    """
    per_token = _TOKEN_S[tile_rows] + _TOKEN_DIM_S * head_dim
    mean_tokens = total_tokens / blocks
    full, rest = np.divmod(blocks, BLOCKS_PER_SM * sm_count)
    last = np.where(rest == 0, 0.0, np.where(rest <= sm_count, 1.0, _PAIRED))
    waves = (full * _PAIRED + last) * (_BLOCK_S + mean_tokens * per_token)
    work = waves + (longest_tokens - mean_tokens) * per_token
    memory = total_tokens * head_dim * 4 / _BYTES_PER_S
    found = (work**_SMOOTH + memory**_SMOOTH) ** (1 / _SMOOTH) + _LAUNCH_S
    found[1:] += _MERGE_S + merged_rows * _MERGE_ROW_S
    return np.asarray(found)
