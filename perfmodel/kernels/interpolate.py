"""Interpolation in logarithms on a grid of knots, without expanding broadcast axes."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from perfmodel._typing import Floats, Ints
from perfmodel.errors import ConfigError


def locate(x: Floats, knots: Floats) -> tuple[Ints, Floats, Floats]:
    """Index of the left knot, weight of the right one, and ln(x / last knot) beyond the last."""
    log_knots, log_x = np.log(knots), np.log(np.maximum(x, knots[0]))
    left = np.minimum(np.searchsorted(log_knots, log_x, side="right") - 1, len(knots) - 2)
    weight = (log_x - log_knots[left]) / (log_knots[left + 1] - log_knots[left])
    return left, np.minimum(weight, 1.0), np.maximum(log_x - log_knots[-1], 0.0)


def log_weights(x: Floats, knots: Floats) -> Floats:
    """Interpolation weights (len(x), len(knots)) in ln(x), constant outside the knots."""
    if len(knots) == 1:
        return np.ones((len(x), 1))
    left, weight, _ = locate(x, knots)
    weights = np.zeros((len(x), len(knots)))
    index = np.arange(len(x))
    weights[index, left] = 1.0 - weight
    weights[index, left + 1] = weight
    return weights


def bilinear(
    table: Floats, u: Ints, wu: Floats, k: Ints, wk: Floats, plane: Ints | None = None
) -> Floats:
    """`table[(plane,) u, k]`, interpolated with weights `wu` and `wk` of the next indices."""
    columns = table.shape[-1]
    flat = table.reshape(-1)
    start = u * columns + k
    if plane is not None:
        start = start + plane * (table.shape[-2] * columns)
    low = flat[start] * (1.0 - wk) + flat[start + 1] * wk
    high = flat[start + columns] * (1.0 - wk) + flat[start + columns + 1] * wk
    return np.asarray(low + (high - low) * wu)


@dataclass(frozen=True, eq=False, slots=True)
class LogTable:
    """A correction in logarithms over one to four axes: `values[i, j, ...]` at knots on each axis.

    It is interpolated linearly in the logarithms of the coordinates and constant outside the knots.
    """

    knots: tuple[Floats, ...]
    values: Floats

    def __post_init__(self) -> None:
        shape = tuple(axis.size for axis in self.knots)
        if self.values.shape != shape:
            raise ConfigError(f"a table has shape {self.values.shape}; its knots need {shape}")

    def factor(self, *coordinates: Floats) -> Floats:
        """exp(value) at the coordinates, one broadcastable array per axis."""
        total = np.zeros(np.broadcast_shapes(*(np.shape(x) for x in coordinates)))
        for index, weight in self.corners(*coordinates):
            total = total + weight * self.values.reshape(-1)[index]
        return np.asarray(np.exp(total))

    def corners(self, *coordinates: Floats) -> Iterator[tuple[Ints, Floats]]:
        """Flat index and weight of each knot around the points."""
        places = [
            locate(np.asarray(x, float), k) for x, k in zip(coordinates, self.knots, strict=True)
        ]
        strides = [math.prod(self.values.shape[axis + 1 :]) for axis in range(len(places))]
        first = sum(left * stride for (left, _, _), stride in zip(places, strides, strict=True))
        shares = [(1.0 - share, share) for _, share, _ in places]
        for right in itertools.product((0, 1), repeat=len(places)):
            index = first + sum(map(operator.mul, right, strides))
            sides = (both[side] for both, side in zip(shares, right, strict=True))
            yield np.asarray(index), np.asarray(functools.reduce(operator.mul, sides))
