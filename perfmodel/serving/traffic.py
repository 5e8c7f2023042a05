"""`Traffic`: when requests arrive and how long they are, drawn or recorded, in chunks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from perfmodel.errors import ConfigError
from perfmodel.serving.traces import trace_rows

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
CHUNK = 8192


class TrafficShape(StrEnum):
    """How arrivals are drawn; "bursty" is Poisson at two rates in turn."""

    POISSON = "poisson"
    BURSTY = "bursty"
    REGULAR = "regular"
    AT_ONCE = "at-once"


@dataclass(frozen=True, eq=False, slots=True)
class RequestChunk:
    """Consecutive requests: arrivals in seconds, never falling; prompt and output in tokens."""

    arrival_s: Array
    prompt_tokens: Counts
    output_tokens: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """A stream of requests.

    Attributes
    ----------
    requests : int, optional
        How many; None for all that `path` holds.
    path : str, optional
        A recorded trace (`serving.traces`): its lengths, and its arrivals if it has any.
    rate : float
        Mean arrivals per second, where arrivals are drawn. [1/s]
    arrivals : TrafficShape or str
        How arrivals are drawn.
    burst_factor, burst_s : float
        The high rate over the low one; mean length of a spell at either. [1, s]
    prompt_tokens, output_tokens, prompt_cv, output_cv : float
        Mean lengths and their coefficient of variation (lognormal; 0 for equal lengths). [tokens]
    eos : float
        Chance that a token is the last, below the stated output length. [1]
    """

    requests: int | None = 1000
    path: str | None = None
    rate: float = 1.0
    arrivals: TrafficShape | str = TrafficShape.POISSON
    burst_factor: float = 8.0
    burst_s: float = 30.0
    prompt_tokens: int = 1000
    output_tokens: int = 256
    prompt_cv: float = 0.0
    output_cv: float = 0.0
    eos: float = 0.0

    def __post_init__(self) -> None:
        if self.arrivals not in list(TrafficShape):
            raise ConfigError(
                f"unknown arrivals {self.arrivals!r}. Use one of {', '.join(TrafficShape)}."
            )
        if self.requests is None and self.path is None:
            raise ConfigError("drawn traffic needs a number of requests")
        if self.requests is not None and self.requests < 1:
            raise ConfigError(f"requests={self.requests} must be at least 1")
        for name, least in (("rate", 0.0), ("burst_s", 0.0), ("burst_factor", 0.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > least):
                raise ConfigError(f"{name}={value:g} must be a positive number")
        for name in ("prompt_cv", "output_cv"):
            if not 0.0 <= getattr(self, name) <= 100.0:
                raise ConfigError(f"{name}={getattr(self, name):g} is outside 0 to 100")
        if not 0.0 <= self.eos < 1.0:
            raise ConfigError(f"eos={self.eos:g} is not a chance below 1")

    def chunks(self, seed: int) -> Iterator[RequestChunk]:
        """The requests in order, at most 8,192 at once; the same for the same seed."""
        rng = np.random.default_rng([seed, 0])
        clock = _Clock(self, rng)
        source = self._drawn(rng) if self.path is None else self._recorded()
        for arrival, prompt, output in source:
            ends = rng.geometric(self.eos, output.size) if self.eos else output
            drawn = clock.next(output.size) if arrival is None else arrival
            yield RequestChunk(drawn, prompt, np.minimum(output, ends))

    def _drawn(self, rng: np.random.Generator) -> Iterator[tuple[None, Counts, Counts]]:
        assert self.requests is not None
        for start in range(0, self.requests, CHUNK):
            size = min(CHUNK, self.requests - start)
            prompt = lengths(rng, self.prompt_tokens, self.prompt_cv, size)
            yield None, prompt, lengths(rng, self.output_tokens, self.output_cv, size)

    def _recorded(self) -> Iterator[tuple[Array | None, Counts, Counts]]:
        assert self.path is not None
        rows = itertools.islice(trace_rows(self.path), self.requests)
        empty = True
        while block := list(itertools.islice(rows, CHUNK)):
            empty = False
            arrivals, prompts, outputs = zip(*block, strict=True)
            timed = [arrival is not None for arrival in arrivals]
            if any(timed) and not all(timed):
                raise ConfigError(f"{self.path}: some requests have an arrival and some have none")
            times = np.array(arrivals, float) if all(timed) else None
            yield times, np.array(prompts, np.int64), np.array(outputs, np.int64)
        if empty:
            raise ConfigError(f"{self.path}: there are no requests in it")


def lengths(rng: np.random.Generator, mean: float, cv: float, size: int) -> Counts:
    """Whole lengths of at least 1: all equal at `cv` 0, else lognormal with that mean."""
    if cv == 0.0:
        return np.full(size, round(mean), np.int64)
    sigma = math.sqrt(math.log1p(cv * cv))
    drawn = rng.lognormal(math.log(mean) - 0.5 * sigma * sigma, sigma, size)
    return np.maximum(np.rint(drawn), 1).astype(np.int64)


class _Clock:
    """Arrivals, chunk after chunk."""

    def __init__(self, traffic: Traffic, rng: np.random.Generator) -> None:
        self.traffic, self.rng, self.now = traffic, rng, 0.0
        self.high, self.spell_left = True, 0.0

    def next(self, size: int) -> Array:
        kind, rate = self.traffic.arrivals, self.traffic.rate
        if kind == TrafficShape.AT_ONCE:
            return np.zeros(size)
        if kind == TrafficShape.BURSTY:
            return self._bursts(size)
        gaps = (
            np.full(size, 1.0) if kind == TrafficShape.REGULAR else self.rng.exponential(1.0, size)
        )
        times = self.now + np.cumsum(gaps / rate)
        self.now = float(times[-1])
        return times

    def _bursts(self, size: int) -> Array:
        """Unit-rate arrivals in the time that runs fast in a burst: exact for two-rate Poisson."""
        low = 2.0 * self.traffic.rate / (1.0 + self.traffic.burst_factor)
        due = np.cumsum(self.rng.exponential(1.0, size))
        times, passed = np.empty(size), 0.0
        first = 0
        while first < size:
            rate = low * (self.traffic.burst_factor if self.high else 1.0)
            if self.spell_left <= 0.0:
                self.spell_left = self.rng.exponential(self.traffic.burst_s)
            until = int(np.searchsorted(due, passed + rate * self.spell_left, side="right"))
            times[first:until] = self.now + (due[first:until] - passed) / rate
            if until == size:
                step = (due[-1] - passed) / rate
                self.now, self.spell_left = self.now + step, self.spell_left - step
            else:
                passed += rate * self.spell_left
                self.now += self.spell_left
                self.high, self.spell_left = not self.high, 0.0
            first = until
        return times
