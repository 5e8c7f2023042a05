"""`ExpertsCurve`: the time of the routed experts of one layer, from a roofline and a correction.

A fused kernel permutes the rows, multiplies each expert's rows by its gate, up and down matrices,
and adds the results per token. The form is:

    latency + activations + p-norm(weights of the experts that have rows, FLOPs)

times a measured correction over (rows per expert, experts with rows, elements of a matrix). The
router and shared experts are not included.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Bools, Floats
from perfmodel.errors import ConfigError
from perfmodel.kernels.interpolate import LogTable

MATRICES = 3  # gate, up and down; experts without a gate were left out of the fits
ACTIVATION_BYTES = 2.0  # bf16


@dataclass(frozen=True, eq=False, kw_only=True)
class ExpertsCurve:
    """Times of the routed experts of one layer on one rank, in one weight format.

    `peak_ratio` is the peak FLOP/s of the format over that of bf16, on the GPU where it was timed.
    `measured` are the smallest and largest measured value on each axis of the correction, which is
    constant outside; without it, they are the first and last knots.
    """

    dtype: str
    peak_ratio: float
    kernel_latency_s: float
    memory_efficiency: float
    compute_efficiency: float
    activation_efficiency: float
    overlap_exponent: float
    source: str
    correction: LogTable = field(repr=False)  # over (rows per expert, experts, matrix elements)
    measured: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for name in ("kernel_latency_s", "memory_efficiency", "compute_efficiency", "peak_ratio"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"experts: {name}={getattr(self, name)!r} must be positive")

    def seconds(
        self,
        *,
        tokens: ArrayLike,
        touched: ArrayLike,
        hidden: ArrayLike,
        inter: ArrayLike,
        top_k: ArrayLike,
        peak_flops: float,
        hbm_bandwidth: float,
        weight_bytes_per_element: float,
    ) -> Floats:
        """Seconds of the routed experts of one layer on one rank.

        Parameters
        ----------
        tokens, touched : float or array, mutually broadcastable
            Rows of the pass; distinct experts of the rank with at least one row, which may be an
            expected number. [1]
        hidden, inter : float or array
            Width of the model, and that of one expert on this rank.
        top_k : float or array
            Experts per token that this rank computes, on average.
        peak_flops, hbm_bandwidth : float
            Datasheet peaks; FLOP/s are those of dense bf16. [FLOP/s, bytes/s]
        weight_bytes_per_element : float
            Bytes of one stored weight, including its share of the scales.

        Returns
        -------
        array of the broadcast shape [s]
            At least the time at each smaller knot of the rows per expert, and that of one token
            or of fewer experts with one row each: single cells of the tables are slower than their
            neighbours with more tokens.
        """
        rows, read = _rows(tokens, touched, top_k)
        matrix, ranges = np.asarray(hidden, float) * np.asarray(inter, float), self._ranges

        def at(rows_each: Floats | float, read: Floats) -> Floats:
            base = self.base_seconds(
                rows_each * read,
                read,
                hidden,
                inter,
                peak_flops=peak_flops,
                hbm_bandwidth=hbm_bandwidth,
                weight_bytes_per_element=weight_bytes_per_element,
            )
            inside = (
                np.clip(x, *ends)
                for x, ends in zip((np.asarray(rows_each), read, matrix), ranges, strict=True)
            )
            return np.asarray(base * self.correction.factor(*inside))

        rows_each = rows / read
        least = at(rows_each, read)
        for knot in self.correction.knots[0]:
            if np.any(rows_each > knot):
                least = np.maximum(least, at(np.minimum(rows_each, knot), read))
        of_one_token = max(float(np.max(top_k)), 1.0)
        for knot in (of_one_token, *self.correction.knots[1]):
            if knot >= of_one_token and np.any(read > knot):
                least = np.maximum(least, at(1.0, np.minimum(read, knot)))
        return least

    def base_seconds(
        self,
        rows: Floats,
        touched: Floats,
        hidden: ArrayLike,
        inter: ArrayLike,
        *,
        peak_flops: float,
        hbm_bandwidth: float,
        weight_bytes_per_element: float,
    ) -> Floats:
        """The form without its correction; `rows` are those of all experts together. [s]"""
        hidden, inter = np.asarray(hidden, float), np.asarray(inter, float)
        size = MATRICES * hidden * inter
        weights = touched * size * weight_bytes_per_element
        memory = weights / (hbm_bandwidth * self.memory_efficiency)
        compute = 2.0 * rows * size / (peak_flops * self.peak_ratio * self.compute_efficiency)
        moved = ACTIVATION_BYTES * rows * (2.0 * hidden + MATRICES * inter)
        larger, smaller = np.maximum(memory, compute), np.minimum(memory, compute)
        p = self.overlap_exponent
        joined = larger * (1.0 + (smaller / larger) ** p) ** (1.0 / p)
        activations = moved / (hbm_bandwidth * self.activation_efficiency)
        return np.asarray(self.kernel_latency_s + activations + joined)

    def in_range(
        self,
        *,
        tokens: ArrayLike,
        touched: ArrayLike,
        hidden: ArrayLike,
        inter: ArrayLike,
        top_k: ArrayLike,
    ) -> Bools:
        """Whether each point is inside the measured range; arguments as in `seconds`."""
        rows, touched = _rows(tokens, touched, top_k)
        points = (rows / touched, touched, np.asarray(hidden, float) * np.asarray(inter, float))
        inside = [
            (x >= least) & (x <= most)
            for x, (least, most) in zip(points, self._ranges, strict=True)
        ]
        return np.asarray(inside[0] & inside[1] & inside[2])

    @property
    def _ranges(self) -> list[tuple[float, float]]:
        """The measured range within the knots, by axis."""
        ends = [(float(knots[0]), float(knots[-1])) for knots in self.correction.knots]
        return [
            (max(first, least), min(last, most))
            for (first, last), (least, most) in zip(ends, self.measured or ends, strict=True)
        ]


def _rows(tokens: ArrayLike, touched: ArrayLike, top_k: ArrayLike) -> tuple[Floats, Floats]:
    """Rows of all experts together, and experts with rows; neither is below one expert's row."""
    rows = np.asarray(tokens, float) * np.asarray(top_k, float)
    read = np.minimum(np.maximum(np.asarray(touched, float), 1e-3), np.maximum(rows, 1e-3))
    return np.maximum(rows, read), read
