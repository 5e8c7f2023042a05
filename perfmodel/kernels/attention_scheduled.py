"""`BlockTable`: attention over a cache, by the blocks that a runtime with its own schedule cuts.

FlashInfer runs a block per (sequence, tile of query rows, range of KV, KV head). A cut into more
ranges fills the multiprocessors and costs a merge. In seconds, for the cut that the runtime makes:

    launch + merge + smooth max(waves of blocks x time of a block, bytes over the bandwidth)

times a measured residual over (group size, blocks per multiprocessor, tokens of a range): those and
not batch and cache are what a kernel's time follows. A block takes a time of its own and one per
token, two that share a multiprocessor each longer; part-filled tiles of KV count by a fitted share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from perfmodel.kernels.attention_split import (
    BLOCKS_PER_SM,
    TILE_ROWS,
    AttentionCall,
    Cut,
    tile_index,
)
from perfmodel.kernels.interpolate import bilinear, locate, log_weights
from perfmodel.units import US

Array: TypeAlias = NDArray[np.float64]

NS = 1e-9
ELEMENT_BYTES = 2.0  # of what was timed
SMOOTH_MAX = 4.0  # exponent of the norm that stands for max()
CHUNK = 512  # batches cut at once: their ways to cut fit a processor's cache
RAMP = 0.1  # of the multiprocessors: over so many more blocks the slowdown of pairs sets in


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockTable:
    """Fitted attention of one head dimension and one tile of query rows.

    `residual` is ln(measured / form) over (group, blocks per multiprocessor, range tokens).
    """

    head_dim: int
    tile_rows: int  # packed query rows, query tokens x group, of one block
    tile_tokens: int  # of KV that a block takes at once
    launch_us: float
    merge_us: float
    merge_row_ns: float  # of one query token and query head
    block_us: float  # of a block, whatever its range
    token_ns: float  # of a range's token, in a block alone on its multiprocessor
    pair_slowdown: float  # 0.5: a block that shares its multiprocessor takes 1.5x as long
    tile_share: float  # of a part-filled tile's missing tokens that are paid for
    lockstep: float  # 1: waves of blocks keep step; 0: multiprocessors run on as they please
    stream_efficiency: float  # of the datasheet's bandwidth
    group_knots: Array
    block_knots: Array
    token_knots: Array
    residual: Array
    max_unit_tokens: float  # largest measured KV heads x sequences x tokens

    def form_seconds(
        self,
        cut: Cut,
        *,
        unit_tokens: Array,
        merged_rows: Array | float,
        sm_count: int,
        hbm_bandwidth: float,
        bytes_per_element: float = ELEMENT_BYTES,
    ) -> Array:
        """The form without its residual. [s]

        Parameters
        ----------
        cut : Cut
            Arrays of one shape.
        unit_tokens : array
            Sequences x KV heads x tokens read of each.
        merged_rows : float or array
            Query tokens x query heads x sequences: what a cut has to merge.
        """
        slots = float(BLOCKS_PER_SM * sm_count)
        both = 1.0 + self.pair_slowdown
        full, rest = np.floor(cut.blocks / slots), cut.blocks % slots
        ramp = np.clip((rest / sm_count - 1.0) / RAMP, 0.0, 1.0)
        step = full * both + np.where(rest > 0, 1.0 + self.pair_slowdown * ramp, 0.0)
        even = np.where(cut.blocks <= slots, step, cut.blocks / slots * both)
        waves = self.lockstep * step + (1.0 - self.lockstep) * even
        whole = np.ceil(cut.range_tokens / self.tile_tokens) * self.tile_tokens
        tokens = self.tile_share * whole + (1.0 - self.tile_share) * cut.range_tokens
        token_s = self.token_ns * NS * bytes_per_element / ELEMENT_BYTES
        work = waves * (self.block_us * US + tokens * token_s)
        size = 2.0 * self.head_dim * bytes_per_element * unit_tokens
        memory = size / (hbm_bandwidth * self.stream_efficiency)
        merge = cut.merged * (self.merge_us * US + merged_rows * self.merge_row_ns * NS)
        body = (work**SMOOTH_MAX + memory**SMOOTH_MAX) ** (1.0 / SMOOTH_MAX)
        return np.asarray(self.launch_us * US + merge + body)

    def residual_at(self, group: float, cut: Cut, sm_count: int) -> Array:
        """ln(measured / form) of one group size; held flat outside the knots."""
        weights = log_weights(np.array([group]), self.group_knots)[0]
        plane = np.tensordot(weights, self.residual, axes=1)
        u, wu, _ = locate(cut.blocks / sm_count, self.block_knots)
        k, wk, _ = locate(cut.range_tokens, self.token_knots)
        return bilinear(plane, u, wu, k, wk)


# ---- over batches, lengths and query counts -----------------------------------------------------


def block_seconds(
    tables: tuple[BlockTable, ...],
    *,
    sm_count: int,
    batch: Array,
    kv_tokens: Array,
    query_tokens: Array,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    hbm_bandwidth: float,
    bytes_per_element: float,
) -> Array:
    """Seconds of one layer's attention on one rank; the arrays broadcast.

    Sweeps and the explorer ask for the same grid over and over: it is remembered, and read-only.
    """
    axes = tuple((x.tobytes(), x.shape) for x in (batch, kv_tokens, query_tokens))
    rates = (sm_count, hbm_bandwidth, bytes_per_element)
    return _seconds(tables, axes, query_heads, kv_heads, head_dim, *rates)


@lru_cache(maxsize=256)
def _seconds(
    tables: tuple[BlockTable, ...],
    axes: tuple[tuple[bytes, tuple[int, ...]], ...],
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    sm_count: int,
    hbm_bandwidth: float,
    bytes_per_element: float,
) -> Array:
    """The same of (sequences, tokens, query tokens), each as its bytes and shape."""
    arrays = [np.frombuffer(data).reshape(shape) for data, shape in axes]
    grid = np.broadcast_arrays(*arrays)
    batch, tokens, queries = (x.ravel() for x in grid)
    group, seconds = query_heads / kv_heads, np.empty(batch.shape)
    of_tile = tile_index(queries * group)
    for index, tile in enumerate(TILE_ROWS):
        mine, table = np.flatnonzero(of_tile == index), table_for(tables, head_dim, float(tile))
        for start in range(0, len(mine), CHUNK):
            part = mine[start : start + CHUNK]
            count, read, new = batch[part], tokens[part], queries[part]
            call = AttentionCall(
                query_tokens=new,
                query_heads=query_heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                sm_count=sm_count,
            )
            held = np.maximum(count, 1.0)  # an empty batch is cut as one sequence
            cut = call.split_kv(read[:, None], held[:, None])
            cut = cut._replace(blocks=cut.blocks * count / held)
            form = table.form_seconds(
                cut,
                unit_tokens=count * kv_heads * read,
                merged_rows=count * new * query_heads,
                sm_count=sm_count,
                hbm_bandwidth=hbm_bandwidth,
                bytes_per_element=bytes_per_element,
            )
            seconds[part] = form * np.exp(table.residual_at(group, cut, sm_count))
    found = seconds.reshape(grid[0].shape)
    found.flags.writeable = False
    return found


def table_for(tables: tuple[BlockTable, ...], head_dim: int, rows: float) -> BlockTable:
    """The table of these packed query rows, of the head dimension that is nearest in ratio.

    One that is borrowed reads bytes of its own at the same rate.
    """
    nearest = min((t.head_dim for t in tables), key=lambda dim: abs(np.log(dim / head_dim)))
    alike = sorted((t for t in tables if t.head_dim == nearest), key=lambda t: t.tile_rows)
    table = next((t for t in alike if t.tile_rows >= rows), alike[-1])
    if nearest == head_dim:
        return table
    return replace(table, head_dim=head_dim, token_ns=table.token_ns * head_dim / nearest)
