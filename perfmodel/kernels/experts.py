"""`ExpertsCurve`: the time of the routed experts of one layer, from a roofline and a correction.

A fused kernel permutes the rows, multiplies each expert's rows by its gate, up and down matrices,
and adds the results per token. The form is:

    latency + activations + p-norm(weights of the experts that have rows, FLOPs)

times a measured correction over (rows per expert, experts with rows, elements of a matrix). Three
terms are added where they were found: the sort of rows by expert, which vLLM's Triton kernel leaves
out for few tokens, a latency if some experts are on other ranks, and the bytes of rows of these,
which are set to zero and added like the rank's own. The router and shared experts are not included.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Bools, Floats
from perfmodel.errors import ConfigError
from perfmodel.kernels.interpolate import LogTable

MATRICES = 3  # gate, up and down; experts without a gate were left out of the fits
ACTIVATION_BYTES = 2.0  # bf16
# vLLM's Triton kernel sorts rows by expert unless this many times the rows are at most the experts,
# and no expert is on another rank (vllm/model_executor/layers/fused_moe of 0.24 and 0.26).
SPARSE = 4.0


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
    sort_latency_s: float = 0.0
    remote_latency_s: float = 0.0  # added if some experts are on other ranks
    remote_efficiency: float = 0.0  # of the bandwidth, for rows of other ranks; 0: no time

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
        ranks: ArrayLike = 1.0,
        count: ArrayLike = 1.0,
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
        ranks, count : float or array
            Ranks (or groups of them) that the experts are divided among; experts of the layer.

        Returns
        -------
        array of the broadcast shape [s]
            At least the time at each smaller knot of the rows per expert, and that of one token
            or of fewer experts with one row each: single cells of the tables are slower than their
            neighbours with more tokens.
        """
        rows, read = _rows(tokens, touched, top_k)
        peaks = (peak_flops, hbm_bandwidth, weight_bytes_per_element)
        rows_each = rows / read
        least = self._corrected(rows_each, read, hidden, inter, *peaks)
        knots = self.correction.knots[0]
        if np.any(smaller := knots < np.max(rows_each)):  # on a last axis
            at_knots = self._corrected(
                np.minimum(rows_each[..., None], knots[smaller]),
                read[..., None],
                np.asarray(hidden, float)[..., None],
                np.asarray(inter, float)[..., None],
                *peaks,
            )
            least = np.maximum(least, np.max(at_knots, axis=-1))
        of_one_token = max(float(np.max(top_k)), 1.0)
        scalar = np.ndim(hidden) == np.ndim(inter) == 0
        for knot in sorted({of_one_token, *map(float, self.correction.knots[1])}):
            if knot >= of_one_token and np.any(read > knot):
                fewer = (_one_row_each if scalar else ExpertsCurve._corrected)(
                    self, 1.0, knot, hidden, inter, *peaks
                )
                least = np.where(read > knot, np.maximum(least, fewer), least)
        added = self.added_seconds(tokens, hidden, top_k, ranks, count, hbm_bandwidth)
        return np.asarray(least + added)

    def added_seconds(
        self,
        tokens: ArrayLike,
        hidden: ArrayLike,
        top_k: ArrayLike,
        ranks: ArrayLike,
        count: ArrayLike,
        hbm_bandwidth: float,
    ) -> Floats:
        """Seconds of the sort and of the rows of other ranks; arguments as in `seconds`."""
        local = np.asarray(tokens, float) * np.asarray(top_k, float)
        ranks = np.asarray(ranks, float)
        skips = (ranks <= 1) & (SPARSE * local <= np.asarray(count, float))
        seconds = np.where(skips, 0.0, self.sort_latency_s)
        seconds = seconds + np.where(ranks > 1, self.remote_latency_s, 0.0)
        if self.remote_efficiency:
            moved = ACTIVATION_BYTES * local * (ranks - 1.0) * np.asarray(hidden, float)
            seconds = seconds + moved / (hbm_bandwidth * self.remote_efficiency)
        return np.asarray(seconds)

    @cached_property
    def sorting_always(self) -> ExpertsCurve:
        """The curve of a kernel that sorts rows for any number of tokens."""
        latency_s = self.kernel_latency_s + self.sort_latency_s
        return replace(self, kernel_latency_s=latency_s, sort_latency_s=0.0)

    def _corrected(
        self,
        rows_each: Floats | float,
        read: Floats | float,
        hidden: ArrayLike,
        inter: ArrayLike,
        peak_flops: float,
        hbm_bandwidth: float,
        weight_bytes_per_element: float,
    ) -> Floats:
        """Seconds for rows per expert and experts with rows."""
        rows_each, read = np.asarray(rows_each, float), np.asarray(read, float)
        base = self.base_seconds(
            rows_each * read,
            read,
            hidden,
            inter,
            peak_flops=peak_flops,
            hbm_bandwidth=hbm_bandwidth,
            weight_bytes_per_element=weight_bytes_per_element,
        )
        matrix = np.asarray(hidden, float) * np.asarray(inter, float)
        inside = (
            np.clip(x, *ends)
            for x, ends in zip((rows_each, read, matrix), self._ranges, strict=True)
        )
        return np.asarray(base * self.correction.factor(*inside))

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

    @cached_property
    def _ranges(self) -> list[tuple[float, float]]:
        """The measured range within the knots, by axis."""
        ends = [(float(knots[0]), float(knots[-1])) for knots in self.correction.knots]
        return [
            (max(first, least), min(last, most))
            for (first, last), (least, most) in zip(ends, self.measured or ends, strict=True)
        ]


# These times do not depend on the batch, so a sweep needs each only once.
_one_row_each: Any = lru_cache(maxsize=4096)(ExpertsCurve._corrected)


def _rows(tokens: ArrayLike, touched: ArrayLike, top_k: ArrayLike) -> tuple[Floats, Floats]:
    """Rows of all experts together, and experts with rows; neither is below one expert's row."""
    rows = np.asarray(tokens, float) * np.asarray(top_k, float)
    read = np.minimum(np.maximum(np.asarray(touched, float), 1e-3), np.maximum(rows, 1e-3))
    return np.maximum(rows, read), read
