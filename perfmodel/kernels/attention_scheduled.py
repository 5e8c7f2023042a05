"""`ScheduledAttention`: attention over a cache by the thread blocks that the runtime schedules.

FlashInfer runs one block per (sequence, tile of query rows, range of KV, KV head). More ranges of
KV occupy more multiprocessors but cost a merge. For the runtime's split, the time is

    launch + merge + smooth max(waves of blocks x time of a block, bytes over the bandwidth)

times a measured residual over (group size, blocks per multiprocessor, tokens of a range), which
determine the time of a kernel better than batch and cache. A block takes a fixed time plus a time
per token, both longer if two blocks share a multiprocessor. A partly filled KV tile counts as a
fitted fraction of a full one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from perfmodel._typing import Bools, Floats
from perfmodel.kernels.attention import SMOOTH_MAX, AttentionCurve, Heads, Rates, check_shape
from perfmodel.kernels.attention_split import (
    BLOCKS_PER_SM,
    PAGE_TOKENS,
    TILE_ROWS,
    AttentionCall,
    SplitKV,
    tile_index,
)
from perfmodel.kernels.interpolate import bilinear, locate, log_weights
from perfmodel.units import US

NS = 1e-9
ELEMENT_BYTES = 2.0  # of the KV cache in the measurements
CHUNK = 512  # batches split at once; their candidates fit in the CPU cache
# Of tiles of 128 rows to those of 64 on an H200, both for head dimension 128.
TALLER_TOKEN, TALLER_PAIR = 1.49, 1.34
PAIR_RAMP = 0.1  # share of the multiprocessors over which the slowdown of pairs sets in


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockTable:
    """Fitted attention for one head dimension and one tile of query rows.

    `residual` is ln(measured / form) over (group, blocks per multiprocessor, range tokens).
    """

    head_dim: int
    tile_rows: int  # packed query rows (query tokens x group) per block
    tile_tokens: int  # KV tokens that a block processes at once
    launch_us: float
    merge_us: float
    merge_row_ns: float  # per query token and query head
    block_us: float  # fixed time of a block
    token_ns: float  # per token of a range, for a block alone on its multiprocessor
    pair_slowdown: float  # at 0.5, a block that shares its multiprocessor takes 1.5 times as long
    tile_share: float  # share of the missing tokens of a partly filled tile that cost time
    lockstep: float  # 1: blocks run in waves; 0: multiprocessors are independent
    stream_efficiency: float  # of the datasheet's bandwidth
    group_knots: Floats = field(repr=False)
    block_knots: Floats = field(repr=False)
    token_knots: Floats = field(repr=False)
    residual: Floats = field(repr=False)
    max_unit_tokens: float  # largest measured KV heads x sequences x tokens

    def __post_init__(self) -> None:
        check_shape("residual", self.residual, self.group_knots, self.block_knots, self.token_knots)

    def form_seconds(
        self,
        split: SplitKV,
        *,
        unit_tokens: Floats,
        merged_rows: Floats | float,
        sm_count: int,
        hbm_bandwidth: float,
        bytes_per_element: float = ELEMENT_BYTES,
    ) -> Floats:
        """The form without its residual, for arrays of one shape. [s]

        `unit_tokens` are sequences x KV heads x tokens read per sequence; `merged_rows`, query
        tokens x query heads x sequences, are the rows to merge if KV is split.
        """
        slots = float(BLOCKS_PER_SM * sm_count)
        pair = 1.0 + self.pair_slowdown
        full, rest = np.floor(split.blocks / slots), split.blocks % slots
        ramp = np.clip((rest / sm_count - 1.0) / PAIR_RAMP, 0.0, 1.0)
        step = full * pair + np.where(rest > 0, 1.0 + self.pair_slowdown * ramp, 0.0)
        even = np.where(split.blocks <= slots, step, split.blocks / slots * pair)
        waves = self.lockstep * step + (1.0 - self.lockstep) * even
        padded = np.ceil(split.range_tokens / self.tile_tokens) * self.tile_tokens
        tokens = self.tile_share * padded + (1.0 - self.tile_share) * split.range_tokens
        token_s = self.token_ns * NS * bytes_per_element / ELEMENT_BYTES
        work = waves * (self.block_us * US + tokens * token_s)
        size = 2.0 * self.head_dim * bytes_per_element * unit_tokens
        memory = size / (hbm_bandwidth * self.stream_efficiency)
        merge = split.merged * (self.merge_us * US + merged_rows * self.merge_row_ns * NS)
        body = (work**SMOOTH_MAX + memory**SMOOTH_MAX) ** (1.0 / SMOOTH_MAX)
        return np.asarray(self.launch_us * US + merge + body)

    def residual_at(self, group: float, split: SplitKV, sm_count: int) -> Floats:
        """ln(measured / form) for one group size, constant outside the knots."""
        weights = log_weights(np.array([group]), self.group_knots)[0]
        plane = np.tensordot(weights, self.residual, axes=1)
        u, wu, _ = locate(split.blocks / sm_count, self.block_knots)
        k, wk, _ = locate(split.range_tokens, self.token_knots)
        return bilinear(plane, u, wu, k, wk)


@dataclass(frozen=True, eq=False, kw_only=True)
class ScheduledAttention(AttentionCurve):
    """Attention of the runtime, which splits KV by `AttentionCall.split_kv`."""

    blocks: tuple[BlockTable, ...] = field(repr=False)

    counts_new_tokens = True  # one more token may start a new tile

    def has_tall_tiles(self, rows: Floats) -> Bools:
        """Whether blocks have more rows than the smallest tile."""
        return np.asarray(rows > TILE_ROWS[0])

    def _seconds(
        self, heads: Heads, rates: Rates, batch: Floats, tokens: Floats, queries: Floats
    ) -> Floats:
        """Cached by grid, because a sweep evaluates the target's grid again for every draft."""
        axes = tuple((axis.tobytes(), axis.shape) for axis in (batch, tokens, queries))
        return _grid_seconds(self, axes, heads, rates)

    def _in_range(self, heads: Heads, batch: Floats, tokens: Floats, queries: Floats) -> Bools:
        """Whether blocks with this many query rows and this much KV were measured.

        More than two of the largest tiles were not.
        """
        batch_heads, rows = batch * heads.kv, queries * heads.group
        shape = np.broadcast_shapes(batch.shape, tokens.shape, queries.shape)
        tables = [t for t in self.blocks if t.head_dim == heads.dim]
        if not tables:
            return np.zeros(shape, bool)
        size_ok = batch_heads * tokens <= max(t.max_unit_tokens for t in tables)
        measured = [t.tile_rows for t in tables if heads.group <= t.group_knots[-1]]
        rows_ok = np.isin(np.array(TILE_ROWS)[tile_index(rows, heads.dim)], measured) & (
            rows <= 2.0 * TILE_ROWS[-1]
        )
        return np.asarray((tokens >= tables[0].token_knots[0]) & size_ok & rows_ok)

    def table(self, head_dim: int, rows: float) -> BlockTable:
        """The table for some packed query rows, with the head dimension that is nearest in ratio.

        If its head dimension differs, the table is scaled to equal bytes per second. Without a
        table for so many rows, that of the next smaller tile has longer and more rival blocks.
        """
        nearest = min((t.head_dim for t in self.blocks), key=lambda d: abs(np.log(d / head_dim)))
        tables = (t for t in self.blocks if t.head_dim == nearest)
        by_tile = sorted(tables, key=lambda t: t.tile_rows)
        table = next((t for t in by_tile if t.tile_rows >= rows), by_tile[-1])
        if table.tile_rows < rows:
            table = replace(
                table,
                tile_rows=int(rows),
                token_ns=table.token_ns * TALLER_TOKEN,
                pair_slowdown=min(table.pair_slowdown * TALLER_PAIR, 1.0),
                residual=np.zeros_like(table.residual),
            )
        if nearest == head_dim:
            return table
        return replace(table, head_dim=head_dim, token_ns=table.token_ns * head_dim / nearest)


