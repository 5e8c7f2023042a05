"""How one pass's attention is cut into blocks of work: which rows of queries by which range of KV.

FlashInfer's batch-prefill kernel runs one block per (sequence, tile of query rows, range of KV, KV
head) and merges the ranges afterwards. Its own planner fixes this per call and, in graph mode,
picks a tile by the longest query that a batch could hold. Here the tile follows the pass's own
queries and the rest is a few arrays of fixed size, so that one captured graph serves every round.

Source: `PrefillSplitQOKVIndptr` in flashinfer 0.6.6, `attention/scheduler.cuh`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
_LEAST_SPLIT_TOKENS = 128

_BLOCKS_PER_SM = 2  # what the kernel is built to run side by side
_UNEVEN = 1.5  # the longest sequence over the mean


def query_tile_rows(query_tokens: int, group: int) -> int:
    """Rows (query tokens times query heads a KV head) of one block: 16, 64 or 128."""
    rows = query_tokens * group
    return 128 if rows > 64 else 64 if rows > 16 else 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGrid:
    """What stays fixed while lengths change: sizes, tile, and whether KV may be split."""

    batch: int
    query_rows: int  # query tokens of the whole pass
    group: int
    tile_rows: int
    page_tokens: int
    window_tokens: int | None
    blocks: int  # room for blocks of one KV head
    split: bool

    @classmethod
    def of(
        cls,
        query_tokens: Ints,
        kv_tokens: Ints,
        *,
        group: int,
        kv_heads: int,
        page_tokens: int,
        processors: int,
        window_tokens: int | None = None,
    ) -> BlockGrid:
        """The grid for these query counts on a GPU of `processors` multiprocessors.

        KV is split where that at least doubles the blocks, or evens out lengths that are far apart:
        a split costs a merge (on an H200 0.1 ms a pass of 32 layers).
        """
        tile = query_tile_rows(-(-int(query_tokens.sum()) // len(query_tokens)), group)
        tiles = -(-query_tokens * group // tile)
        count = int(tiles.sum())
        room = _BLOCKS_PER_SM * processors // kv_heads
        uneven = _UNEVEN * float((tiles * kv_tokens).sum()) < count * float(kv_tokens.max())
        return cls(
            batch=len(query_tokens),
            query_rows=int(query_tokens.sum()),
            group=group,
            tile_rows=tile,
            page_tokens=page_tokens,
            window_tokens=window_tokens,
            blocks=max(room, count + room * uneven),
            split=uneven or 2 * count <= room,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """The blocks of one pass: `count` of them, then room that the mask turns off.

    `requests`, `query_tiles`, `kv_ranges` (blocks,) say what each does; `outputs` (batch + 1,)
    where a sequence's partial rows start; `merges` (query_rows + 1,) which of them make up a row.
    """

    count: int
    range_tokens: int
    requests: Ints
    query_tiles: Ints
    kv_ranges: Ints
    outputs: Ints
    merges: Ints


def pages_read(grid: BlockGrid, kv_tokens: Ints) -> Ints:
    """Pages that each sequence's attention reads: all that its blocks depend on."""
    pages = -(-kv_tokens // grid.page_tokens)
    if grid.window_tokens is None:
        return pages
    seen = grid.window_tokens - 1 + grid.tile_rows
    return np.minimum(pages, -(-seen // grid.page_tokens))


def schedule(grid: BlockGrid, pages: Ints, query_tokens: Ints) -> Blocks:
    """Cut a pass into at most `grid.blocks` blocks of ranges as short as that allows."""
    tiles = -(-query_tokens * grid.group // grid.tile_rows)
    longest = int(pages.max())
    range_pages = _range_pages(grid, pages, tiles) if grid.split else longest
    ranges = -(-pages // range_pages)
    work = tiles * ranges
    count = int(work.sum())
    requests = np.repeat(np.arange(grid.batch, dtype=np.int32), work)
    within = np.arange(count) - np.repeat(np.cumsum(work) - work, work)
    of_request = ranges[requests]
    return Blocks(
        count=count,
        range_tokens=range_pages * grid.page_tokens,
        requests=requests,
        query_tiles=(within // of_request).astype(np.int32),
        kv_ranges=(within % of_request).astype(np.int32),
        outputs=_offsets(query_tokens * ranges),
        merges=_offsets(np.repeat(ranges, query_tokens)),
    )


def _range_pages(grid: BlockGrid, pages: Ints, tiles: Ints) -> int:
    """The shortest range that the blocks have room for, among even cuts of the longest sequence."""
    least = max(1, _LEAST_SPLIT_TOKENS // grid.page_tokens)
    longest = int(pages.max())
    cuts = np.arange(1, grid.blocks + 1)
    lengths = np.maximum(-(-longest // cuts), least)
    needed = (tiles * -(-pages // lengths[:, None])).sum(1)
    return int(lengths[needed <= grid.blocks].min())


def _offsets(counts: Ints) -> Ints:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
