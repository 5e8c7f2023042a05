"""`AttentionCurve`: the time of attention in one layer on one rank, from fitted tables.

Its two subclasses model decode, verify and draft attention over a cache for two kinds of kernels:
`attention_library.LibraryAttention` and `attention_scheduled.ScheduledAttention`. Prefill takes the
smooth maximum of the times for its FLOPs, at a measured share of the peak, and for its bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Bools, Floats
from perfmodel.errors import ConfigError
from perfmodel.kernels.interpolate import bilinear, locate, log_weights
from perfmodel.units import US

SMOOTH_MAX = 4.0  # exponent of the norm used as max(); two equal terms give 1.19 times one


@dataclass(frozen=True, eq=False, kw_only=True)
class PrefillTable:
    """Fitted compute efficiency of causal prefill attention for one head dimension."""

    head_dim: int
    kernel_latency_us: float
    memory_efficiency: float
    group_knots: Floats = field(repr=False)
    unit_knots: Floats = field(repr=False)  # batch x query heads per rank
    token_knots: Floats = field(repr=False)  # new tokens per sequence
    efficiency: Floats = field(repr=False)  # (groups, units, tokens), fraction of peak FLOP/s

    def __post_init__(self) -> None:
        check_shape(
            "efficiency", self.efficiency, self.group_knots, self.unit_knots, self.token_knots
        )


class Heads(NamedTuple):
    """Heads on one rank."""

    query: int
    kv: int
    dim: int

    @property
    def group(self) -> float:
        """Query heads per KV head."""
        return self.query / self.kv


class Rates(NamedTuple):
    """Datasheet peaks [FLOP/s, bytes/s], and bytes per element of the KV cache."""

    peak_flops: float
    hbm_bandwidth: float
    kv_bytes: float


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionCurve(ABC):
    """Attention times of one kernel library on one GPU."""

    source: str
    sm_count: int
    prefill: tuple[PrefillTable, ...] = field(repr=False)
    origin: Mapping[str, str] = field(default_factory=dict)

    # Whether `kv_tokens` in `seconds` includes the tokens of the queries, as in the measurements.
    counts_new_tokens = False
    # Standard error of ln(FLOP/s) of passes with several query tokens, where these are assumed.
    tensor_core_error: float = 0.0

    def seconds(
        self,
        *,
        batch: ArrayLike,
        kv_tokens: ArrayLike,
        query_tokens: ArrayLike = 1,
        query_heads: int,
        kv_heads: int,
        head_dim: int,
        peak_flops: float,
        hbm_bandwidth: float,
        kv_bytes_per_element: float = 2.0,
    ) -> Floats:
        """Seconds of decode, verify or draft attention over a cache, for one layer on one rank.

        Parameters
        ----------
        batch, kv_tokens, query_tokens : float or array, mutually broadcastable
            Sequences; tokens read per sequence; new tokens per sequence. [1]
        query_heads, kv_heads, head_dim : int
            Heads on this rank and their width.
        peak_flops, hbm_bandwidth : float
            Datasheet peaks. [FLOP/s, bytes/s]
        kv_bytes_per_element : float
            2 for bf16. [bytes]

        Returns
        -------
        array of the broadcast shape [s]
            Outside the measured range, the utilisation at its edge is used. `LibraryAttention` is
            non-decreasing in batch, kv_tokens and query_tokens; `ScheduledAttention` is not.
        """
        arrays = [np.asarray(x, float) for x in (batch, kv_tokens, query_tokens)]
        rates = Rates(peak_flops, hbm_bandwidth, kv_bytes_per_element)
        return self._seconds(Heads(query_heads, kv_heads, head_dim), rates, *arrays)

    def in_range(
        self,
        *,
        batch: ArrayLike,
        kv_tokens: ArrayLike,
        query_tokens: ArrayLike = 1,
        query_heads: int,
        kv_heads: int,
        head_dim: int,
    ) -> Bools:
        """Whether each point is inside the measured range; arguments and shape as in `seconds`."""
        arrays = [np.asarray(x, float) for x in (batch, kv_tokens, query_tokens)]
        return self._in_range(Heads(query_heads, kv_heads, head_dim), *arrays)

    def has_tall_tiles(self, rows: Floats) -> Bools:
        """Whether passes of so many query rows per KV head keep the tensor cores busy."""
        return np.zeros(rows.shape, bool)

    def without_steps(self) -> AttentionCurve:
        """The same curve for a GPU that was not measured."""
        return self

    @abstractmethod
    def _seconds(
        self, heads: Heads, rates: Rates, batch: Floats, tokens: Floats, queries: Floats
    ) -> Floats: ...

    @abstractmethod
    def _in_range(self, heads: Heads, batch: Floats, tokens: Floats, queries: Floats) -> Bools: ...

    def prefill_seconds(
        self,
        *,
        batch: ArrayLike,
        new_tokens: ArrayLike,
        cached_tokens: ArrayLike = 0,
        query_heads: int,
        kv_heads: int,
        head_dim: int,
        peak_flops: float,
        hbm_bandwidth: float,
    ) -> Floats:
        """Seconds of causal attention of `new_tokens` over themselves and `cached_tokens`.

        One layer on one rank; `batch`, `new_tokens` and `cached_tokens` broadcast against each
        other, and the other arguments are as in `seconds`. The FLOPs are 4 batch query_heads
        head_dim (new cached + new^2 / 2). Efficiencies were measured without cached tokens; with
        them, the efficiency of a prompt with equal FLOPs is used.
        """
        batch, new = np.asarray(batch, float), np.asarray(new_tokens, float)
        cached, table = np.asarray(cached_tokens, float), nearest(self.prefill, head_dim)
        # The length of a prompt without cached tokens that has as many query-key pairs.
        square = np.sqrt(new**2 + 2.0 * new * cached)
        flops = 2.0 * batch * query_heads * head_dim * square**2
        size = 4.0 * batch * head_dim * (query_heads * new + kv_heads * (new + cached))
        slowness = _slowness(table, query_heads / kv_heads)
        u, wu, _ = locate(batch * query_heads, table.unit_knots)
        k, wk, _ = locate(square, table.token_knots)
        efficiency = np.exp(-bilinear(slowness, u, wu, k, wk))
        compute = flops / (peak_flops * efficiency)
        memory = size / (hbm_bandwidth * table.memory_efficiency)
        return np.asarray(table.kernel_latency_us * US + smooth_max(compute, memory))


@lru_cache(maxsize=256)
def _slowness(table: PrefillTable, group: float) -> Floats:
    """-ln(efficiency) over (units, tokens), raised so that time is non-decreasing on each axis."""
    weights = log_weights(np.array([group]), table.group_knots)[0]
    slow = np.tensordot(weights, -np.log(table.efficiency), axes=1)
    work = np.log(table.unit_knots)[:, None] + 2.0 * np.log(table.token_knots)
    for axis in (0, 1):
        slow = np.maximum.accumulate(slow + work, axis=axis) - work
    return np.asarray(slow)


def check_shape(name: str, values: Floats, *knots: Floats) -> None:
    """Raise a `ConfigError` if the shape of a table does not match its knots."""
    shape = tuple(k.size for k in knots)
    if values.shape != shape:
        raise ConfigError(f"{name} has shape {values.shape}; its knots need {shape}")


class _OfHeadDim(Protocol):
    @property
    def head_dim(self) -> int: ...


_AnyTable = TypeVar("_AnyTable", bound=_OfHeadDim)


def nearest(tables: tuple[_AnyTable, ...], head_dim: int) -> _AnyTable:
    """The table whose head dimension is nearest in ratio."""
    return min(tables, key=lambda t: abs(float(np.log(t.head_dim / head_dim))))


def smooth_max(*terms: Floats | float) -> Floats:
    """The p-norm of positive terms, scaled by the largest to avoid overflow."""
    top = terms[0]
    for term in terms[1:]:
        top = np.maximum(top, term)
    total = sum((np.asarray(t) / top) ** SMOOTH_MAX for t in terms)
    return np.asarray(top * total ** (1.0 / SMOOTH_MAX))
