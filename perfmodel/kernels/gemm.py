"""`GemmCurve`: the time of one dense layer, from a roofline and measured multipliers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Bools, Floats
from perfmodel.errors import ConfigError

SAME = 1e-4  # difference of logarithms of a number of rows or columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Waves:
    """Output tiles run in waves of one per SM; a partly filled wave takes as long as a full one.

    The effect is visible from `from_m` rows, in kernels that do not distribute their last wave. If
    `smoothed`, times are exact for whole tiles and linear in the rows between them: on a GPU that
    was not measured, it is not known at which rows a wave begins.
    """

    sm_count: int
    tile_rows: int
    tile_columns: int
    from_m: float
    smoothed: bool = False

    def __post_init__(self) -> None:
        if not min(self.sm_count, self.tile_rows, self.tile_columns) > 0:
            raise ConfigError(
                f"waves: sm_count, tile_rows and tile_columns must be positive: {self}"
            )

    def inflation(self, m: ArrayLike, n: ArrayLike) -> Floats:
        """Time of whole waves over the time of the work in them, at least 1; broadcasts."""
        rows, columns = np.asarray(m, dtype=np.float64), np.asarray(n, dtype=np.float64)
        row_tiles, column_tiles = rows / self.tile_rows, np.ceil(columns / self.tile_columns)
        above = np.ceil(row_tiles)
        capacity = self._capacity(above * column_tiles)
        if self.smoothed:
            before = self._capacity((above - 1.0) * column_tiles)
            capacity = before + (row_tiles - above + 1.0) * (capacity - before)
        work = rows * columns / (self.tile_rows * self.tile_columns)
        return np.where(rows >= self.from_m, capacity / work, 1.0)

    def _capacity(self, tiles: Floats) -> Floats:
        """Tiles that run in the time of so many, in whole waves."""
        return np.asarray(np.ceil(tiles / self.sm_count) * self.sm_count)


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredRatios:
    """Times of some matrices with an engine's kernels, as ratios to the times of the table.

    Other matrices take the mean of these ratios, weighted by the inverse square of the distance in
    (ln n, ln k), which is exact for matrices that were timed (Shepard 1968).
    """

    m_knots: Floats = field(repr=False)  # (M,)
    log_n: Floats = field(repr=False)  # (S,)
    log_k: Floats = field(repr=False)  # (S,)
    log_ratio: Floats = field(repr=False)  # (S, M)

    def __post_init__(self) -> None:
        shape = (self.log_n.size, self.m_knots.size)
        if self.log_ratio.shape != shape or self.log_k.size != self.log_n.size or not min(shape):
            raise ConfigError(
                f"time_over_table_per_10000 has shape {self.log_ratio.shape}; it needs one row for "
                f"each of {shape[0]} shapes and one column for each of {shape[1]} values of m"
            )
        if self.m_knots[0] <= 0 or np.any(np.diff(self.m_knots) <= 0):
            raise ConfigError("m must be a list of increasing positive numbers")
        if not np.all(np.isfinite(self.log_ratio)):
            raise ConfigError("time_over_table_per_10000 must be positive everywhere")

    def joined(self, other: MeasuredRatios) -> MeasuredRatios:
        """The matrices of both; a `ConfigError` if their row counts differ."""
        if not np.array_equal(self.m_knots, other.m_knots):
            raise ConfigError("[measured]: m must be the same in gemm and gemm-ranks files")
        return MeasuredRatios(
            m_knots=self.m_knots,
            log_n=np.concatenate([self.log_n, other.log_n]),
            log_k=np.concatenate([self.log_k, other.log_k]),
            log_ratio=np.concatenate([self.log_ratio, other.log_ratio]),
        )

    def timed(self, rows: Floats, n: int, k: int) -> Bools:
        """Whether this matrix was timed with as many rows."""
        near_n = abs(self.log_n - math.log(n)) < SAME
        matrix = np.any(near_n & (abs(self.log_k - math.log(k)) < SAME))
        return np.asarray(matrix & (rows >= self.m_knots[0]) & (rows <= self.m_knots[-1]))

    def log_ratio_of(self, n: int, k: int) -> Floats:
        """ln(time / table time) of one matrix at each of `m_knots`, shape (M,)."""
        distance = (self.log_n - np.log(n)) ** 2 + (self.log_k - np.log(k)) ** 2
        weight = 1.0 / (distance + 1e-12)
        return np.asarray(weight @ self.log_ratio / weight.sum())


@dataclass(frozen=True, eq=False, kw_only=True)
class GemmCurve:
    """Dense-layer times of one GPU: `multiplier(m, n, k) x (kernel latency + roofline)`.

    The roofline joins compute and memory time, each at a fitted efficiency, with a p-norm. The
    multiplier is the measured time over that base, on knots in m, n and k, interpolated in
    logarithms. It contains the steps of tiles, and those of waves unless `waves` models them. It is
    constant beyond the knots, where only the roofline scales. It multiplies latency and roofline
    alike: a GPU twice as fast with half the latency takes half the time.
    """

    kernel_latency_s: float
    memory_efficiency: float
    compute_efficiency: float
    overlap_exponent: float
    m_knots: Floats = field(repr=False)  # (M,) rows of the activation, tokens
    n_knots: Floats = field(repr=False)  # (N,) output columns of the weight
    k_knots: Floats = field(repr=False)  # (K,) input columns of the weight
    log_multiplier: Floats = field(repr=False)  # (M, N, K)
    source: str
    waves: Waves | None = None
    measured: MeasuredRatios | None = None

    def __post_init__(self) -> None:
        for name in ("kernel_latency_s", "memory_efficiency", "compute_efficiency"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)!r} must be positive")
        if not self.overlap_exponent >= 1:
            raise ConfigError(f"overlap_exponent={self.overlap_exponent!r} is below 1")
        for name in ("m_knots", "n_knots", "k_knots"):
            knots = getattr(self, name)
            if knots.size < 2 or knots[0] <= 0 or np.any(np.diff(knots) <= 0):
                raise ConfigError(f"{name} must be two or more increasing positive numbers")
        shape = (self.m_knots.size, self.n_knots.size, self.k_knots.size)
        if self.log_multiplier.shape != shape:
            raise ConfigError(
                f"the table has shape {self.log_multiplier.shape}; its knots need {shape}"
            )
        if not np.all(np.isfinite(self.log_multiplier)):
            raise ConfigError("every multiplier in the table must be positive")

    def seconds(
        self,
        *,
        m: ArrayLike,
        n: int,
        k: int,
        peak_flops: float,
        hbm_bandwidth: float,
        weight_bytes_per_element: float = 2.0,
    ) -> Floats:
        """Time of one `(m, k) x (k, n)` product in bf16, with its weights read from HBM.

        Raises `ConfigError` if `n` or `k` is not positive.

        Parameters
        ----------
        m : array
            Rows, which are the tokens of the pass; below the first knot (1), one row. [tokens]
        n, k : int
            Output and input columns of the weight matrix; for fused matrices n is their sum.
        peak_flops, hbm_bandwidth : float
            The GPU's datasheet peaks. [FLOP/s, bytes/s]
        weight_bytes_per_element : float
            Bytes of one stored weight; activations always take two.

        Returns
        -------
        array
            Seconds, with the shape of `m`; non-decreasing in `m`.
        """
        log_m, log_s = _curve_over_m(
            self, n, k, peak_flops, hbm_bandwidth, weight_bytes_per_element
        )
        rows = np.asarray(m, dtype=np.float64)
        last = self.m_knots[-1]
        inside = np.minimum(np.maximum(rows, self.m_knots[0]), last)
        time = np.exp(np.interp(np.log(inside), log_m, log_s))
        # Beyond the last knot the layer is compute-bound: time is proportional to the rows.
        return np.asarray(time * np.maximum(rows / last, 1.0))

    def in_range(self, *, m: ArrayLike, n: int, k: int) -> Bools:
        """Whether each `m` is inside the measured grid; outside, utilisation is held constant."""
        rows = np.asarray(m, dtype=np.float64)
        inside = (rows >= self.m_knots[0]) & (rows <= self.m_knots[-1])
        inside &= self.n_knots[0] <= n <= self.n_knots[-1]
        inside &= self.k_knots[0] <= k <= self.k_knots[-1]
        if self.measured is not None:
            inside |= self.measured.timed(rows, n, k)
        return np.asarray(inside)


def roofline_seconds(
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    *,
    kernel_latency_s: float,
    memory_rate: float,
    compute_rate: float,
    overlap_exponent: float,
    weight_bytes_per_element: float = 2.0,
    waves: Waves | None = None,
) -> Floats:
    """Kernel latency plus a p-norm of memory and compute time (Williams et al. 2009).

    Parameters
    ----------
    m, n, k : arrays, mutually broadcastable
        Rows, output and input columns.
    memory_rate, compute_rate : float
        Achieved rates: peaks times efficiencies. [bytes/s, FLOP/s]
    overlap_exponent : float
        1 adds the two times; infinity takes the larger one.
    waves : Waves, optional
        Rounds the compute time up to whole waves.

    Returns
    -------
    array
        Seconds, with the broadcast shape.
    """
    rows, columns, depth = (np.asarray(x, dtype=np.float64) for x in (m, n, k))
    moved = weight_bytes_per_element * columns * depth + 2.0 * rows * (columns + depth)
    memory = moved / memory_rate
    compute = 2.0 * rows * columns * depth / compute_rate
    if waves is not None:
        compute = compute * waves.inflation(rows, columns)
    larger, smaller = np.maximum(memory, compute), np.minimum(memory, compute)
    # larger * (1 + ratio^p)^(1/p) is the p-norm without overflow or underflow.
    joined = larger * (1.0 + (smaller / larger) ** overlap_exponent) ** (1.0 / overlap_exponent)
    return np.asarray(kernel_latency_s + joined)


@lru_cache(maxsize=4096)
def _curve_over_m(
    curve: GemmCurve, n: int, k: int, peak_flops: float, hbm_bandwidth: float, weight_bytes: float
) -> tuple[Floats, Floats]:
    """ln(m) and ln(seconds) of one matrix at its knots; the seconds are non-decreasing."""
    if not (n > 0 and k > 0):
        raise ConfigError(f"n={n}, k={k} is not a valid matrix shape: both must be positive")
    base = roofline_seconds(
        curve.m_knots,
        n,
        k,
        kernel_latency_s=curve.kernel_latency_s,
        memory_rate=hbm_bandwidth * curve.memory_efficiency,
        compute_rate=peak_flops * curve.compute_efficiency,
        overlap_exponent=curve.overlap_exponent,
        weight_bytes_per_element=weight_bytes,
        waves=curve.waves,
    )
    column, column_part = _bracket(curve.n_knots, n)
    row, row_part = _bracket(curve.k_knots, k)
    corner = curve.log_multiplier[:, column : column + 2, row : row + 2]  # (M, 2, 2)
    between_n = corner[:, 0] * (1.0 - column_part) + corner[:, 1] * column_part
    multiplier = between_n[:, 0] * (1.0 - row_part) + between_n[:, 1] * row_part
    # The running maximum keeps the time non-decreasing in m at peaks other than those of the fit.
    log_m, log_s = np.log(curve.m_knots), np.maximum.accumulate(np.log(base) + multiplier)
    if curve.measured is None:
        return log_m, log_s
    # Within the range of m that was timed, only its knots are used: the table's steps differ.
    timed_m, ratio = np.log(curve.measured.m_knots), curve.measured.log_ratio_of(n, k)
    outside = (log_m < timed_m[0]) | (log_m > timed_m[-1])
    knots = np.sort(np.concatenate([timed_m, log_m[outside]]))
    scaled = np.interp(knots, log_m, log_s) + np.interp(knots, timed_m, ratio)
    return knots, np.maximum.accumulate(scaled)


def _bracket(knots: Floats, value: float) -> tuple[int, float]:
    """Index of the knot below `value` and the fraction to the next one, in logarithms."""
    inside = min(max(float(value), float(knots[0])), float(knots[-1]))
    below = min(int(np.searchsorted(knots, inside, side="right")) - 1, knots.size - 2)
    step = np.log(knots[below + 1] / knots[below])
    return below, float(np.log(inside / knots[below]) / step)
