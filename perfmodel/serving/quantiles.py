"""Statistics of fixed size, however long the simulation: quantiles, shares of time, a timeline."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_LOWEST_S, _BINS_PER_E = 1e-7, 200  # bins of 0.5 %
_BINS = 7_000  # up to 1e-7 * exp(35) s, some years
QUANTILES = (0.5, 0.9, 0.95, 0.99)


class Durations:
    """Mean, spread, extremes and quantiles of seconds; a quantile is within 0.25 %."""

    def __init__(self) -> None:
        self.count, self.total_s, self.squares = 0, 0.0, 0.0
        self.least_s, self.most_s = math.inf, 0.0
        self._bins = np.zeros(_BINS, np.int64)

    def add(self, seconds: Array) -> None:
        """Count an array of durations."""
        if not seconds.size:
            return
        self.count += seconds.size
        self.total_s += float(seconds.sum())
        self.squares += float(np.dot(seconds, seconds))
        self.least_s = min(self.least_s, float(seconds.min()))
        self.most_s = max(self.most_s, float(seconds.max()))
        place = np.log(np.maximum(seconds, _LOWEST_S) / _LOWEST_S) * _BINS_PER_E
        index = np.minimum(place.astype(np.int64), _BINS - 1)
        self._bins += np.bincount(index, minlength=_BINS)

    @property
    def mean_s(self) -> float:
        """Mean, NaN where nothing was counted."""
        return self.total_s / self.count if self.count else math.nan

    @property
    def standard_error_s(self) -> float:
        """Of the mean, as if the durations were independent."""
        if self.count < 2:
            return math.nan
        variance = max(self.squares / self.count - self.mean_s**2, 0.0)
        return math.sqrt(variance / (self.count - 1))

    def quantile_s(self, share: float) -> float:
        """The duration that `share` of all do not exceed."""
        if not self.count:
            return math.nan
        index = int(np.searchsorted(np.cumsum(self._bins), share * self.count, side="left"))
        middle = _LOWEST_S * math.exp((index + 0.5) / _BINS_PER_E)
        return min(max(middle, self.least_s), self.most_s)


class Timeline:
    """Time-weighted means over equal spans of the clock; spans double when the clock outgrows them.

    Attributes
    ----------
    span_s : float
        Width of one span. [s]
    sums : list of list of float
        Per span: busy seconds, and batch, KV share and γ times seconds, and tokens.
    """

    COLUMNS = ("busy_s", "batch", "kv_share", "gamma", "tokens")

    def __init__(self, spans: int = 512, span_s: float = 1.0 / 64) -> None:
        self.span_s, self._spans = span_s, spans
        self.sums = [[0.0] * len(self.COLUMNS) for _ in range(spans)]

    def add(
        self, start_s: float, seconds: float, batch: int, kv_share: float, gamma: int, tokens: float
    ) -> None:
        """Count rounds that began at `start_s`; what crosses into other spans is split."""
        while start_s + seconds >= self._spans * self.span_s:
            self._coarsen()
        left, rate = seconds, tokens / seconds
        while left > 0.0:
            index = int(start_s / self.span_s)
            end = (index + 1) * self.span_s
            part = left if start_s + left <= end else min(left, max(end - start_s, 1e-12))
            row = self.sums[min(index, self._spans - 1)]
            row[0] += part
            row[1] += batch * part
            row[2] += kv_share * part
            row[3] += gamma * part
            row[4] += rate * part
            left -= part
            start_s = start_s + part if part < left + part else end

    def rows(self, until_s: float) -> list[dict[str, float]]:
        """One dict a span: start, busy share, mean batch, KV share and γ while busy, tokens/s."""
        found = []
        for index in range(min(int(until_s / self.span_s) + 1, self._spans)):
            busy, batch, kv, gamma, tokens = self.sums[index]
            on = busy or 1.0
            found.append(
                {
                    "start_s": index * self.span_s,
                    "busy_share": busy / self.span_s,
                    "batch": batch / on,
                    "kv_share": kv / on,
                    "gamma": gamma / on,
                    "tokens_per_s": tokens / self.span_s,
                }
            )
        return found

    def _coarsen(self) -> None:
        pairs = zip(self.sums[::2], self.sums[1::2], strict=True)
        merged = [[a + b for a, b in zip(left, right, strict=True)] for left, right in pairs]
        empty = [[0.0] * len(self.COLUMNS) for _ in range(self._spans - len(merged))]
        self.sums, self.span_s = merged + empty, 2.0 * self.span_s
