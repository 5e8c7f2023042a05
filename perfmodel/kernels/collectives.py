"""`CollectiveCurve`: the time of all-reduce and all-gather between the GPUs of one node.

Measured times are interpolated in ln(bytes), and in ln(ranks) between measured numbers of ranks;
messages beyond the largest one move at its rate. For other numbers of ranks, the time is latency +
bytes x traffic / (link bandwidth x efficiency), where traffic is 2(n-1)/n for an all-reduce and
(n-1)/n for an all-gather. It is n-1 for an `Exchange`, in which every rank sends its whole message
to every peer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats
from perfmodel.errors import ConfigError, either
from perfmodel.units import US

ALGORITHMS = ("nccl", "custom", "custom_eager")


@dataclass(frozen=True, eq=False, kw_only=True)
class MeasuredTimes:
    """Times of one operation among `ranks` GPUs at several message sizes."""

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
            raise ConfigError(f"{name}: sizes must increase, and times must not decrease")

    def at(self, message_bytes: Floats, link_ratio: float) -> Floats:
        """Seconds at any message size; the time beyond the latency scales with `link_ratio`."""
        log_b = np.log(np.maximum(message_bytes, 1.0))
        knots = np.log(self.message_bytes)
        log_s = np.interp(log_b, knots, np.log(self.seconds))
        seconds = np.exp(log_s + np.maximum(log_b - knots[-1], 0.0))
        latency = self.seconds[0]
        return np.asarray(latency + (seconds - latency) * link_ratio)

    def smoothed(self) -> MeasuredTimes:
        """Means of neighbouring sizes, in logarithms: a change of protocol begins gradually."""
        log_s = np.pad(np.log(self.seconds), 1, mode="edge")
        return replace(self, seconds=np.exp((log_s[:-2] + 2.0 * log_s[1:-1] + log_s[2:]) / 4.0))


@dataclass(frozen=True, eq=False, kw_only=True)
class AlphaBeta:
    """Latency and rate of one operation, for numbers of ranks that were not measured."""

    operation: str
    algorithm: str
    latency_us: float  # at two ranks
    latency_per_rank_us: float  # per additional rank
    link_efficiency: float

    def at(self, message_bytes: Floats, ranks: int, link_bandwidth: float) -> Floats:
        """Seconds for `ranks` GPUs."""
        traffic = (2.0 if self.operation == "all_reduce" else 1.0) * (ranks - 1) / ranks
        latency = (self.latency_us + self.latency_per_rank_us * (ranks - 2)) * US
        return latency + message_bytes * traffic / (link_bandwidth * self.link_efficiency)


@dataclass(frozen=True, eq=False, kw_only=True)
class Exchange:
    """The time that an all-reduce adds to the residual and norm kernel in which it takes place.

    Each rank writes its rows to the memory of every peer and waits for theirs. A thread block
    handles one row; writing and reading it takes a time proportional to its width, for each peer.
    Links are less efficient if several peers send to the same rank.
    """

    latency_s: float  # one way, with one peer
    peer_latency_s: float  # per additional peer
    row_s_per_byte: float  # per peer
    link_efficiency: float  # with one peer
    link_efficiency_of_many: float  # with several peers
    most_bytes: float  # largest message of two ranks; of n ranks, (n-1)^2 times smaller
    gather_s: float  # added to sampling by the exchange of the best tokens
    buffer_bytes: float  # of a group's buffer for larger messages
    measured_ranks: Floats = field(repr=False)
    error: float  # standard error of ln(time) at numbers of ranks that were not measured

    def __post_init__(self) -> None:
        if not min(self.most_bytes, self.link_efficiency, self.link_efficiency_of_many) > 0:
            raise ConfigError("exchange: most_bytes and both efficiencies must be positive")

    def at(
        self, message_bytes: Floats, row_bytes: float, ranks: int, link_bandwidth: float
    ) -> Floats:
        """Seconds among `ranks` > 1 GPUs; `link_bandwidth` is for one direction. [bytes/s]"""
        peers = ranks - 1
        share = self.link_efficiency if peers == 1 else self.link_efficiency_of_many
        per_peer = self.row_s_per_byte * row_bytes + message_bytes / (link_bandwidth * share)
        return np.asarray(self.latency_s + (peers - 1) * self.peer_latency_s + peers * per_peer)

    def largest_bytes(self, ranks: int) -> float:
        """The largest message among `ranks` GPUs; larger ones use another algorithm."""
        return self.most_bytes / (ranks - 1) ** 2

    def inbox_bytes(self, ranks: int) -> float:
        """Device memory per rank and model: three alternating inboxes for the rows of all ranks."""
        return 3.0 * ranks * self.largest_bytes(ranks)

    def error_at(self, ranks: int) -> float:
        """Standard error of ln(time); 0 for numbers of ranks that were measured."""
        return 0.0 if ranks == 1 or np.any(self.measured_ranks == ranks) else self.error


@dataclass(frozen=True, eq=False, kw_only=True)
class CollectiveCurve:
    """Collectives between GPUs of one type; `link_bandwidth` is that of the measured machine."""

    source: str
    link_kind: str
    link_bandwidth: float  # bytes/s, one direction
    measured: tuple[MeasuredTimes, ...] = field(repr=False)
    alpha_beta: tuple[AlphaBeta, ...] = field(repr=False)
    exchange: Exchange | None = None

    def all_reduce_seconds(
        self,
        *,
        message_bytes: ArrayLike,
        ranks: int,
        algorithm: str = "best",
        link_bandwidth: float,
        row_bytes: float = 0.0,
    ) -> Floats:
        """Seconds of an all-reduce; `message_bytes` is the size of the tensor on each rank.

        Raises `ConfigError` if the algorithm is unknown or `ranks` is not a positive whole number.

        Parameters
        ----------
        message_bytes : float or array [bytes]
        ranks : int
            GPUs of one node; a single rank takes no time.
        algorithm : str
            "nccl"; "custom", vLLM's one- and two-shot kernels in a CUDA graph, with NCCL from 8 MB;
            "custom_eager", the same kernels without a graph; "best", the faster of "nccl" and
            "custom"; "exchange", the engine's fused all-reduce if it was measured and the message
            is small enough, otherwise as "best"; "ring", NCCL if all links were as fast as the link
            of two GPUs.
        link_bandwidth : float
            Per GPU and direction. If it differs from that of the measured machine, the time beyond
            the latency scales with it. [bytes/s]
        row_bytes : float
            Size of one row of the message; only "exchange" depends on it.
        """
        if algorithm == "exchange" and self.exchange is not None and ranks > 1:
            size = np.asarray(message_bytes, float)
            most = self.exchange.largest_bytes(ranks)
            fused = self.exchange.at(np.minimum(size, most), row_bytes, ranks, link_bandwidth)
            separate = self.all_reduce_seconds(
                message_bytes=size, ranks=ranks, link_bandwidth=link_bandwidth
            )
            return np.where(size <= most, fused, np.maximum(fused, separate))
        if algorithm in ("best", "exchange"):
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
        """Seconds of an NCCL all-gather; `message_bytes` is the size of the gathered tensor."""
        return self._seconds("all_gather", "nccl", message_bytes, ranks, link_bandwidth)

    def on_other_machines(self) -> CollectiveCurve:
        """The curve for machines with other PCIe wiring, on which protocols change elsewhere."""
        if self.link_kind != "pcie":
            return self
        return replace(self, measured=tuple(times.smoothed() for times in self.measured))

    def exchange_over(self, link_kind: str, algorithm: str) -> Exchange | None:
        """The exchange, if the engine uses it and the link is of the kind on which it was timed."""
        return self.exchange if (link_kind, algorithm) == (self.link_kind, "exchange") else None

    def _ring_seconds(self, size: Floats, ranks: int, link_bandwidth: float) -> Floats:
        """The latency at this number of ranks, and 2(n-1)/n of the message at the rate of two.

        A lower bound for PCIe nodes with unknown wiring: no cards share a switch or a socket.
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
        wanted = (operation, algorithm)
        tables = {m.ranks: m for m in self.measured if (m.operation, m.algorithm) == wanted}
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
        raise ConfigError(f"{self.source} has no {operation} times for algorithm {algorithm!r}")


def ring_seconds(message_bytes: ArrayLike, ranks: int, *, hop_s: float, rate: float) -> Floats:
    """Seconds of a ring all-reduce: 2(n-1) hops, and 2(n-1)/n of the message at `rate` [bytes/s].

    Source: Thakur et al. 2005, section 4 (reduce-scatter, then all-gather).
    """
    steps = 2.0 * (ranks - 1)
    return np.asarray(steps * hop_s + steps / ranks * np.asarray(message_bytes, float) / rate)
