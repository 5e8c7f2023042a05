"""`BreakEven`: the batches or contexts at which speculation clearly pays, and why they end.

Kernel times are interpolated between powers of two, and step times jump where rows pass a kernel's
tile or data-parallel groups become unequal. Ranges and gaps that are narrower than `RESOLUTION` are
therefore not stated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from perfmodel._typing import Bools, Floats

RESOLUTION = 0.25  # of a value
Span = tuple[int, int]  # first and last value


class End(StrEnum):
    """Why larger values are not in a range."""

    MEMORY = "memory"  # they do not fit
    LIMITS = "limits"  # they miss the limits
    GAIN = "gain"  # their gain is not clear
    TRIED = "tried"  # they were not tried


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """The ranges of values at which speculation clearly pays.

    They do not depend on the scenario's own value. `lowest` and `highest` are the ends of what was
    tried, `exact` are all ranges, and `ranges` those that are stated. `from_value` and `until` are
    the ends of the widest: None if speculation never pays, and if it pays up to the largest value
    that was tried and fits in memory. `end` says why it ends, and `most_gamma` is the largest γ
    that fits at its last value if larger values do not fit. `clear` is whether the gain is clear
    in all ranges; otherwise plain decoding misses the limits at some of their values.
    """

    lowest: int
    highest: int
    exact: tuple[Span, ...] = ()
    ranges: tuple[Span, ...] = ()
    end: End | None = None
    most_gamma: int | None = None
    clear: bool = True

    @property
    def from_value(self) -> int | None:
        """The first value of the widest range."""
        return widest(self.ranges)[0] if self.ranges else None

    @property
    def until(self) -> int | None:
        """The last value of the widest range, unless larger ones do not fit or were not tried."""
        if self.end in (None, End.MEMORY, End.TRIED):
            return None
        return widest(self.ranges)[1]

    def contains(self, value: int) -> bool:
        """Whether speculation pays at a value."""
        return _holds(self.exact, min(value, self.highest))

    def is_exception(self, value: int) -> bool:
        """Whether the ranges that are stated leave out a value, or include it, wrongly."""
        return self.contains(value) != _holds(self.ranges, min(value, self.highest))

    def where(self, unit: str, gamma: int) -> str:
        """The stated ranges and the reason of the end in words, for a plan with this γ.

        `unit` is "batch", for example.
        """
        if not self.ranges:
            return f"at {'hardly any' if self.exact else 'no'} {unit} that fits"
        first, last = widest(self.ranges)
        if len(self.ranges) == 1 and first == self.lowest and self.until is None:
            return f"at every {unit} that fits"
        *spans, final = (self._span(span, unit) for span in self.ranges)
        ends = f"{', '.join(spans)} and {final}" if spans else final
        if self.ranges[-1] != (first, last) or self.end in (None, End.TRIED):
            return ends
        smaller = ""
        if self.most_gamma is not None and self.most_gamma < gamma:
            smaller = f" (with γ={self.most_gamma})"
        beyond = {
            End.MEMORY: f", the most that fits in memory{smaller}",
            End.LIMITS: ", beyond which it misses the limits",
            End.GAIN: ", beyond which the gain is not clear",
        }
        return f"{ends}{beyond[self.end]}"

    def _span(self, span: Span, unit: str) -> str:
        first, last = span
        if first == last:
            return f"at {unit} {first:,}"
        if self.end is End.TRIED and span == widest(self.ranges):
            return f"from {unit} {first:,}"
        if first == self.lowest:
            return f"up to {unit} {last:,}"
        return f"from {unit} {first:,} to {last:,}"


def paying_ranges(
    values: Floats, *, pays: Bools, clear: Bools, possible: Bools, fits: Bools
) -> BreakEven:
    """The ranges of ascending values, each of which pays, has a clear gain, meets the limits, fits.

    All arrays have one dimension and the length of `values`.
    """
    exact = tuple(_spans(values, pays))
    ranges = tuple(span for span in _without_gaps(exact) if _is_wide(*span))
    end = None
    if ranges:
        index = int(np.searchsorted(values, widest(ranges)[1])) + 1
        if index == len(values):
            end = End.TRIED
        elif not fits[index]:
            end = End.MEMORY
        else:
            end = End.GAIN if possible[index] else End.LIMITS
    return BreakEven(
        lowest=int(values[0]),
        highest=int(values[-1]),
        exact=exact,
        ranges=ranges,
        end=end,
        clear=bool(np.all(clear[pays])),
    )


def changes(values: Floats, *conditions: Bools) -> Floats:
    """The whole numbers between neighbouring values at which a condition differs."""
    differ = np.any([condition[1:] != condition[:-1] for condition in conditions], axis=0)
    between = [
        np.arange(low + 1.0, high)
        for low, high in zip(values[:-1][differ], values[1:][differ], strict=True)
    ]
    return np.concatenate([np.zeros(0), *between])


def _spans(values: Floats, pays: Bools) -> Iterator[Span]:
    """The first and last value of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], pays, [False]])))
    for first, after in zip(edges[::2], edges[1::2], strict=True):
        yield int(values[first]), int(values[after - 1])


def _without_gaps(spans: Iterable[Span]) -> list[Span]:
    joined: list[Span] = []
    for first, last in spans:
        if joined and not _is_wide(joined[-1][1] + 1, first - 1):
            first = joined.pop()[0]
        joined.append((first, last))
    return joined


def _is_wide(first: int, last: int) -> bool:
    return last + 1 > (1.0 + RESOLUTION) * first


def widest(spans: Iterable[Span]) -> Span:
    """The widest in proportion to its values; of equally wide ones, the first."""
    return max(spans, key=lambda span: (span[1] + 1) / span[0])


def _holds(spans: Iterable[Span], value: int) -> bool:
    return any(first <= value <= last for first, last in spans)
