"""`AttentionForm`: the physical form of decode, verify and draft attention, without residuals.

In work units of one KV head of one sequence:

    kernel latency + split latency + smooth max(streaming, waves of blocks, tensor cores)

Streaming knows that one thread block reads at most a fraction of the memory's bandwidth, that
blocks which share an SM slow each other, and that a grid beyond the resident slots drains at its
end. KV is read once per request per pass: query tokens only add packed rows (query tokens x group),
costed in tile steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from perfmodel.attention_table import Array, DecodeTable
from perfmodel.kv_tiles import kv_tile_tokens, tile_waste
from perfmodel.units import US

Numeric: TypeAlias = ArrayLike

SMOOTH_MAX = 4.0  # exponent of the norm that stands for max(); 2 equal terms cost 1.19x, not 2x
MOST_HALF_WAVES = 8  # of blocks that KV is cut into
RAMP = 0.1  # a wave step is spread over the next tenth of a wave: blocks drift out of lockstep


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionForm:
    """How a kernel library cuts attention into blocks on one GPU.

    `row_tiles` are the packed query rows that one block pads to and `row_tile_factor` how much
    slower than the smallest tile it streams KV. A kernel splits KV over blocks when the group has
    at least `split_min_group` heads and the units fill less than `split_occupancy` of the slots;
    with `even_cuts` every unit into the whole number of ranges that takes least, at `merge_row_ns`
    for every row that is merged afterwards. With `shared_bytes` a block
    computes whole tiles of KV, as many tokens as that share of shared memory holds.
    """

    sm_count: int
    blocks_per_sm: int
    split_min_group: int
    split_occupancy: float
    split_min_tokens: int
    regroup_latency_us: float  # a copy of the output, for groups over more than one KV head
    row_tiles: Array
    row_tile_factor: Array
    tensor_core_efficiency: float
    even_cuts: bool = False
    merge_row_ns: float = 0.0  # of one query token and query head
    shared_bytes: float = 0.0  # of one block; 0: the size of its tiles of KV is not known

    def base_seconds(
        self,
        table: DecodeTable,
        units: Array,
        tokens: Array,
        *,
        group: float,
        packed_rows: float,
        peak_flops: float,
        hbm_bandwidth: float,
        kv_bytes_per_element: float = 2.0,
    ) -> Array:
        """The physical form without its residual, for broadcastable units and tokens. [s]

        Calibration divides measurements by it; `seconds` multiplies the residual back.
        """
        rates = (peak_flops, hbm_bandwidth, kv_bytes_per_element)
        rows = (group, packed_rows)
        if self.even_cuts:
            cuts = self._even_cuts(units, tokens)
            ways = [self._cut_seconds(table, units, tokens, c * units, rows, rates) for c in cuts]
            return np.asarray(np.minimum.reduce(ways))
        slots = float(self.sm_count * self.blocks_per_sm)
        splits = (group >= self.split_min_group) & (units < self.split_occupancy * slots)
        room = np.maximum(units, units * tokens / self.split_min_tokens)
        blocks = np.where(splits, np.minimum(slots, room), units)
        return self._cut_seconds(table, units, tokens, blocks, rows, rates)

    def _even_cuts(self, units: Array, tokens: Array) -> list[Array]:
        """Into how many ranges a runtime may cut every unit: none, or what fills half waves of
        blocks. The one that takes least is meant."""
        most = np.maximum(np.floor(tokens / self.split_min_tokens), 1.0)
        halves = [np.floor(n * self.sm_count / units) for n in range(1, MOST_HALF_WAVES + 1)]
        return [np.ones(()), *(np.maximum(np.minimum(cut, most), 1.0) for cut in halves)]

    def _cut_seconds(
        self,
        table: DecodeTable,
        units: Array,
        tokens: Array,
        blocks: Array,
        rows: tuple[float, float],
        rates: tuple[float, float, float],
    ) -> Array:
        """The form for KV cut so that there are `blocks`. [s]

        `rows` are those of one query token, and the packed rows; `rates` the peak FLOP/s, the
        bandwidth and the bytes of an element.
        """
        (group, packed_rows), (peak_flops, hbm_bandwidth, element_bytes) = rows, rates
        slots = float(self.sm_count * self.blocks_per_sm)
        # Block time in units of one block's bytes over the datasheet's bandwidth.
        alone = 1.0 / table.block_bandwidth_fraction
        # A part-filled tile takes a block as long as a full one, but no bandwidth from the others.
        waste = self._tile_waste(table.head_dim, packed_rows, tokens, blocks / units)

        def one_wave(count: Array) -> Array:
            paired = 1.0 + table.pair_slowdown * _ramp(count / self.sm_count - 1.0)
            return smooth_max(alone * paired * waste, count / table.stream_efficiency)

        together = one_wave(blocks)
        if self.even_cuts:
            # Blocks of equal length: `drain_blocks` says how nearly their waves keep step.
            waves_full = np.floor(blocks / slots)
            rest = blocks - waves_full * slots
            last = np.where(rest > 0, one_wave(np.maximum(rest, 1.0)), 0.0)
            in_step = waves_full * one_wave(np.full_like(blocks, slots)) + last
            drain = table.drain_blocks * np.maximum(in_step - together, 0.0)
        else:
            drain = table.drain_blocks * alone * _ramp(blocks / slots - 1.0)
        token_bytes = 2.0 * table.head_dim * element_bytes
        share_s = units * tokens / blocks * token_bytes / hbm_bandwidth
        # One query token's rows are in the residual already: only what exceeds them counts.
        tile = self._tile_factor(packed_rows) / self._tile_factor(group)
        waves = table.wave_overhead_us * US * np.maximum(blocks / slots - 1.0, 0.0)
        flops = 4.0 * table.head_dim * packed_rows * units * tokens
        compute = flops / (peak_flops * self.tensor_core_efficiency)
        body = smooth_max(share_s * (together + drain) * tile, waves, compute)
        merged = packed_rows if self.tile_of(packed_rows) > self.tile_of(group) else group
        merge_us = table.split_latency_us + self.merge_row_ns * 1e-3 * merged * units
        return np.asarray((table.kernel_latency_us + merge_us * (blocks > units)) * US + body)

    def padded_rows(self, rows: Numeric) -> Array:
        """Packed rows rounded up to a tile, or to whole tiles of the largest size."""
        rows, largest = np.asarray(rows, float), self.row_tiles[-1]
        index = np.minimum(np.searchsorted(self.row_tiles, rows), len(self.row_tiles) - 1)
        many = np.ceil(rows / largest) * largest
        return np.asarray(np.where(rows <= largest, self.row_tiles[index], many))

    def tile_of(self, rows: float) -> int:
        """Index of the tile that these packed rows take; the last one beyond its size."""
        return min(int(np.searchsorted(self.row_tiles, rows)), len(self.row_tiles) - 1)

    @property
    def counts_new_tokens(self) -> bool:
        """Whether KV tokens are meant with those of the queries themselves, as the cache was timed;
        one token more may open a tile."""
        return bool(self.shared_bytes)

    def kv_tiles(self, head_dim: int) -> tuple[int, ...]:
        """Tokens of a block's tile of KV, per row tile; none where they are not known."""
        if not self.shared_bytes:
            return ()
        return tuple(
            kv_tile_tokens(head_dim=head_dim, tile_rows=int(rows), shared_bytes=self.shared_bytes)
            for rows in self.row_tiles
        )

    def _tile_waste(self, head_dim: int, rows: float, tokens: Array, cuts: Array) -> Array:
        tiles = self.kv_tiles(head_dim)
        if not tiles:
            return np.ones(())
        return tile_waste(tokens, cuts, tile_tokens=tiles[self.tile_of(rows)])

    def _tile_factor(self, rows: float) -> float:
        return float(self.row_tile_factor[self.tile_of(rows)])


def smooth_max(*terms: Array | float) -> Array:
    """The p-norm of positive terms, scaled by the largest so that it cannot overflow."""
    top = terms[0]
    for term in terms[1:]:
        top = np.maximum(top, term)
    total = sum((np.asarray(t) / top) ** SMOOTH_MAX for t in terms)
    return np.asarray(top * total ** (1.0 / SMOOTH_MAX))


def _ramp(excess: Array) -> Array:
    return np.clip(excess / RAMP, 0.0, 1.0)
