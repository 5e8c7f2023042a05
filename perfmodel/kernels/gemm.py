"""`GemmCurve`: the time of one dense layer, from a roofline and a table of measured multipliers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfmodel.errors import ConfigError
from perfmodel.units import US

FloatArray = NDArray[np.float64]

_KEYS = {
    "curve": {"kernel_latency_us", "memory_efficiency", "compute_efficiency", "overlap_exponent",
              "source", "fit", "residuals", "waves", "table", "own"},
    "source": {"dataset", "licence", "device", "kernel_library", "kernel_version", "dtype"},
    "fit": {"command", "peak_TFLOPS", "hbm_TBps", "l2_MiB", "warm_cells_dropped_percent",
            "cold_memory_efficiency", "launch_floor_us", "note"},
    "residuals": {"scope", "median_percent", "p90_percent", "worst_percent", "by_region",
                  "left_out_n", "left_out_n_and_k",
                  "left_out_matrix"},
    "waves": {"sm_count", "tile_rows", "tile_columns", "from_m"},
    "table": {"m", "n", "k", "time_over_roofline_per_mille"},
    "own": {"source", "command", "median_percent", "p90_percent", "m", "shapes",
            "time_over_table_per_10000"},
}  # fmt: skip
_OPTIONAL = {"waves", "own"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Waves:
    """Output tiles run in waves of one per SM; a part-filled last wave takes as long as a full one.

    It shows from `from_m` rows on, in kernels that do not share out their last wave.
    """

    sm_count: int
    tile_rows: int
    tile_columns: int
    from_m: float

    def __post_init__(self) -> None:
        if not min(self.sm_count, self.tile_rows, self.tile_columns) > 0:
            raise ConfigError(f"GEMM curve, [waves]: SMs and tile sides must be positive: {self}")

    def inflation(self, m: ArrayLike, n: ArrayLike) -> FloatArray:
        """Time of the whole waves over that of the work in them, at least 1; broadcasts."""
        rows, columns = np.asarray(m, dtype=np.float64), np.asarray(n, dtype=np.float64)
        tiles = np.ceil(rows / self.tile_rows) * np.ceil(columns / self.tile_columns)
        capacity = np.ceil(tiles / self.sm_count) * self.sm_count
        work = rows * columns / (self.tile_rows * self.tile_columns)
        return np.where(rows >= self.from_m, capacity / work, 1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class OwnProducts:
    """Matrices that were timed with an engine's own kernels, as ratios to the curve of the table.

    A matrix between them takes their ratios weighted by the inverse square of the distance in
    (ln n, ln k), so one that was timed is met exactly (Shepard 1968).
    """

    m_knots: FloatArray  # (M,)
    log_n: FloatArray  # (S,)
    log_k: FloatArray  # (S,)
    log_ratio: FloatArray  # (S, M)

    def __post_init__(self) -> None:
        shape = (self.log_n.size, self.m_knots.size)
        if self.log_ratio.shape != shape or self.log_k.size != self.log_n.size or not min(shape):
            raise ConfigError(
                f"GEMM curve, [own]: ratios of shape {self.log_ratio.shape} for {shape[0]} shapes "
                f"and {shape[1]} rows"
            )
        if self.m_knots[0] <= 0 or np.any(np.diff(self.m_knots) <= 0):
            raise ConfigError("GEMM curve, [own]: m must be positive and rise")
        if not np.all(np.isfinite(self.log_ratio)):
            raise ConfigError("GEMM curve, [own]: a ratio is not positive")

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> OwnProducts:
        """The matrices of `[own]`: a row of ratios for each (n, k), a column for each m."""
        shapes = np.asarray(table["shapes"], dtype=np.float64).reshape(-1, 2)
        ratios = np.asarray(table["time_over_table_per_10000"], dtype=np.float64) / 1e4
        with np.errstate(divide="ignore", invalid="ignore"):
            return cls(
                m_knots=np.asarray(table["m"], dtype=np.float64),
                log_n=np.log(shapes[:, 0]),
                log_k=np.log(shapes[:, 1]),
                log_ratio=np.log(ratios),
            )

    def timed(self, n: int, k: int) -> bool:
        """Whether this very matrix was timed."""
        return bool(np.any(np.isclose(self.log_n, np.log(n)) & np.isclose(self.log_k, np.log(k))))

    def log_ratio_of(self, n: int, k: int) -> FloatArray:
        """ln(time / the table's) of one matrix at each of `m_knots`, (M,)."""
        distance = (self.log_n - np.log(n)) ** 2 + (self.log_k - np.log(k)) ** 2
        weight = 1.0 / (distance + 1e-12)
        return np.asarray(weight @ self.log_ratio / weight.sum())


@dataclass(frozen=True, eq=False, kw_only=True)
class GemmCurve:
    """Dense-layer times of one GPU: `multiplier(m, n, k) x (kernel latency + roofline)`.

    The roofline joins compute and memory time with a p-norm, each at a fitted efficiency. The
    multiplier is what was measured over that base, on knots in m, n and k, interpolated in logs; it
    carries the tile steps, and the wave steps that `waves` does not. Beyond the knots it is held,
    so the roofline does the scaling. Because it multiplies latency and roofline alike, a GPU twice
    as fast with half the latency takes half the time. `median_error` and `p90_error` are the
    fractions by which a matrix is missed of which neither n nor k is a knot.
    """

    kernel_latency_s: float
    memory_efficiency: float
    compute_efficiency: float
    overlap_exponent: float
    m_knots: FloatArray  # (M,) rows of the activation, tokens
    n_knots: FloatArray  # (N,) output columns of the weight
    k_knots: FloatArray  # (K,) input columns of the weight
    log_multiplier: FloatArray  # (M, N, K)
    median_error: float
    p90_error: float
    source: str
    waves: Waves | None = None
    own: OwnProducts | None = None

    def __post_init__(self) -> None:
        for field in ("kernel_latency_s", "memory_efficiency", "compute_efficiency"):
            if not getattr(self, field) > 0:
                raise ConfigError(f"GEMM curve: {field}={getattr(self, field)!r} must be positive")
        if not self.overlap_exponent >= 1:
            raise ConfigError(f"GEMM curve: overlap_exponent={self.overlap_exponent!r} is below 1")
        for field in ("m_knots", "n_knots", "k_knots"):
            knots = getattr(self, field)
            if knots.size < 2 or knots[0] <= 0 or np.any(np.diff(knots) <= 0):
                raise ConfigError(f"GEMM curve: {field} must be positive and rise, two or more")
        shape = (self.m_knots.size, self.n_knots.size, self.k_knots.size)
        if self.log_multiplier.shape != shape:
            raise ConfigError(
                f"GEMM curve: the table has shape {self.log_multiplier.shape}, its knots {shape}"
            )
        if not np.all(np.isfinite(self.log_multiplier)):
            raise ConfigError("GEMM curve: the table holds a multiplier that is not positive")

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> GemmCurve:
        """The curve of a parsed `gemm.toml`.

        Parameters
        ----------
        table : mapping
            Latency in us, efficiencies as fractions, and `[table]` with one row of multipliers in
            per mille for each (n, k), n-major, one column per m; beside them where they come from.

        Raises
        ------
        ConfigError
            If a key is unknown or missing, or a figure is out of its range; it is named.
        """
        _check_keys("curve", table)
        for part in ("source", "fit", "residuals", "waves", "table", "own"):
            if part in table:
                _check_keys(part, table[part])
        knots = table["table"]
        m, n, k = (np.asarray(knots[axis], dtype=np.float64) for axis in ("m", "n", "k"))
        rows = knots["time_over_roofline_per_mille"]
        if len(rows) != n.size * k.size or any(len(row) != m.size for row in rows):
            raise ConfigError(
                f"GEMM curve: time_over_roofline_per_mille needs {n.size * k.size} rows of "
                f"{m.size} figures, one for each (n, k) and m; it has {len(rows)} rows"
            )
        per_mille = np.asarray(rows, dtype=np.float64).reshape(n.size, k.size, m.size)
        if not np.all(per_mille > 0):
            raise ConfigError("GEMM curve: time_over_roofline_per_mille must be positive")
        source = table["source"]
        return cls(
            kernel_latency_s=table["kernel_latency_us"] * US,
            memory_efficiency=table["memory_efficiency"],
            compute_efficiency=table["compute_efficiency"],
            overlap_exponent=table["overlap_exponent"],
            m_knots=m,
            n_knots=n,
            k_knots=k,
            log_multiplier=np.moveaxis(np.log(per_mille / 1000.0), -1, 0),
            median_error=table["residuals"]["left_out_n_and_k"]["median_percent"] / 100.0,
            p90_error=table["residuals"]["left_out_n_and_k"]["p90_percent"] / 100.0,
            source=f"{source['dataset']}, {source['device']}, {source['kernel_library']}",
            waves=Waves(**table["waves"]) if "waves" in table else None,
            own=OwnProducts.from_table(table["own"]) if "own" in table else None,
        )

    def seconds(
        self,
        *,
        m: ArrayLike,
        n: int,
        k: int,
        peak_flops: float,
        hbm_bandwidth: float,
        weight_bytes_per_element: float = 2.0,
    ) -> FloatArray:
        """Time of one `(m, k) x (k, n)` product in bf16, its weights read from HBM.

        Parameters
        ----------
        m : array
            Rows: tokens in the pass. Below the first knot (1) a row still costs one. [tokens]
        n, k : int
            Output and input columns of the weight matrix; n is the total of fused matrices.
        peak_flops, hbm_bandwidth : float
            The GPU's datasheet peaks. [FLOP/s, bytes/s]
        weight_bytes_per_element : float
            Bytes that one stored weight takes; activations stay at two.

        Returns
        -------
        array
            Seconds, of the shape of `m`; never falls as `m` grows.

        Raises
        ------
        ConfigError
            If `n` or `k` is not positive.
        """
        log_m, log_s = _curve_over_m(
            self, n, k, peak_flops, hbm_bandwidth, weight_bytes_per_element
        )
        rows = np.asarray(m, dtype=np.float64)
        last = self.m_knots[-1]
        inside = np.minimum(np.maximum(rows, self.m_knots[0]), last)
        time = np.exp(np.interp(np.log(inside), log_m, log_s))
        # Past the last knot the layer is bound by compute: time grows with the rows.
        return np.asarray(time * np.maximum(rows / last, 1.0))

    def in_range(self, *, m: ArrayLike, n: int, k: int) -> NDArray[np.bool_]:
        """Whether each `m` lies inside the measured grid (then the number is "measured" or
        interpolated); false means that the utilisation of the nearest edge is held."""
        rows = np.asarray(m, dtype=np.float64)
        matrix = self.n_knots[0] <= n <= self.n_knots[-1] and (
            self.k_knots[0] <= k <= self.k_knots[-1]
        )
        matrix |= self.own is not None and self.own.timed(n, k)
        return np.asarray((rows >= self.m_knots[0]) & (rows <= self.m_knots[-1]) & matrix)


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
) -> FloatArray:
    """The base of the curve: kernel latency plus a p-norm of memory and compute time.

    Parameters
    ----------
    m, n, k : arrays, mutually broadcastable
        Rows, output and input columns.
    memory_rate, compute_rate : float
        Achieved bytes/s and FLOP/s: a peak times its efficiency.
    overlap_exponent : float
        1 adds the two times, infinity takes the larger.
    waves : Waves, optional
        Stretches the compute time to whole waves.

    Returns
    -------
    array
        Seconds, of the broadcast shape. Roofline: Williams et al. 2009.
    """
    rows, columns, depth = (np.asarray(x, dtype=np.float64) for x in (m, n, k))
    moved = weight_bytes_per_element * columns * depth + 2.0 * rows * (columns + depth)
    memory = moved / memory_rate
    compute = 2.0 * rows * columns * depth / compute_rate
    if waves is not None:
        compute = compute * waves.inflation(rows, columns)
    larger, smaller = np.maximum(memory, compute), np.minimum(memory, compute)
    # larger * (1 + ratio^p)^(1/p): the p-norm in a form whose powers neither over- nor underflow.
    joined = larger * (1.0 + (smaller / larger) ** overlap_exponent) ** (1.0 / overlap_exponent)
    return np.asarray(kernel_latency_s + joined)


