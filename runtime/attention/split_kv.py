"""How one pass's attention is cut into blocks of work: which rows of queries by which range of KV.

FlashInfer's batch-prefill kernel runs one block per (sequence, tile of query rows, range of KV, KV
head) and merges the ranges afterwards. Its own planner fixes this per call and, in graph mode,
picks a tile by the longest query that a batch could hold. Here the tile follows the pass's own
queries and the rest is a few arrays of fixed size, so that one captured graph serves every round.

Source: `PrefillSplitQOKVIndptr` in flashinfer 0.6.6, `attention/scheduler.cuh`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from runtime.attention.split_cost import BLOCKS_PER_SM, pass_seconds

Ints = NDArray[np.int32]
_LEAST_SPLIT_TOKENS = 128
_MOST_WAVES = 4  # of split blocks: their partial results take memory
_ALIKE = 1.02  # estimates that differ by less


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
        head_dim: int = 128,
        window_tokens: int | None = None,
    ) -> BlockGrid:
        """The grid for these query counts on a GPU of `processors` multiprocessors.

        It has room for the blocks of the cut that takes least by `split_cost`, at these lengths.
        """
        tile = query_tile_rows(-(-int(query_tokens.sum()) // len(query_tokens)), group)
        tiles = -(-(query_tokens * group) // tile)
        pages = _pages_read(kv_tokens, page_tokens, window_tokens, tile)
        lengths = _even_cuts(int(pages.max()), page_tokens)
        blocks = (tiles * -(-pages // lengths[:, None])).sum(1)
        wave = BLOCKS_PER_SM * processors // kv_heads
        within = blocks <= max(_MOST_WAVES * wave, int(blocks[0]) + wave)
        lengths, blocks = lengths[within], blocks[within]
        seconds = pass_seconds(
            blocks=blocks * float(kv_heads),
            longest_tokens=lengths * float(page_tokens),
            total_tokens=float((tiles * pages).sum()) * page_tokens * kv_heads,
            merged_rows=float(query_tokens.sum()) * group * kv_heads,
            tile_rows=tile,
            head_dim=head_dim,
            processors=processors,
        )
        best = int(np.flatnonzero(seconds <= _ALIKE * seconds.min())[0])  # the longest ranges
        return cls(
            batch=len(query_tokens),
            query_rows=int(query_tokens.sum()),
            group=group,
            tile_rows=tile,
            page_tokens=page_tokens,
            window_tokens=window_tokens,
            blocks=int(blocks[best]),
            split=best > 0,
        )

    @property
    def partial_rows(self) -> int:
        """Room for partial rows, of all query heads: each range leaves one of its every query."""
        return self.blocks * self.tile_rows // self.group if self.split else 0


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
    return _pages_read(kv_tokens, grid.page_tokens, grid.window_tokens, grid.tile_rows)


def schedule(grid: BlockGrid, pages: Ints, query_tokens: Ints) -> Blocks:
    """Cut a pass into at most `grid.blocks` blocks of ranges as short as that allows.

    The result is shared by all calls that cut alike, and cannot be written to.
    """
    return _scheduled(grid, _int32_bytes(pages), _int32_bytes(query_tokens))


@lru_cache(maxsize=64)
def _scheduled(grid: BlockGrid, page_counts: bytes, query_counts: bytes) -> Blocks:
    """Few calls come here: the steps of a draft phase mostly read as many pages."""
    pages = np.frombuffer(page_counts, dtype=np.int32)
    longest = int(pages.max())
    range_pages = longest
    if grid.split:
        range_pages = _range_pages(grid, pages, longest, _tiles(grid, query_counts))
    return _cut(grid, range_pages, _int32_bytes(-(-pages // range_pages)), query_counts)


@lru_cache(maxsize=64)
def _cut(grid: BlockGrid, range_pages: int, range_counts: bytes, query_counts: bytes) -> Blocks:
    """Blocks from each sequence's ranges: these outlast most changes of its pages."""
    ranges = np.frombuffer(range_counts, dtype=np.int32)
    query_tokens = np.frombuffer(query_counts, dtype=np.int32)
    work = _tiles(grid, query_counts) * ranges
    count = int(work.sum())
    requests = np.repeat(np.arange(grid.batch, dtype=np.int32), work)
    within = np.arange(count, dtype=np.int32) - np.repeat(np.cumsum(work) - work, work)
    query_tiles, kv_ranges = np.divmod(within, ranges[requests])
    found = Blocks(
        count=count,
        range_tokens=range_pages * grid.page_tokens,
        requests=requests,
        query_tiles=query_tiles.astype(np.int32),
        kv_ranges=kv_ranges.astype(np.int32),
        outputs=_offsets(query_tokens * ranges),
        merges=_offsets(np.repeat(ranges, query_tokens)),
    )
    for part in (found.requests, found.query_tiles, found.kv_ranges, found.outputs, found.merges):
        part.flags.writeable = False
    return found


def _range_pages(grid: BlockGrid, pages: Ints, longest: int, tiles: Ints) -> int:
    """The shortest range that the blocks have room for, among even cuts of the longest sequence."""
    least = _least_pages(grid.page_tokens)
    # So many cuts surely fit; with more than `many`, ranges are too short for the work.
    few, many = max(1, grid.blocks // int(tiles.sum())), -(-longest // least)
    shortest = -(-int(tiles @ pages) // grid.blocks)
    if shortest > least:
        many = min(many, -(-longest // (shortest - 1)) - 1)
    few, last, probes = min(few, many), _last_cuts(grid), 0
    while few < many:
        # Mostly as many as before fit, and one more does not.
        middle = min(max(last[0], few + 1), many) if probes < 2 else (few + many + 1) // 2
        length = max(-(-longest // middle), least)
        if int(tiles @ -(-pages // length)) <= grid.blocks:
            few = middle
        else:
            many = middle - 1
        probes += 1
    last[0] = few
    return max(-(-longest // few), least)


@lru_cache(maxsize=64)
def _last_cuts(grid: BlockGrid) -> list[int]:
    """Where the next search begins: one number, written to."""
    return [1]


def _even_cuts(longest: int, page_tokens: int) -> Ints:
    """Lengths of ranges, in pages, that cut the longest sequence evenly; itself first."""
    least = min(longest, _least_pages(page_tokens))
    lengths = -(-longest // np.arange(1, -(-longest // least) + 1, dtype=np.int32))
    return np.unique(np.maximum(lengths, least))[::-1]


@lru_cache(maxsize=64)
def _tiles(grid: BlockGrid, query_counts: bytes) -> Ints:
    """Tiles of query rows of each sequence."""
    return -(-(np.frombuffer(query_counts, dtype=np.int32) * grid.group) // grid.tile_rows)


def _int32_bytes(values: Ints) -> bytes:
    return values.astype(np.int32, copy=False).tobytes()


def _least_pages(page_tokens: int) -> int:
    return max(1, _LEAST_SPLIT_TOKENS // page_tokens)


def _pages_read(kv_tokens: Ints, page_tokens: int, window_tokens: int | None, tile: int) -> Ints:
    pages = -(-kv_tokens // page_tokens)
    if window_tokens is None:
        return pages
    return np.minimum(pages, -(-(window_tokens - 1 + tile) // page_tokens))


def _offsets(counts: Ints) -> Ints:
    found = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=found[1:])
    return found
