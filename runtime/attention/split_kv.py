"""Split-KV heuristic: how one pass's attention is split into blocks.

FlashInfer's batch-prefill kernel runs one block per (sequence, tile of query rows, range of KV, KV
head) and merges the ranges afterwards. Its planner fixes the split per call and, in graph mode,
chooses the tile for the longest query that a batch could contain. Here the tile fits the queries of
the pass, and the blocks are listed in arrays of fixed size, so one captured graph serves every
round.

The split with the shortest estimated time is used. Blocks run in waves of two per multiprocessor,
which slow each other down, and memory bandwidth bounds the total; splitting KV adds a merge of each
row of each query head.

The schedule follows `PrefillSplitQOKVIndptr` in flashinfer 0.6.6, `attention/scheduler.cuh`. The
estimate is fitted to 3,118 timings of 1,022 shapes on an H200 (`benchmarks/tuning/tune_splits.py`,
45 s; calibration/measured/split-kv-h200.jsonl.gz) by least squares of the logarithm, with an rms
error of 8 %. The chosen split is slower than the fastest measured one by 0.3 % on average and 17 %
at worst. For other GPUs only `num_sms` changes.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]

BLOCKS_PER_SM = 2  # that run concurrently
LEAST_RANGE_TOKENS = 128
_MOST_WAVES = 4  # waves of split blocks, since partial results take memory
_TIE = 1.02  # among splits whose estimates are within this factor, the coarsest is used
_TOKEN_S = {16: 3.6e-9, 64: 8.8e-9, 128: 17e-9}  # per KV token of a lone block, by tile rows
_TOKEN_DIM_S = 0.09e-9  # additional time per KV token and head dimension
_BLOCK_S, _LAUNCH_S = 3.7e-6, 1.3e-6
_PAIRED = 1.4  # time of two concurrent blocks on a multiprocessor relative to one
_BYTES_PER_S = 4.6e12
_MERGE_S, _MERGE_ROW_S = 2.5e-6, 3.4e-9  # per call; per query token and query head


def query_tile_rows(query_tokens: int, group: int, head_dim: int = 128) -> int:
    """Rows (query tokens times query heads per KV head) of one block: 16, 64 or 128.

    Blocks of 128 rows do not fit a head dimension of 256 (`IsInvalid` in flashinfer's prefill.cuh).
    """
    rows = query_tokens * group
    return 128 if rows > 64 and head_dim < 256 else 64 if rows > 16 else 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockGrid:
    """The part of a split that stays fixed while lengths change."""

    batch: int
    query_rows: int  # query tokens of all sequences
    group: int
    tile_rows: int
    page_tokens: int
    window_tokens: int | None
    blocks: int  # capacity, per KV head
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
        num_sms: int,
        head_dim: int = 128,
        window_tokens: int | None = None,
    ) -> BlockGrid:
        """The grid for these query counts (batch,) on a GPU of `num_sms` multiprocessors.

        Its capacity is the number of blocks of the split that `pass_seconds` estimates to be the
        fastest at these lengths (batch,).
        """
        query_rows = int(query_tokens.sum())
        tile = query_tile_rows(-(-query_rows // len(query_tokens)), group, head_dim)
        unsplit = cls(
            batch=len(query_tokens),
            query_rows=query_rows,
            group=group,
            tile_rows=tile,
            page_tokens=page_tokens,
            window_tokens=window_tokens,
            blocks=0,
            split=False,
        )
        tiles, pages = -(-(query_tokens * group) // tile), pages_read(unsplit, kv_tokens)
        lengths = _range_lengths(int(pages.max()), page_tokens)
        blocks = (tiles * -(-pages // lengths[:, None])).sum(1)
        wave = BLOCKS_PER_SM * num_sms // kv_heads
        within = blocks <= max(_MOST_WAVES * wave, int(blocks[0]) + wave)
        lengths, blocks = lengths[within], blocks[within]
        seconds = pass_seconds(
            blocks=blocks * float(kv_heads),
            longest_tokens=lengths * float(page_tokens),
            total_tokens=float((tiles * pages).sum()) * page_tokens * kv_heads,
            merged_rows=float(query_rows) * group * kv_heads,
            tile_rows=tile,
            head_dim=head_dim,
            num_sms=num_sms,
        )
        best = int(np.flatnonzero(seconds <= _TIE * seconds.min())[0])  # the longest ranges
        return replace(unsplit, blocks=int(blocks[best]), split=best > 0)

    @property
    def partial_rows(self) -> int:
        """Capacity for partial output rows: one per range, query token and query head."""
        return self.blocks * self.tile_rows // self.group if self.split else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """The blocks of one pass.

    `requests`, `query_tiles` and `kv_ranges` (count,) are the sequence, tile and range of each
    block. `outputs` (batch + 1,) are the offsets of each sequence's partial rows, and `merges`
    (query_rows + 1,) those of the partial rows of each output row.
    """

    count: int
    range_tokens: int
    requests: Ints
    query_tiles: Ints
    kv_ranges: Ints
    outputs: Ints
    merges: Ints


def pages_read(grid: BlockGrid, kv_tokens: Ints) -> Ints:
    """Pages that each sequence's attention reads; blocks depend on lengths only through them."""
    pages = -(-kv_tokens // grid.page_tokens)
    if grid.window_tokens is None:
        return pages
    return np.minimum(pages, -(-(grid.window_tokens - 1 + grid.tile_rows) // grid.page_tokens))


def schedule(grid: BlockGrid, pages: Ints, query_tokens: Ints) -> Blocks:
    """Split a pass into at most `grid.blocks` blocks, with the shortest ranges that this allows.

    Results are cached and shared between calls, so their arrays are read-only.
    """
    return _scheduled(grid, _int32_bytes(pages), _int32_bytes(query_tokens))


@lru_cache(maxsize=64)
def _scheduled(grid: BlockGrid, page_counts: bytes, query_counts: bytes) -> Blocks:
    """Usually cached, since the steps of a draft phase mostly read the same number of pages."""
    pages = np.frombuffer(page_counts, dtype=np.int32)
    longest = int(pages.max())
    range_pages = longest
    if grid.split:
        range_pages = _range_pages(grid, pages, longest, _tiles(grid, query_counts))
    return _cut(grid, range_pages, _int32_bytes(-(-pages // range_pages)), query_counts)


@lru_cache(maxsize=64)
def _cut(grid: BlockGrid, range_pages: int, range_counts: bytes, query_counts: bytes) -> Blocks:
    """Blocks from each sequence's number of ranges, which changes less often than its pages."""
    ranges = np.frombuffer(range_counts, dtype=np.int32)
    query_tokens = np.frombuffer(query_counts, dtype=np.int32)
    work = _tiles(grid, query_counts) * ranges
    count = int(work.sum())
    requests = np.repeat(np.arange(grid.batch, dtype=np.int32), work)
    within = np.arange(count, dtype=np.int32) - np.repeat(np.cumsum(work) - work, work)
    query_tiles, kv_ranges = np.divmod(within, ranges[requests])
    blocks = Blocks(
        count=count,
        range_tokens=range_pages * grid.page_tokens,
        requests=requests,
        query_tiles=query_tiles.astype(np.int32),
        kv_ranges=kv_ranges.astype(np.int32),
        outputs=_offsets(query_tokens * ranges),
        merges=_offsets(np.repeat(ranges, query_tokens)),
    )
    arrays = (blocks.requests, blocks.query_tiles, blocks.kv_ranges, blocks.outputs, blocks.merges)
    for array in arrays:
        array.flags.writeable = False
    return blocks


def _range_pages(grid: BlockGrid, pages: Ints, longest: int, tiles: Ints) -> int:
    """The shortest range that fits the grid, among even splits of the longest sequence."""
    least = max(1, LEAST_RANGE_TOKENS // grid.page_tokens)
    work, unsplit = int(tiles @ pages), int(tiles.sum())
    # Ranges of an equal share fill all blocks at best; with one spare block per tile they fit.
    share, spare = -(-work // grid.blocks), grid.blocks - unsplit
    most = -(-longest // max(least, share - 1)) - (share > least)
    few = max(grid.blocks // unsplit, longest // -(-work // spare) if spare else 1)
    few = min(few, most)

    def blocks(cuts: int) -> int:
        return int(tiles @ -(-pages // max(-(-longest // cuts), least)))

    cuts = few + bisect_right(range(few + 1, most + 1), grid.blocks, key=blocks)
    return max(-(-longest // cuts), least)


def _range_lengths(longest: int, page_tokens: int) -> Ints:
    """Range lengths in pages that split the longest sequence evenly, unsplit first."""
    least = min(longest, max(1, LEAST_RANGE_TOKENS // page_tokens))
    lengths = -(-longest // np.arange(1, -(-longest // least) + 1, dtype=np.int32))
    return np.unique(np.maximum(lengths, least))[::-1]


@lru_cache(maxsize=64)
def _tiles(grid: BlockGrid, query_counts: bytes) -> Ints:
    """Tiles of query rows of each sequence."""
    return -(-(np.frombuffer(query_counts, dtype=np.int32) * grid.group) // grid.tile_rows)


def _int32_bytes(values: Ints) -> bytes:
    return values.astype(np.int32, copy=False).tobytes()


def _offsets(counts: Ints) -> Ints:
    offsets = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def pass_seconds(
    *,
    blocks: Floats,
    longest_tokens: Floats,
    total_tokens: float,
    merged_rows: float,
    tile_rows: int,
    head_dim: int,
    num_sms: int,
) -> Floats:
    """Estimated seconds of one call in a graph, for each split; the first one is unsplit.

    Parameters
    ----------
    blocks, longest_tokens : array
        Per split: blocks of all KV heads; KV tokens of the longest block.
    total_tokens : float
        KV tokens of all blocks, the same for every split.
    merged_rows : float
        Rows to merge after a split: query tokens times query heads.
    """
    per_token = _TOKEN_S[tile_rows] + _TOKEN_DIM_S * head_dim
    mean_tokens = total_tokens / blocks
    full, rest = np.divmod(blocks, BLOCKS_PER_SM * num_sms)
    last = np.where(rest == 0, 0.0, np.where(rest <= num_sms, 1.0, _PAIRED))
    waves = (full * _PAIRED + last) * (_BLOCK_S + mean_tokens * per_token)
    work = waves + (longest_tokens - mean_tokens) * per_token
    memory = total_tokens * head_dim * 4 / _BYTES_PER_S
    seconds: Floats = np.sqrt(np.hypot(work * work, memory * memory)) + _LAUNCH_S  # the 4-norm
    seconds[1:] += _MERGE_S + merged_rows * _MERGE_ROW_S
    return seconds
