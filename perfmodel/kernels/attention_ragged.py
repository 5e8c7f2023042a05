"""What attention over caches of unequal length takes, over that of as many equal ones.

The runtime cuts the longest cache of a pass evenly and all others into ranges of that length, so
that sequences end in part-filled ranges and blocks in part-filled waves. What that costs is told by
the estimate by which it chooses its cut (`attention_cuts`), which was fitted to equal caches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.kernels.attention_split import (
    BLOCKS_PER_SM,
    LEAST_RANGE_TOKENS,
    TILE_ROWS,
    cut_seconds,
)

Array = NDArray[np.float64]

MOST_WAVES = 4  # of split blocks: their partial results take memory


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
        blocks, ranges = blocks[within], ranges[within]
        rows = float(kv_tokens.size * self.query_tokens * self.query_heads)
        found = cut_seconds(
            blocks=blocks * self.kv_heads,
            longest=ranges,
            total=np.full(ranges.shape, float(kv_tokens.sum()) * self.tiles * self.kv_heads),
            merged=np.where(ranges < longest, rows, 0.0),
            tile_rows=self.tile_rows,
            head_dim=self.head_dim,
            sm_count=self.sm_count,
        )
        return float(found.min())
