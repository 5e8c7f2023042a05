"""`CollectiveCurve`: seconds of all-reduce and all-gather between the GPUs of one node.

Measured times are interpolated in ln(bytes) at the measured rank counts and in ln(ranks) between
them; larger messages move at the rate of the largest. Rank counts outside the tables take the
physical form: latency + bytes x traffic / (link bandwidth x efficiency), traffic 2(n-1)/n for an
all-reduce and (n-1)/n for an all-gather.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats
from perfmodel.errors import ConfigError, either
from perfmodel.units import US

ALGORITHMS = ("nccl", "custom", "custom_eager")


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredTimes:
    """Seconds over message bytes of one operation among `ranks` GPUs."""

    operation: str  # "all_reduce" or "all_gather"
    algorithm: str
    ranks: int
    message_bytes: Floats = field(repr=False)
    seconds: Floats = field(repr=False)  # non-decreasing

    def __post_init__(self) -> None:
        size, time = self.message_bytes, self.seconds
        name = f"{self.operation} {self.algorithm} x{self.ranks}"
        if size.shape != time.shape or size.ndim != 1 or size.size < 2:
            raise ConfigError(f"{name}: {size.size} sizes but {time.size} times")
        if np.any(np.diff(size) <= 0) or np.any(np.diff(time) < 0) or min(size[0], time[0]) <= 0:
            raise ConfigError(f"{name}: sizes must rise and times never fall")

    def at(self, message_bytes: Floats, link_ratio: float) -> Floats:
        """Seconds at any message size; the part above latency scales with `link_ratio`."""
        log_b = np.log(np.maximum(message_bytes, 1.0))
        knots = np.log(self.message_bytes)
        log_s = np.interp(log_b, knots, np.log(self.seconds))
        seconds = np.exp(log_s + np.maximum(log_b - knots[-1], 0.0))
        latency = self.seconds[0]
        return np.asarray(latency + (seconds - latency) * link_ratio)


@dataclass(frozen=True, eq=False, kw_only=True)
class AlphaBeta:
    """Latency and rate of one operation, for rank counts without a measurement."""

    operation: str
    algorithm: str
    latency_us: float  # at two ranks
    latency_per_rank_us: float  # of every further rank
    link_efficiency: float

    def at(self, message_bytes: Floats, ranks: int, link_bandwidth: float) -> Floats:
        """Seconds for `ranks` GPUs."""
        traffic = (2.0 if self.operation == "all_reduce" else 1.0) * (ranks - 1) / ranks
        latency = (self.latency_us + self.latency_per_rank_us * (ranks - 2)) * US
        return latency + message_bytes * traffic / (link_bandwidth * self.link_efficiency)


@dataclass(frozen=True, eq=False, kw_only=True)
class CollectiveCurve:
    """Collectives of one GPU and wiring. `link_bandwidth` is that of the measured machine."""

    source: str
    link_kind: str
    link_bandwidth: float  # bytes/s, one direction
    measured: tuple[MeasuredTimes, ...] = field(repr=False)
    alpha_beta: tuple[AlphaBeta, ...] = field(repr=False)

    def all_reduce_seconds(
        self,
        *,
        message_bytes: ArrayLike,
        ranks: int,
        algorithm: str = "best",
        link_bandwidth: float,
    ) -> Floats:
        """Seconds of one all-reduce of `message_bytes` (each rank's whole tensor) among `ranks`.

        Parameters
        ----------
        message_bytes : float or array [bytes]
        ranks : int
            GPUs of one node; one rank costs nothing.
        algorithm : str
            "nccl"; "custom", vLLM's one- and two-shot kernels inside a CUDA graph, which hand over
            to NCCL from 8 MB; "custom_eager", the same launched eagerly; "best", the faster of
            "nccl" and "custom"; "ring", NCCL where every link is as good as that of two GPUs.
        link_bandwidth : float
            Of one GPU, one direction. Where it differs from the measured machine's, the time above
            the latency scales with it. [bytes/s]

        Raises
        ------
        ConfigError
            If the algorithm is unknown or the ranks are not a positive whole number.
        """
        if algorithm == "best":
            names = [n for n in ("nccl", "custom") if self._has("all_reduce", n)]
            times = [
                self._seconds("all_reduce", n, message_bytes, ranks, link_bandwidth) for n in names
            ]
            return np.asarray(np.minimum.reduce(times))
        if algorithm == "ring":
            return self._ring_seconds(np.asarray(message_bytes, float), ranks, link_bandwidth)
        if algorithm not in ALGORITHMS:
            raise ConfigError(
                f"unknown all-reduce algorithm {algorithm!r}; use best, ring, {either(ALGORITHMS)}"
            )
        return self._seconds("all_reduce", algorithm, message_bytes, ranks, link_bandwidth)

    def all_gather_seconds(
        self, *, message_bytes: ArrayLike, ranks: int, link_bandwidth: float
    ) -> Floats:
        """Seconds of one NCCL all-gather; `message_bytes` is the gathered tensor, all ranks'."""
        return self._seconds("all_gather", "nccl", message_bytes, ranks, link_bandwidth)

    def _ring_seconds(self, size: Floats, ranks: int, link_bandwidth: float) -> Floats:
        """The latency measured at this rank count, and 2(n-1)/n of the message at a pair's rate.

        For nodes whose wiring was not measured. Nodes differ in how PCIe cards share switches and
        sockets far more than in the rate between two cards.
        """
        if ranks == 1:
            return np.zeros_like(size)
        pair, least = 2.0 * (ranks - 1) / ranks * size, np.asarray(1.0)
        moved = self._seconds("all_reduce", "nccl", pair, 2, link_bandwidth)
        latency = self._seconds("all_reduce", "nccl", least, ranks, link_bandwidth)
        return moved + latency - self._seconds("all_reduce", "nccl", least, 2, link_bandwidth)

    def _has(self, operation: str, algorithm: str) -> bool:
        return any((f.operation, f.algorithm) == (operation, algorithm) for f in self.alpha_beta)

    def _seconds(
        self,
        operation: str,
        algorithm: str,
        message_bytes: ArrayLike,
        ranks: int,
        link_bandwidth: float,
    ) -> Floats:
        size = np.asarray(message_bytes, float)
        if ranks < 1 or ranks != int(ranks):
            raise ConfigError(f"ranks={ranks!r} must be a positive whole number")
        if ranks == 1:
            return np.zeros_like(size)
        tables = _by_ranks(self, operation, algorithm)
        ratio = self.link_bandwidth / link_bandwidth
        if tables and min(tables) <= ranks <= max(tables):
            low = max(n for n in tables if n <= ranks)
            high = min(n for n in tables if n >= ranks)
            seconds = tables[low].at(size, ratio)
            if high == low:
                return seconds
            weight = np.log(ranks / low) / np.log(high / low)
            return np.asarray(seconds ** (1 - weight) * tables[high].at(size, ratio) ** weight)
        for form in self.alpha_beta:
            if (form.operation, form.algorithm) == (operation, algorithm):
                return form.at(size, ranks, link_bandwidth)
        raise ConfigError(f"no {operation} times for algorithm {algorithm!r} in {self.source}")


def _by_ranks(curve: CollectiveCurve, operation: str, algorithm: str) -> dict[int, MeasuredTimes]:
    return {
        m.ranks: m for m in curve.measured if (m.operation, m.algorithm) == (operation, algorithm)
    }
