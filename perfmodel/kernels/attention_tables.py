"""Fitted tables of attention as a catalog file holds them, one a head dimension, and their checks.

`attention_curve` is the form that reads them; here is what was measured over knots, looked up in
logarithms and held flat outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from perfmodel.errors import ConfigError
from perfmodel.kernels.interpolate import log_weights
from perfmodel.units import US

Array: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodeTable:
    """Fitted decode attention of one head dimension.

    `residual` is ln(measured / base) over (group, unit, token) knots. Fractions are of the
    datasheet's HBM bandwidth: `block_bandwidth_fraction` what one thread block alone can read,
    `stream_efficiency` what all together reach.
    """

    head_dim: int
    kernel_latency_us: float
    split_latency_us: float  # the second kernel that joins the parts of a split KV
    wave_overhead_us: float  # of every wave of blocks after the first
    block_bandwidth_fraction: float
    stream_efficiency: float
    pair_slowdown: float  # 0.5: a block that shares its SM takes 1.5x as long
    drain_blocks: float  # block times lost at the end of a grid larger than the slots
    group_knots: Array
    unit_knots: Array
    token_knots: Array
    residual: Array  # (groups, units, tokens)
    kv_head_knots: Array  # KV heads on the rank: a page interleaves them, which breaks up reads
    kv_head_residual: Array  # ln(time above the latency / that of the mean head count)
    max_unit_tokens: float  # largest measured units x KV tokens

    def residual_at(self, group: float, units: Array, tokens: Array) -> Array:
        """Residual of one group size on a (units, tokens) grid; held flat outside the knots."""
        by_group = log_weights(np.array([group]), self.group_knots) @ self.residual.reshape(
            len(self.group_knots), -1
        )
        plane = by_group.reshape(len(self.unit_knots), len(self.token_knots))
        rows = log_weights(units, self.unit_knots)
        result: Array = rows @ plane @ log_weights(tokens, self.token_knots).T
        return result

    def with_kv_heads(self, seconds: Array, kv_heads: int) -> Array:
        """Times of the mean head count turned into those of `kv_heads`."""
        log_knots = np.log(self.kv_head_knots)
        factor = np.exp(np.interp(np.log(kv_heads), log_knots, self.kv_head_residual))
        above = np.maximum(seconds - self.kernel_latency_us * US, 0.0)
        return np.asarray(seconds + above * (factor - 1.0))


@dataclass(frozen=True, eq=False, kw_only=True)
class PrefillTable:
    """Fitted causal prefill attention of one head dimension: its compute efficiency."""

    head_dim: int
    kernel_latency_us: float
    memory_efficiency: float
    group_knots: Array
    unit_knots: Array  # batch x query heads per rank
    token_knots: Array  # new tokens per sequence
    efficiency: Array  # (groups, units, tokens), fraction of peak FLOP/s


_AnyTable = TypeVar("_AnyTable", DecodeTable, PrefillTable)


def nearest(tables: tuple[_AnyTable, ...], head_dim: int) -> _AnyTable:
    """The table of the head dimension that is nearest in ratio."""
    return min(tables, key=lambda t: abs(float(np.log(t.head_dim / head_dim))))


@lru_cache(maxsize=256)
def prefill_slowness(table: PrefillTable, group: float) -> Array:
    """-ln(efficiency) over (units, tokens), lifted so that time never falls along either axis."""
    weights = log_weights(np.array([group]), table.group_knots)[0]
    slow = np.tensordot(weights, -np.log(table.efficiency), axes=1)
    work = np.log(table.unit_knots)[:, None] + 2.0 * np.log(table.token_knots)
    for axis in (0, 1):
        slow = np.maximum.accumulate(slow + work, axis=axis) - work
    return np.asarray(slow)


def build(cls: type[Any], table: Mapping[str, Any], where: str) -> Any:
    """An instance of the dataclass `cls` from parsed TOML; `where` names it in messages.

    Raises
    ------
    ConfigError
        For an unknown or missing key, or knots that do not rise.
    """
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(cls)}
    if unknown := sorted(set(table) - set(known)):
        raise ConfigError(f"{where} table: unknown key {unknown[0]!r}. Known: {', '.join(known)}.")
    needed = {name for name, required in known.items() if required}
    if missing := sorted(needed - set(table)):
        raise ConfigError(f"{where} table: missing key {missing[0]!r}")
    values = {k: np.asarray(v, float) if isinstance(v, list) else v for k, v in table.items()}
    for name, value in values.items():
        knots = name.endswith("_knots") or name == "row_tiles"
        if knots and (value.ndim != 1 or np.any(np.diff(value) <= 0) or value[0] <= 0):
            raise ConfigError(f"{where} table: {name} must be positive and rise")
    return cls(**values)


def check_shape(name: str, value: Array, shape: tuple[int, ...]) -> None:
    """Refuse an array that does not match its knots."""
    if value.shape != shape:
        raise ConfigError(f"attention table: {name} has shape {value.shape}, its knots {shape}")
