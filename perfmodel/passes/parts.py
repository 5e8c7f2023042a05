"""`StepTime`: the time of one pass, divided into parts that a profiler can time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from perfmodel._typing import Bools, Floats
from perfmodel.display import html_table, one_line, seconds_range
from perfmodel.specs.labels import Bound, Origin

WEAKEST_FIRST = (Origin.EXTRAPOLATED, Origin.ASSUMED, Origin.DATASHEET, Origin.FITTED)
LEAST_SHARE = 0.02  # of a pass, below which the origin of a part does not matter
# The group of each part, as shown in reports.
_PARTS = {
    "linear": (
        "qkv_proj", "qkv_down_proj", "q_up_proj", "k_absorb", "v_absorb", "o_proj",
        "linear_in_proj", "linear_out_proj", "gate_up_proj", "down_proj", "router",
        "shared_gate_up_proj", "shared_down_proj", "lm_head", "fusion_proj",
    ),
    "experts": ("experts", "permute"),
    "attention": (
        "attention", "windowed_attention", "latent_attention", "linear_attention", "kv_selection",
    ),
    "comm": ("all_reduce", "all_to_all", "gather"),
    "elementwise": ("embedding", "norm", "rotary", "activation", "sampling"),
    "overhead": ("launch", "host"),
}  # fmt: skip
GROUPS = {part: group for group, parts in _PARTS.items() for part in parts}


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """One part of a pass, over all layers.

    `seconds` is the prediction. `compute_s` and `memory_s` are the times at the datasheet's peaks,
    which determine what bounds the part. `in_range` computes where the kernel curve is not
    extrapolated; only reports call it. Arrays broadcast to one shape.
    """

    name: str
    seconds: Floats
    compute_s: Floats
    memory_s: Floats
    traffic: Bound  # what is moved: weights, KV, activations, link or host
    origin: Origin  # fitted, extrapolated, assumed or datasheet
    in_range: Callable[[], Bools] = lambda: np.ones((), bool)

    @property
    def bound(self) -> NDArray[np.str_]:
        """The `Bound` at each point."""
        if self.traffic == Bound.HOST:
            return np.full(np.shape(self.seconds), Bound.HOST)
        floor = np.maximum(self.compute_s, self.memory_s)
        by_roofline = np.where(self.compute_s > self.memory_s, Bound.COMPUTE, self.traffic)
        # A part that runs below a fifth of both peaks is bound by latency.
        return np.where(floor < 0.2 * self.seconds, Bound.LATENCY, by_roofline)

    def origin_at(self) -> Origin:
        """The origin, which is "extrapolated" if any point is outside the measured range."""
        if self.origin == Origin.FITTED and not np.all(self.in_range()):
            return Origin.EXTRAPOLATED
        return self.origin

    @property
    def is_weak(self) -> Bools:
        """Where the part is extrapolated or assumed."""
        if self.origin == Origin.FITTED:
            return ~self.in_range()
        return np.full((), self.origin in (Origin.EXTRAPOLATED, Origin.ASSUMED))


@dataclass(frozen=True, eq=False)
class StepTime:
    """The parts of one forward pass, and sums over them."""

    parts: tuple[Part, ...]

    @cached_property
    def total_s(self) -> Floats:
        """Seconds of the pass."""
        return _sum([part.seconds for part in self.parts])

    def group_s(self, group: str) -> Floats:
        """Seconds of one group of `GROUPS`, such as "linear" or "attention"."""
        return _sum([part.seconds for part in self.parts if GROUPS[part.name] == group])

    def __repr__(self) -> str:
        groups = {group: seconds_range(self.group_s(group)) for group in self._groups()}
        return one_line("StepTime", {"total": seconds_range(self.total_s), **groups})

    def _repr_html_(self) -> str:
        rows = [(part.name, seconds_range(part.seconds)) for part in self.parts]
        return html_table([*rows, ("total", seconds_range(self.total_s))])

    def _groups(self) -> list[str]:
        return list(dict.fromkeys(GROUPS[part.name] for part in self.parts))

    def part(self, name: str) -> Part:
        """The part of that name."""
        return next(part for part in self.parts if part.name == name)

    @property
    def origin(self) -> Origin:
        """The weakest origin among the parts that take at least 2 % of the pass."""
        least = LEAST_SHARE * self.total_s
        names = {p.origin_at() for p in self.parts if np.any(p.seconds >= least)}
        return next(origin for origin in WEAKEST_FIRST if origin in names)

    @property
    def outside(self) -> list[str]:
        """Fitted parts of at least 2 % of the pass that are outside the measured sizes anywhere."""
        least = LEAST_SHARE * self.total_s
        return [
            part.name
            for part in self.parts
            if part.origin == Origin.FITTED and np.any(part.is_weak & (part.seconds >= least))
        ]

    @property
    def is_weak(self) -> Bools:
        """Where a part that takes at least 2 % of the pass is extrapolated or assumed."""
        least, weak = LEAST_SHARE * self.total_s, np.zeros((), bool)
        for part in self.parts:
            if np.any(outside := part.is_weak):
                weak = weak | (outside & (part.seconds >= least))
        return weak


def weighted_mean(first: StepTime, later: StepTime, *, share: Floats) -> StepTime:
    """The mean of two passes with the same parts, in which `first` has the weight `share`."""

    def mean(a: Floats, b: Floats) -> Floats:
        return np.asarray(share * a + (1.0 - share) * b)

    def both(a: Part, b: Part) -> Part:
        return replace(
            b,
            seconds=mean(a.seconds, b.seconds),
            compute_s=mean(a.compute_s, b.compute_s),
            memory_s=mean(a.memory_s, b.memory_s),
            in_range=lambda: np.asarray(a.in_range() & b.in_range()),
        )

    return StepTime(tuple(both(a, b) for a, b in zip(first.parts, later.parts, strict=True)))


def _sum(arrays: list[Floats]) -> Floats:
    """The sum, adding small arrays first so that fewer additions broadcast to the full shape."""
    return reduce(np.add, sorted(arrays, key=lambda a: a.size), np.zeros(()))
