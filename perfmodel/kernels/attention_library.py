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

from perfmodel.kernels.attention_tables import Array, DecodeTable
from perfmodel.units import US

Numeric: TypeAlias = ArrayLike

SMOOTH_MAX = 4.0  # exponent of the norm that stands for max(); 2 equal terms cost 1.19x, not 2x
RAMP = 0.1  # a wave step is spread over the next tenth of a wave: blocks drift out of lockstep


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionForm:
    """How a kernel library cuts attention into blocks on one GPU.

    `row_tiles` are the packed query rows that one block pads to and `row_tile_factor` how much
    slower than the smallest tile it streams KV. A kernel splits KV over blocks when the group has
    at least `split_min_group` heads and the units fill less than `split_occupancy` of the slots.
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
        slots = float(self.sm_count * self.blocks_per_sm)
        splits = (group >= self.split_min_group) & (units < self.split_occupancy * slots)
        room = np.maximum(units, units * tokens / self.split_min_tokens)
        blocks = np.where(splits, np.minimum(slots, room), units)
        # Block time in units of one block's bytes over the datasheet's bandwidth.
        alone = 1.0 / table.block_bandwidth_fraction
        paired = 1.0 + table.pair_slowdown * _ramp(blocks / self.sm_count - 1.0)
        together = smooth_max(alone * paired, blocks / table.stream_efficiency)
        drain = table.drain_blocks * alone * _ramp(blocks / slots - 1.0)
        token_bytes = 2.0 * table.head_dim * kv_bytes_per_element
        share_s = units * tokens / blocks * token_bytes / hbm_bandwidth
        # One query token's rows are in the residual already: only what exceeds them counts.
        tile = self._tile_factor(packed_rows) / self._tile_factor(group)
        waves = table.wave_overhead_us * US * np.maximum(blocks / slots - 1.0, 0.0)
        flops = 4.0 * table.head_dim * packed_rows * units * tokens
        compute = flops / (peak_flops * self.tensor_core_efficiency)
        body = smooth_max(share_s * (together + drain) * tile, waves, compute)
        is_split = splits & (blocks > units)
        return np.asarray((table.kernel_latency_us + table.split_latency_us * is_split) * US + body)

    def padded_rows(self, rows: Numeric) -> Array:
        """Packed rows rounded up to a tile, or to whole tiles of the largest size."""
        rows, largest = np.asarray(rows, float), self.row_tiles[-1]
        index = np.minimum(np.searchsorted(self.row_tiles, rows), len(self.row_tiles) - 1)
        many = np.ceil(rows / largest) * largest
        return np.asarray(np.where(rows <= largest, self.row_tiles[index], many))

    def tile_of(self, rows: float) -> int:
        """Index of the tile that these packed rows take; the last one beyond its size."""
        return min(int(np.searchsorted(self.row_tiles, rows)), len(self.row_tiles) - 1)

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
