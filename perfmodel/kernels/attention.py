"""`AttentionCurve`: seconds that attention takes in one layer on one rank, from fitted tables.

Decode, verify and draft share one physical form (`attention_form`), times a measured residual over
(group size, work units, KV length).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfmodel.errors import ConfigError
from perfmodel.kernels.attention_library import AttentionForm, smooth_max
from perfmodel.kernels.attention_scheduled import BlockTable, block_seconds
from perfmodel.kernels.attention_tables import (
    Array,
    DecodeTable,
    PrefillTable,
    build,
    check_shape,
    nearest,
    prefill_slowness,
)
from perfmodel.kernels.interpolate import bilinear, locate
from perfmodel.units import US

Numeric: TypeAlias = ArrayLike

GRID_UNITS = np.unique(np.round(np.geomspace(1, 2**17, 137)))
GRID_TOKENS = np.unique(np.round(np.geomspace(1, 2**21, 85)))


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionCurve(AttentionForm):
    """Attention times of one kernel library on one GPU.

    With `blocks`, tables of a runtime that schedules its own blocks, those stand for `decode`.
    """

    source: str
    decode: tuple[DecodeTable, ...]
    prefill: tuple[PrefillTable, ...]
    blocks: tuple[BlockTable, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> AttentionCurve:
        """The curve that a catalog file (parsed TOML) describes.

        Raises
        ------
        ConfigError
            If a key is unknown or missing, knots do not rise, or a shape does not match its knots.
        """
        body = dict(table)
        body.pop("residuals", None)  # the fit's own error report: for people
        decode = tuple(build(DecodeTable, t, "decode") for t in body.pop("decode", ()))
        prefill = tuple(build(PrefillTable, t, "prefill") for t in body.pop("prefill", ()))
        blocks = tuple(build(BlockTable, t, "blocks") for t in body.pop("blocks", ()))
        if not decode or not prefill:
            raise ConfigError(
                "attention table: needs [[decode]] and [[prefill]] per head dimension"
            )
        for d in decode:
            shape = (len(d.group_knots), len(d.unit_knots), len(d.token_knots))
            check_shape("decode.residual", d.residual, shape)
            check_shape("decode.kv_head_residual", d.kv_head_residual, d.kv_head_knots.shape)
        for p in prefill:
            shape = (len(p.group_knots), len(p.unit_knots), len(p.token_knots))
            check_shape("prefill.efficiency", p.efficiency, shape)
        for b in blocks:
            shape = (len(b.group_knots), len(b.block_knots), len(b.token_knots))
            check_shape("blocks.residual", b.residual, shape)
        tables = {"decode": decode, "prefill": prefill, "blocks": blocks}
        curve: AttentionCurve = build(cls, {**body, **tables}, "attention")
        check_shape("row_tile_factor", curve.row_tile_factor, curve.row_tiles.shape)
        if np.any(np.diff(curve.row_tile_factor) < 0):
            raise ConfigError("attention table: row_tile_factor must not fall")
        return curve

    def seconds(
        self,
        *,
        batch: Numeric,
        kv_tokens: Numeric,
        query_tokens: Numeric = 1,
        query_heads: int,
        kv_heads: int,
        head_dim: int,
        peak_flops: float,
        hbm_bandwidth: float,
        kv_bytes_per_element: float = 2.0,
    ) -> Array:
        """Seconds of decode, verify or draft attention over a cache, for one layer on one rank.

        Parameters
        ----------
        batch, kv_tokens, query_tokens : float or array, mutually broadcastable
            Sequences; cached tokens read per sequence; new tokens per sequence.
        query_heads, kv_heads, head_dim : int
            Heads on this rank and their width.
        peak_flops, hbm_bandwidth : float
            The datasheet's. [FLOP/s, bytes/s]
        kv_bytes_per_element : float
            2 for bf16. [bytes]

        Returns
        -------
        array of the broadcast shape [s]
            Never falls as batch, kv_tokens or query_tokens grow. Outside the measured range the
            utilisation at its edge is held.

        Notes
        -----
        Times are evaluated on a fixed (units, tokens) grid, made monotone there by a running
        maximum, and interpolated in logarithms.
        """
        batch, kv_tokens = np.asarray(batch, float), np.asarray(kv_tokens, float)
        group = query_heads / kv_heads
        if self.blocks:
            return block_seconds(
                self.blocks, sm_count=self.sm_count, batch=batch, kv_tokens=kv_tokens,
                query_tokens=np.asarray(query_tokens, float), query_heads=query_heads,
                kv_heads=kv_heads, head_dim=head_dim, hbm_bandwidth=hbm_bandwidth,
                bytes_per_element=kv_bytes_per_element,
            )  # fmt: skip
        tiles = self.padded_rows(np.asarray(query_tokens, float) * group)
        shape = (query_heads, kv_heads, head_dim)
        rates = (peak_flops, hbm_bandwidth, kv_bytes_per_element)
        u, wu, beyond_u = locate(batch * kv_heads, _grid_units(self, head_dim))
        k, wk, beyond_k = locate(kv_tokens, GRID_TOKENS)
        if tiles.ndim == 0:
            log_s = bilinear(_log_seconds(self, *shape, float(tiles), *rates), u, wu, k, wk)
        else:
            rows, which = np.unique(tiles, return_inverse=True)
            planes = np.stack([_log_seconds(self, *shape, float(r), *rates) for r in rows])
            log_s = bilinear(planes, u, wu, k, wk, which.reshape(tiles.shape))
        seconds = np.exp(log_s + beyond_u + beyond_k)
        if group > 1 and kv_heads > 1:
            seconds = seconds + self.regroup_latency_us * US * (batch > 1)
        return np.asarray(seconds)

    @property
    def counts_new_tokens(self) -> bool:
        """Whether KV tokens are meant with those of the queries themselves, as the cache was timed;
        one token more may open a tile."""
        return bool(self.blocks)

    def in_range(
        self,
        *,
        batch: Numeric,
        kv_tokens: Numeric,
        query_tokens: Numeric = 1,
        query_heads: int,
        kv_heads: int,
        head_dim: int,
    ) -> NDArray[np.bool_]:
        """Whether a point lies inside the measurements (else it is extrapolated).

        Arguments as in `seconds`; the result has the broadcast shape. More than one query token
        counts as inside only where blocks of such rows were timed, or the row factors
        (`origin["row_tile_factor"]`).
        """
        batch, kv_tokens = np.asarray(batch, float), np.asarray(kv_tokens, float)
        units, group = batch * kv_heads, query_heads / kv_heads
        if self.blocks:
            return self._blocks_measured(
                units, kv_tokens, np.asarray(query_tokens), group, head_dim
            )
        table = nearest(self.decode, head_dim)
        measured_rows = self.origin.get("row_tile_factor") == "measured"
        rows_ok = (np.asarray(query_tokens, float) <= 1) | measured_rows
        static = table.head_dim == head_dim and group <= table.group_knots[-1]
        tokens = (kv_tokens >= table.token_knots[0]) & (kv_tokens <= table.token_knots[-1])
        inside = tokens & (units <= table.unit_knots[-1])
        return np.asarray(inside & (units * kv_tokens <= table.max_unit_tokens) & rows_ok & static)

    def _blocks_measured(
        self, units: Array, tokens: Array, rows: Array, group: float, head_dim: int
    ) -> NDArray[np.bool_]:
        """Whether blocks of these tiles of rows were timed, with as much KV."""
        alike = [t for t in self.blocks if t.head_dim == head_dim]
        if not alike or group > max(t.group_knots[-1] for t in alike):
            return np.zeros(np.broadcast_shapes(units.shape, tokens.shape, rows.shape), bool)
        most = max(t.max_unit_tokens for t in alike)
        timed = rows <= max(t.tile_rows for t in alike)
        return np.asarray((tokens >= alike[0].token_knots[0]) & (units * tokens <= most) & timed)

    def prefill_seconds(
        self,
        *,
        batch: Numeric,
        new_tokens: Numeric,
        cached_tokens: Numeric = 0,
        query_heads: int,
        kv_heads: int,
        head_dim: int,
        peak_flops: float,
        hbm_bandwidth: float,
    ) -> Array:
        """Seconds of causal attention of `new_tokens` over themselves and `cached_tokens`.

        One layer on one rank; `batch`, `new_tokens` and `cached_tokens` broadcast against each
        other, the rest is as in `seconds`. FLOPs are 4 batch query_heads head_dim (new cached +
        new^2 / 2). The efficiency was measured without cached tokens; with them it is that of the
        prompt of equal FLOPs.
        """
        batch, new = np.asarray(batch, float), np.asarray(new_tokens, float)
        cached, table = np.asarray(cached_tokens, float), nearest(self.prefill, head_dim)
        # The prompt without a cached part that has as many query-key pairs.
        square = np.sqrt(new**2 + 2.0 * new * cached)
        flops = 2.0 * batch * query_heads * head_dim * square**2
        size = 4.0 * batch * head_dim * (query_heads * new + kv_heads * (new + cached))
        slowness = prefill_slowness(table, query_heads / kv_heads)
        u, wu, _ = locate(batch * query_heads, table.unit_knots)
        k, wk, _ = locate(square, table.token_knots)
        efficiency = np.exp(-bilinear(slowness, u, wu, k, wk))
        compute = flops / (peak_flops * efficiency)
        memory = size / (hbm_bandwidth * table.memory_efficiency)
        return np.asarray(table.kernel_latency_us * US + smooth_max(compute, memory))


@lru_cache(maxsize=512)
def _log_seconds(
    curve: AttentionCurve,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    packed_rows: float,
    peak_flops: float,
    hbm_bandwidth: float,
    kv_bytes_per_element: float,
) -> Array:
    """ln(seconds) on the (units, tokens) grid, non-decreasing along both axes."""
    table, group = nearest(curve.decode, head_dim), query_heads / kv_heads
    # A head dimension without a table borrows the nearest: same blocks, bytes of its own.
    scale, units = head_dim / table.head_dim, _grid_units(curve, head_dim)
    tokens = GRID_TOKENS
    base = curve.base_seconds(
        table,
        units[:, None],
        tokens[None, :],
        group=group,
        packed_rows=packed_rows,
        peak_flops=peak_flops / scale,
        hbm_bandwidth=hbm_bandwidth / scale,
        kv_bytes_per_element=kv_bytes_per_element,
    )
    mean = base * np.exp(table.residual_at(group, units, tokens))
    plane = np.log(table.with_kv_heads(mean, kv_heads))
    for axis in (0, 1):
        plane = np.maximum.accumulate(plane, axis=axis)
    plane.flags.writeable = False
    return np.asarray(plane)


@lru_cache(maxsize=64)
def _grid_units(curve: AttentionCurve, head_dim: int) -> Array:
    """Work units that times are evaluated at: the usual ones, and every measured count."""
    return np.union1d(GRID_UNITS, nearest(curve.decode, head_dim).unit_knots)