@lru_cache(maxsize=256)
def _grid_seconds(
    curve: ScheduledAttention,
    axes: tuple[tuple[bytes, tuple[int, ...]], ...],
    heads: Heads,
    rates: Rates,
) -> Floats:
    """Read-only seconds over (sequences, tokens, query tokens), given as bytes and shapes."""
    grid = np.broadcast_arrays(*(np.frombuffer(data).reshape(shape) for data, shape in axes))
    batch, tokens, queries = (x.ravel() for x in grid)
    seconds = np.empty(batch.shape)
    tile_of = tile_index(queries * heads.group, heads.dim)
    for index, tile_rows in enumerate(TILE_ROWS):
        cells, table = np.flatnonzero(tile_of == index), curve.table(heads.dim, float(tile_rows))
        for start in range(0, len(cells), CHUNK):
            part = cells[start : start + CHUNK]
            call = AttentionCall(
                query_tokens=queries[part],
                query_heads=heads.query,
                kv_heads=heads.kv,
                head_dim=heads.dim,
                sm_count=curve.sm_count,
            )
            seconds[part] = _table_seconds(table, call, batch[part], tokens[part], rates)
    seconds.flags.writeable = False
    return seconds.reshape(grid[0].shape)


def _table_seconds(
    table: BlockTable, call: AttentionCall, batch: Floats, tokens: Floats, rates: Rates
) -> Floats:
    """Seconds of batches with equal caches, for calls with one tile size."""
    sequences = np.maximum(batch, 1.0)  # an empty batch is split like one sequence
    split = _split(call, sequences, tokens)
    split = split._replace(blocks=split.blocks * batch / sequences)
    form = table.form_seconds(
        split,
        unit_tokens=batch * call.kv_heads * tokens,
        merged_rows=batch * call.query_tokens * call.query_heads,
        sm_count=call.sm_count,
        hbm_bandwidth=rates.hbm_bandwidth,
        bytes_per_element=rates.kv_bytes,
    )
    group = float(call.query_heads / call.kv_heads)
    return np.asarray(form * np.exp(table.residual_at(group, split, call.sm_count)))


def _split(call: AttentionCall, sequences: Floats, tokens: Floats) -> SplitKV:
    """The split of each batch, computed once for neighbours with as many pages."""
    pages = np.ceil(tokens / PAGE_TOKENS)
    queries = np.broadcast_to(call.query_tokens, tokens.shape)
    first = np.ones(tokens.shape, bool)
    first[1:] = np.any(np.diff([sequences, pages, queries]) != 0, axis=0)
    once = replace(call, query_tokens=queries[first])
    split = once.split_kv(PAGE_TOKENS * pages[first, None], sequences[first, None])
    split = SplitKV(*(field[np.cumsum(first) - 1] for field in split))
    return split._replace(range_tokens=np.minimum(split.range_tokens, tokens))