@lru_cache(maxsize=4096)
def _curve_over_m(
    curve: GemmCurve, n: int, k: int, peak_flops: float, hbm_bandwidth: float, weight_bytes: float
) -> tuple[FloatArray, FloatArray]:
    """log m knots and log seconds of one matrix; (M,) each, the second never falls."""
    if not (n > 0 and k > 0):
        raise ConfigError(f"a dense layer of n={n}, k={k} is not one; both must be positive")
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
    # A running maximum keeps time from falling in m at peaks other than those of the fit, and is
    # itself monotone in whatever moves the base.
    log_m, log_s = np.log(curve.m_knots), np.maximum.accumulate(np.log(base) + multiplier)
    if curve.own is None:
        return log_m, log_s
    # Inside the rows that were timed only their knots count: the table's steps lie elsewhere.
    own_m, ratio = np.log(curve.own.m_knots), curve.own.log_ratio_of(n, k)
    outside = (log_m < own_m[0]) | (log_m > own_m[-1])
    knots = np.sort(np.concatenate([own_m, log_m[outside]]))
    scaled = np.interp(knots, log_m, log_s) + np.interp(knots, own_m, ratio)
    return knots, np.maximum.accumulate(scaled)


def _bracket(knots: FloatArray, value: float) -> tuple[int, float]:
    """Index of the knot below `value` and how far past it, in logs; held at the ends."""
    inside = min(max(float(value), float(knots[0])), float(knots[-1]))
    below = min(int(np.searchsorted(knots, inside, side="right")) - 1, knots.size - 2)
    step = np.log(knots[below + 1] / knots[below])
    return below, float(np.log(inside / knots[below]) / step)


def _check_keys(part: str, table: Mapping[str, Any]) -> None:
    where = "GEMM curve" if part == "curve" else f"GEMM curve, [{part}]"
    unknown = sorted(set(table) - _KEYS[part])
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}. Known: {sorted(_KEYS[part])}.")
    missing = sorted(_KEYS[part] - _OPTIONAL - set(table))
    if missing:
        raise ConfigError(f"{where}: {missing[0]!r} is missing")
