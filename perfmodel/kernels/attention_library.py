"""`LibraryAttention`: decode, verify and draft attention by library kernels (flash-attn, vLLM).

The time is a physical form times a measured residual over (group size, batch x KV heads, KV
tokens). The unit of work is one KV head of one sequence, and the form is:

    kernel latency + split latency + smooth max(streaming, waves of blocks, tensor cores)

For streaming, one thread block reads at most a fraction of the memory bandwidth, blocks that share
an SM slow each other down, and a grid larger than the resident slots drains at its end. KV is read
once per sequence and pass: more query tokens only add packed rows (query tokens x group), in tiles.
Where blocks of the largest tile were measured, their tensor-core work takes whole waves, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Bools, Floats
from perfmodel.errors import ConfigError
from perfmodel.kernels.attention import (
    AttentionCurve,
    Heads,
    Rates,
    check_shape,
    nearest,
    smooth_max,
)
from perfmodel.kernels.attention_tail import UNCERTAIN_WAVES
from perfmodel.kernels.interpolate import bilinear, locate, log_weights
from perfmodel.units import US

WAVE_RAMP = 0.1  # share of a wave over which a step is smoothed, as blocks are not in lockstep
EFFICIENCY_DIM = 128.0  # head dimension of `TallBlocks.efficiency`
GRID_HEADS = np.unique(np.round(np.geomspace(1, 2**17, 137)))
GRID_TOKENS = np.unique(np.round(np.geomspace(1, 2**21, 85)))


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodeTable:
    """Fitted decode attention of one head dimension.

    `residual` is ln(measured / form) over (group, batch x KV heads, tokens). As fractions of the
    datasheet's HBM bandwidth, `block_bandwidth_fraction` is what one thread block reads alone and
    `stream_efficiency` what all blocks together reach.
    """

    head_dim: int
    kernel_latency_us: float
    split_latency_us: float  # of the kernel that merges the parts of a split KV
    wave_overhead_us: float  # per wave of blocks after the first
    block_bandwidth_fraction: float
    stream_efficiency: float
    pair_slowdown: float  # at 0.5, a block that shares its SM takes 1.5 times as long
    drain_blocks: float  # block times lost at the end of a grid larger than the slots
    group_knots: Floats = field(repr=False)
    unit_knots: Floats = field(repr=False)  # batch x KV heads
    token_knots: Floats = field(repr=False)
    residual: Floats = field(repr=False)  # (groups, units, tokens)
    # KV heads on the rank; pages interleave them, which fragments reads.
    kv_head_knots: Floats = field(repr=False)
    kv_head_residual: Floats = field(repr=False)  # ln(time above latency / mean over head counts)
    max_unit_tokens: float  # largest measured batch x KV heads x tokens

    def __post_init__(self) -> None:
        check_shape("residual", self.residual, self.group_knots, self.unit_knots, self.token_knots)
        check_shape("kv_head_residual", self.kv_head_residual, self.kv_head_knots)

    def residual_at(self, group: float, batch_heads: Floats, tokens: Floats) -> Floats:
        """Residual of one group size on a (heads, tokens) grid, constant outside the knots."""
        by_group = log_weights(np.array([group]), self.group_knots) @ self.residual.reshape(
            len(self.group_knots), -1
        )
        plane = by_group.reshape(len(self.unit_knots), len(self.token_knots))
        rows = log_weights(batch_heads, self.unit_knots)
        result: Floats = rows @ plane @ log_weights(tokens, self.token_knots).T
        return result

    def with_kv_heads(self, seconds: Floats, kv_heads: int) -> Floats:
        """Convert times at the mean head count into times at `kv_heads`."""
        log_knots = np.log(self.kv_head_knots)
        factor = np.exp(np.interp(np.log(kv_heads), log_knots, self.kv_head_residual))
        above = np.maximum(seconds - self.kernel_latency_us * US, 0.0)
        return np.asarray(seconds + above * (factor - 1.0))

    @cached_property
    def grid_heads(self) -> Floats:
        """Values of batch x KV heads at which times are evaluated, including all measured ones."""
        return np.union1d(GRID_HEADS, self.unit_knots)


@dataclass(frozen=True, eq=False, kw_only=True)
class TallBlocks:
    """Tensor-core work of blocks of the largest row tile, where they were measured.

    `efficiency` is the share of the peak FLOP/s that full waves reach at a head dimension of 128.
    The softmax of a row takes as long as the products of `softmax_dims` dimensions, so d dimensions
    reach d / (d + softmax_dims) of the rate without it. A block that shares its multiprocessor
    takes 1 + `pair_slowdown` times as long as one alone.
    """

    blocks_per_sm: int
    efficiency: float
    softmax_dims: float
    pair_slowdown: float
    smoothed: bool = False  # on a GPU without measured kernels, where a wave begins is uncertain

    def rate(self, head_dim: float) -> float:
        """Share of the peak FLOP/s that full waves reach."""
        width = (EFFICIENCY_DIM + self.softmax_dims) / EFFICIENCY_DIM
        return self.efficiency * width * head_dim / (head_dim + self.softmax_dims)

    def waste(self, units: Floats, tokens: Floats, *, sm_count: int, least_tokens: int) -> Floats:
        """Time of whole waves of blocks over that of their work in full waves, at least 1.

        There is one block per unit of work (tile of rows, KV head and sequence), or as many as fit
        in one wave, each with at least `least_tokens` of KV.
        """
        slots, paired = float(self.blocks_per_sm * sm_count), 1.0 + self.pair_slowdown
        most = np.maximum(np.floor(tokens / least_tokens), 1.0)
        logs = []
        for shift in UNCERTAIN_WAVES if self.smoothed else np.zeros(1):
            at = units * np.exp(shift)
            blocks = at * np.clip(np.floor(slots / at), 1.0, most)
            rest = blocks % slots
            last = np.where(rest > 0, 1.0 + self.pair_slowdown * _ramp(rest / sm_count - 1.0), 0.0)
            time = np.floor(blocks / slots) * paired + last
            logs.append(np.log(time * slots / (blocks * paired)))
        return np.asarray(np.exp(sum(logs) / len(logs)))


@dataclass(frozen=True, eq=False, kw_only=True)
class LibraryAttention(AttentionCurve):
    """Attention of a kernel library with its rules for splitting KV.

    `row_tiles` are the numbers of packed query rows to which a block pads, and `row_tile_factor` is
    the time of each relative to the smallest. KV is split over several blocks if a group has at
    least `split_min_group` heads and batch x KV heads fill less than `split_occupancy` of the
    slots.

    The residual was fitted to kernels that split by `fitted_split_min_group` and
    `fitted_split_occupancy` (0: by the same rule). A grid that this library may split and those did
    not takes the shorter of two times: unsplit, as measured, or split, with the residual of the
    nearest grid that those kernels split.
    """

    blocks_per_sm: int
    split_min_group: int
    split_occupancy: float
    split_min_tokens: int
    regroup_latency_us: float  # copy of the output for groups with several KV heads
    row_tiles: Floats
    row_tile_factor: Floats
    tensor_core_efficiency: float
    decode: tuple[DecodeTable, ...] = field(repr=False)
    fitted_split_min_group: int = 0
    fitted_split_occupancy: float = 0.0
    tall: TallBlocks | None = None  # instead of `tensor_core_efficiency` for the largest tile

    def __post_init__(self) -> None:
        check_shape("row_tile_factor", self.row_tile_factor, self.row_tiles)
        if np.any(np.diff(self.row_tile_factor) < 0):
            raise ConfigError("row_tile_factor must be non-decreasing")

    def _seconds(
        self, heads: Heads, rates: Rates, batch: Floats, tokens: Floats, queries: Floats
    ) -> Floats:
        """Interpolate in logarithms on a fixed, monotone (batch x KV heads, tokens) grid."""
        tiles = self.padded_rows(queries * heads.group)
        u, wu, beyond_u = locate(batch * heads.kv, nearest(self.decode, heads.dim).grid_heads)
        k, wk, beyond_k = locate(tokens, GRID_TOKENS)
        if tiles.ndim == 0:
            log_s = bilinear(_log_seconds(self, heads, float(tiles), rates), u, wu, k, wk)
        else:
            rows, which = np.unique(tiles, return_inverse=True)
            planes = np.stack([_log_seconds(self, heads, float(row), rates) for row in rows])
            log_s = bilinear(planes, u, wu, k, wk, which.reshape(tiles.shape))
        seconds = np.exp(log_s + beyond_u + beyond_k)
        if heads.group > 1 and heads.kv > 1:
            seconds = seconds + self.regroup_latency_us * US * (batch > 1)
        return np.asarray(seconds)

    def _in_range(self, heads: Heads, batch: Floats, tokens: Floats, queries: Floats) -> Bools:
        """Several query tokens are inside the range only if the row factors were measured."""
        batch_heads, table = batch * heads.kv, nearest(self.decode, heads.dim)
        rows_ok = (queries <= 1) | (self.origin.get("row_tile_factor") == "measured")
        heads_ok = table.head_dim == heads.dim and heads.group <= table.group_knots[-1]
        tokens_ok = (tokens >= table.token_knots[0]) & (tokens <= table.token_knots[-1])
        size_ok = (batch_heads <= table.unit_knots[-1]) & (
            batch_heads * tokens <= table.max_unit_tokens
        )
        return np.asarray(tokens_ok & size_ok & rows_ok & heads_ok)

    def base_seconds(
        self,
        table: DecodeTable,
        batch_heads: Floats,
        tokens: Floats,
        *,
        group: float,
        packed_rows: float,
        peak_flops: float,
        hbm_bandwidth: float,
        kv_bytes_per_element: float = 2.0,
        splits: Bools | None = None,
    ) -> Floats:
        """The physical form without its residual, for broadcastable heads and tokens. [s]

        `splits` states the grids that are split, by default those that this library may split.
        """
        slots = self.slots
        if splits is None:
            splits = self.may_split(group, batch_heads)
        room = np.maximum(batch_heads, batch_heads * tokens / self.split_min_tokens)
        blocks = np.where(splits, np.minimum(slots, room), batch_heads)
        # Block time in units of one block's bytes over the datasheet's bandwidth.
        alone = 1.0 / table.block_bandwidth_fraction
        paired = 1.0 + table.pair_slowdown * _ramp(blocks / self.sm_count - 1.0)
        together = smooth_max(alone * paired, blocks / table.stream_efficiency)
        drain = table.drain_blocks * alone * _ramp(blocks / slots - 1.0)
        token_bytes = 2.0 * table.head_dim * kv_bytes_per_element
        share_s = batch_heads * tokens / blocks * token_bytes / hbm_bandwidth
        # The residual already includes the rows of one query token.
        tile = self._tile_factor(packed_rows) / self._tile_factor(group)
        waves = table.wave_overhead_us * US * np.maximum(blocks / slots - 1.0, 0.0)
        flops = 4.0 * table.head_dim * packed_rows * batch_heads * tokens
        compute = flops / peak_flops * self._slowness(table, batch_heads, tokens, packed_rows)
        body = smooth_max(share_s * (together + drain) * tile, waves, compute)
        is_split = splits & (blocks > batch_heads)
        return np.asarray((table.kernel_latency_us + table.split_latency_us * is_split) * US + body)

    def _slowness(
        self, table: DecodeTable, batch_heads: Floats, tokens: Floats, packed_rows: float
    ) -> Floats:
        """Time of the tensor cores over that at the peak FLOP/s."""
        largest = self.row_tiles[-1]
        if self.tall is None or packed_rows < largest:
            return np.asarray(1.0 / self.tensor_core_efficiency)
        units, least = batch_heads * np.ceil(packed_rows / largest), self.split_min_tokens
        waste = self.tall.waste(units, tokens, sm_count=self.sm_count, least_tokens=least)
        return waste / self.tall.rate(table.head_dim)

    def without_steps(self) -> LibraryAttention:
        """The same curve for a GPU that was not measured: waves of tall blocks begin gradually."""
        return replace(self, tall=self.tall and replace(self.tall, smoothed=True))

    @property
    def slots(self) -> float:
        """Blocks that run at once."""
        return float(self.sm_count * self.blocks_per_sm)

    def may_split(self, group: float, batch_heads: Floats) -> Bools:
        """Which grids this library splits over several blocks per unit."""
        few = batch_heads < self.split_occupancy * self.slots
        return np.asarray((group >= self.split_min_group) & few)

    def fitted_split(self, group: float, batch_heads: Floats) -> Bools:
        """Which grids the kernels of the residual split."""
        least = self.fitted_split_min_group or self.split_min_group
        return np.asarray((group >= least) & (batch_heads < self.most_fitted_heads))

    @property
    def most_fitted_heads(self) -> float:
        """Units of the largest grid that the kernels of the residual split."""
        return (self.fitted_split_occupancy or self.split_occupancy) * self.slots

    def split_residual(self, table: DecodeTable, group: float, batch_heads: Floats) -> Floats:
        """Residual of the nearest grids that the kernels of the residual split."""
        knots = table.unit_knots
        most = max(knots[knots < self.most_fitted_heads], default=knots[0])
        of_group = max(group, float(self.fitted_split_min_group))
        return table.residual_at(of_group, np.minimum(batch_heads, most), GRID_TOKENS)

    def padded_rows(self, rows: ArrayLike) -> Floats:
        """Packed rows, rounded up to a tile or to a multiple of the largest tile."""
        rows, largest = np.asarray(rows, float), self.row_tiles[-1]
        index = np.minimum(np.searchsorted(self.row_tiles, rows), len(self.row_tiles) - 1)
        many = np.ceil(rows / largest) * largest
        return np.asarray(np.where(rows <= largest, self.row_tiles[index], many))

    def _tile_factor(self, rows: float) -> float:
        index = min(int(np.searchsorted(self.row_tiles, rows)), len(self.row_tiles) - 1)
        return float(self.row_tile_factor[index])


@lru_cache(maxsize=512)
def _log_seconds(curve: LibraryAttention, heads: Heads, packed_rows: float, rates: Rates) -> Floats:
    """ln(seconds) on the (heads, tokens) grid, non-decreasing along both axes."""
    table = nearest(curve.decode, heads.dim)
    # A head dimension without a table uses the nearest one: the same blocks with its bytes.
    scale, batch_heads = heads.dim / table.head_dim, table.grid_heads
    form = partial(
        curve.base_seconds,
        table,
        batch_heads[:, None],
        GRID_TOKENS[None, :],
        group=heads.group,
        packed_rows=packed_rows,
        peak_flops=rates.peak_flops / scale,
        hbm_bandwidth=rates.hbm_bandwidth / scale,
        kv_bytes_per_element=rates.kv_bytes,
    )
    fitted = curve.fitted_split(heads.group, batch_heads)[:, None]
    mean = form(splits=fitted) * np.exp(table.residual_at(heads.group, batch_heads, GRID_TOKENS))
    more = curve.may_split(heads.group, batch_heads)[:, None] & ~fitted
    if more.any():
        residual = curve.split_residual(table, heads.group, batch_heads)
        split = form(splits=more) * np.exp(residual)
        mean = np.where(more, np.minimum(mean, split), mean)
    plane = np.log(table.with_kv_heads(mean, heads.kv))
    for axis in (0, 1):
        plane = np.maximum.accumulate(plane, axis=axis)
    return np.asarray(plane)


def _ramp(excess: Floats) -> Floats:
    return np.clip(excess / WAVE_RAMP, 0.0, 1.0)
