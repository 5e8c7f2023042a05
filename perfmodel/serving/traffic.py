"""`Traffic`: arrival times and lengths of requests, random or recorded."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from perfmodel._typing import Counts, Floats
from perfmodel.errors import ConfigError, either
from perfmodel.serving.traces import first_rows

CHUNK = 8192
MOST_REQUESTS = 10_000_000
LEAST_PER_PERIOD = 0.01  # requests in a period of bursty arrivals, which are drawn one by one
Blocks = tuple[tuple[int, ...], ...] | None
_Source = tuple[Floats | None, Counts, Counts, Blocks, int]


class TrafficShape(StrEnum):
    """How arrivals are drawn; "bursty" is Poisson with two alternating rates."""

    POISSON = "poisson"
    BURSTY = "bursty"
    REGULAR = "regular"
    AT_ONCE = "at-once"


@dataclass(frozen=True, eq=False, slots=True)
class RequestChunk:
    """Consecutive requests: non-decreasing arrivals in seconds, prompts and outputs in tokens.

    `blocks` are ids of each prompt's blocks of `block_tokens` tokens, or None if they are unknown.
    """

    arrival_s: Floats
    prompt_tokens: Counts
    output_tokens: Counts
    blocks: Blocks = None
    block_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """A stream of requests, drawn or recorded."""

    requests: int | None = 1000  # None for all in `path`
    path: str | None = None  # a recorded trace (`serving.traces`): lengths, possibly arrivals
    rate: float = 1.0  # mean of drawn arrivals [1/s]
    arrivals: TrafficShape | str = TrafficShape.POISSON
    burst_factor: float = 8.0  # the high rate over the low one
    burst_s: float = 30.0  # mean duration of a period at either rate
    prompt_tokens: int = 1000  # the mean
    output_tokens: int = 256
    prompt_cv: float = 0.0  # coefficient of variation (lognormal; 0 for equal lengths)
    output_cv: float = 0.0
    eos: float = 0.0  # probability that a token ends its sequence before the output length
    prefix_hit_rate: float = 0.0  # cached share of each prompt, where prefixes are not recorded

    def __post_init__(self) -> None:
        if self.arrivals not in list(TrafficShape):
            raise ConfigError(
                f"arrivals={str(self.arrivals)!r} is not valid; use {either(TrafficShape)}"
            )
        if self.requests is None and self.path is None:
            raise ConfigError("random traffic needs a number of requests; add requests")
        if self.requests is not None and not 1 <= self.requests <= MOST_REQUESTS:
            raise ConfigError(f"requests={self.requests} is not valid; use 1 to {MOST_REQUESTS:,}")
        for name in ("rate", "burst_s", "burst_factor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise ConfigError(f"{name}={value:g} must be a positive number")
        if self.arrivals == TrafficShape.BURSTY and self.rate * self.burst_s < LEAST_PER_PERIOD:
            raise ConfigError(
                f"burst_s={self.burst_s:g} is too short for rate={self.rate:g}: with so few "
                f"requests per period, arrivals are Poisson; use arrivals=poisson or a longer "
                f"burst_s"
            )
        for name in ("prompt_cv", "output_cv"):
            if not 0.0 <= getattr(self, name) <= 100.0:
                raise ConfigError(f"{name}={getattr(self, name):g} is not valid; use 0 to 100")
        if not 0.0 <= self.prefix_hit_rate < 1.0:
            raise ConfigError(
                f"prefix_hit_rate={self.prefix_hit_rate:g} is not valid; use 0 to below 1"
            )
        if not 0.0 <= self.eos < 1.0:
            raise ConfigError(
                f"eos={self.eos:g} is not valid; use a probability of at least 0 and below 1"
            )

    def chunks(self, seed: int, skipped: Counter[str] | None = None) -> Iterator[RequestChunk]:
        """The requests in order, in chunks of at most 8,192; reproducible for a seed.

        Adds to `skipped` how many requests of the trace are left out, by reason.
        """
        rng, skipped = np.random.default_rng([seed, 0]), Counter() if skipped is None else skipped
        clock = _Clock(self, rng)
        source = self._drawn(rng) if self.path is None else self._recorded(skipped)
        for arrival, prompt, output, blocks, block_tokens in source:
            ends = rng.geometric(self.eos, output.size) if self.eos else output
            drawn = clock.next(output.size) if arrival is None else arrival
            yield RequestChunk(drawn, prompt, np.minimum(output, ends), blocks, block_tokens)

    def _drawn(self, rng: np.random.Generator) -> Iterator[_Source]:
        assert self.requests is not None
        for start in range(0, self.requests, CHUNK):
            size = min(CHUNK, self.requests - start)
            prompt = lengths(rng, self.prompt_tokens, self.prompt_cv, size)
            yield None, prompt, lengths(rng, self.output_tokens, self.output_cv, size), None, 0

    def _recorded(self, skipped: Counter[str]) -> Iterator[_Source]:
        assert self.path is not None
        rows = first_rows(self.path, self.requests, skipped)
        empty = True
        while block := list(itertools.islice(rows, CHUNK)):
            empty = False
            arrivals, prompts, outputs, blocks, sizes = zip(*block, strict=True)
            times = None if arrivals[0] is None else np.array(arrivals, float)
            lengths = np.array(prompts, np.int64), np.array(outputs, np.int64)
            if not any(blocks):
                yield times, *lengths, None, 0
                continue
            if self.prefix_hit_rate:
                raise ConfigError(
                    f"{self.path} records the prefixes that requests share (hash_ids); remove "
                    f"prefix_hit_rate={self.prefix_hit_rate:g}"
                )
            yield times, *lengths, blocks, max(sizes)
        if empty:
            reasons = "".join(f"; left out: {n:,} with {why}" for why, n in skipped.items())
            raise ConfigError(f"{self.path} contains no requests{reasons}")


def lengths(rng: np.random.Generator, mean: float, cv: float, size: int) -> Counts:
    """Whole lengths of at least 1 with a given mean, equal for `cv` 0 and otherwise lognormal."""
    if cv == 0.0:
        return np.full(size, round(mean), np.int64)
    sigma = math.sqrt(math.log1p(cv * cv))
    drawn = rng.lognormal(math.log(mean) - 0.5 * sigma * sigma, sigma, size)
    return np.maximum(np.rint(drawn), 1).astype(np.int64)


class _Clock:
    """Draws arrival times for one chunk after another."""

    def __init__(self, traffic: Traffic, rng: np.random.Generator) -> None:
        self.traffic, self.rng, self.now = traffic, rng, 0.0
        self.high, self.period_left = True, 0.0

    def next(self, size: int) -> Floats:
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

    def _bursts(self, size: int) -> Floats:
        """Two-rate Poisson arrivals: unit-rate ones on a clock that runs faster in bursts."""
        low = 2.0 * self.traffic.rate / (1.0 + self.traffic.burst_factor)
        due = np.cumsum(self.rng.exponential(1.0, size))
        times, passed = np.empty(size), 0.0
        first = 0
        while first < size:
            rate = low * (self.traffic.burst_factor if self.high else 1.0)
            if self.period_left <= 0.0:
                self.period_left = self.rng.exponential(self.traffic.burst_s)
            until = int(np.searchsorted(due, passed + rate * self.period_left, side="right"))
            times[first:until] = self.now + (due[first:until] - passed) / rate
            if until == size:
                step = (due[-1] - passed) / rate
                self.now, self.period_left = self.now + step, self.period_left - step
            else:
                passed += rate * self.period_left
                self.now += self.period_left
                self.high, self.period_left = not self.high, 0.0
            first = until
        return times
