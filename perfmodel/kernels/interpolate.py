"""Interpolation in logarithms on a grid of knots; axes that broadcast stay unexpanded."""

from __future__ import annotations

import numpy as np

from perfmodel._typing import Floats, Ints


def locate(x: Floats, knots: Floats) -> tuple[Ints, Floats, Floats]:
    """Left knot, weight of the right one in ln(x), and ln(x / last knot) where beyond it."""
    log_knots, log_x = np.log(knots), np.log(np.maximum(x, knots[0]))
    left = np.minimum(np.searchsorted(log_knots, log_x, side="right") - 1, len(knots) - 2)
    weight = (log_x - log_knots[left]) / (log_knots[left + 1] - log_knots[left])
    return left, np.minimum(weight, 1.0), np.maximum(log_x - log_knots[-1], 0.0)


def log_weights(x: Floats, knots: Floats) -> Floats:
    """Interpolation weights (len(x), len(knots)) in ln(x), held flat outside."""
    if len(knots) == 1:
        return np.ones((len(x), 1))
    left, weight, _ = locate(x, knots)
    weights = np.zeros((len(x), len(knots)))
    index = np.arange(len(x))
    weights[index, left] = 1.0 - weight
    weights[index, left + 1] = weight
    return weights


def bilinear(
    table: Floats,
    u: Ints,
    wu: Floats,
    k: Ints,
    wk: Floats,
    plane: Ints | None = None,
) -> Floats:
    """`table[(plane,) u, k]` interpolated; open axes stay open until the four look-ups."""
    columns = table.shape[-1]
    flat = table.reshape(-1)
    start = u * columns + k
    if plane is not None:
        start = start + plane * (table.shape[-2] * columns)
    low = flat[start] * (1.0 - wk) + flat[start + 1] * wk
    high = flat[start + columns] * (1.0 - wk) + flat[start + columns + 1] * wk
    return np.asarray(low + (high - low) * wu)
