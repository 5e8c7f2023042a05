"""Into which blocks the runtime cuts a pass's attention: its own rule, told again.

`runtime/attention/split_cost.py` and `split_kv.py` choose the cut by an estimate of their own, at
the start, from host numbers. What they choose has to be known to price it; perfmodel and runtime
do not import each other, so the rule stands here a second time, for sequences of equal length. A
test holds both together.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

BLOCKS_PER_SM = 2  # what the kernel is built to run side by side
HALF_WAVES = 8  # of blocks that KV is cut into, at most
PAGE_TOKENS = 16.0  # ranges are whole pages
LEAST_RANGE_TOKENS = 128.0
ALIKE = 1.02  # of two cuts this near the coarser is taken

TILE_ROWS = (16, 64, 128)  # packed query rows of one block

# The runtime's estimate of one call: runtime/attention/split_cost.py has the source of each.
_TOKEN_S = {16: 3.6e-9, 64: 8.8e-9, 128: 17e-9}
_TOKEN_DIM_S, _BLOCK_S, _LAUNCH_S, _PAIRED = 0.09e-9, 3.7e-6, 1.3e-6, 1.4
_BYTES_PER_S, _MERGE_S, _MERGE_ROW_S, _SMOOTH = 4.6e12, 2.5e-6, 3.4e-9, 4


class Cut(NamedTuple):
    """Blocks over all sequences and KV heads, and tokens of the longest range; arrays alike."""

    blocks: Array
    range_tokens: Array
    merged: Array  # 1 where results of several ranges are merged, else 0


def runtime_cut(
    *, units: Array, tokens: Array, rows: Array, tile_rows: int, head_dim: int, sm_count: int
) -> Cut:
    """The runtime's cut of sequences of equal length.

    Parameters
    ----------
    units, tokens, rows : arrays of one shape
        Sequences x KV heads; tokens read of each; packed query rows, query tokens x group.
    """
    tiles = np.maximum(np.ceil(rows / tile_rows), 1.0)
    pages = np.maximum(np.ceil(tokens / PAGE_TOKENS), 1.0)
    most = np.maximum(np.ceil(tokens / LEAST_RANGE_TOKENS), 1.0)
    held = np.maximum(units, 1.0)  # an empty batch is cut as one sequence
    halves = [np.floor(n * sm_count / (held * tiles)) for n in range(1, HALF_WAVES + 1)]
    cuts = np.stack([np.ones(units.shape), *(np.clip(half, 1.0, most) for half in halves)])
    ranges = np.maximum(np.ceil(pages / cuts), LEAST_RANGE_TOKENS / PAGE_TOKENS)
    ranges = np.minimum(np.where(cuts > 1.0, ranges, pages), pages)
    count = np.ceil(pages / ranges)
    blocks = units * tiles * count
    seconds = cut_seconds(
        blocks=held * tiles * count,
        longest=ranges * PAGE_TOKENS,
        total=held * tiles * pages * PAGE_TOKENS,
        merged=np.where(count > 1.0, held * rows, 0.0),
        tile_rows=tile_rows,
        head_dim=head_dim,
        sm_count=sm_count,
    )
    chosen = np.argmax(seconds <= ALIKE * seconds.min(axis=0), axis=0)[None]
    whole = np.minimum(ranges * PAGE_TOKENS, tokens)
    picked = (np.take_along_axis(part, chosen, axis=0)[0]
              for part in (blocks, whole, (count > 1.0).astype(float)))  # fmt: skip
    return Cut(*picked)


def cut_seconds(
    *,
    blocks: Array,
    longest: Array,
    total: Array,
    merged: Array,
    tile_rows: int,
    head_dim: int,
    sm_count: int,
) -> Array:
    """The runtime's estimate of one call for ways to cut it; arrays of one shape. [s]

    Parameters
    ----------
    blocks, longest : array
        Blocks over all KV heads; tokens of the longest range.
    total, merged : array
        Tokens of all blocks; query tokens x query heads to merge, 0 where nothing is cut.
    """
    per_token, mean = _TOKEN_S[tile_rows] + _TOKEN_DIM_S * head_dim, total / blocks
    full, rest = np.divmod(blocks, BLOCKS_PER_SM * sm_count)
    last = np.where(rest == 0, 0.0, np.where(rest <= sm_count, 1.0, _PAIRED))
    waves = (full * _PAIRED + last) * (_BLOCK_S + mean * per_token)
    work = waves + (longest - mean) * per_token
    memory = total * head_dim * 4 / _BYTES_PER_S
    merge = np.where(merged > 0, _MERGE_S + merged * _MERGE_ROW_S, 0.0)
    return np.asarray((work**_SMOOTH + memory**_SMOOTH) ** (1 / _SMOOTH) + _LAUNCH_S + merge)
