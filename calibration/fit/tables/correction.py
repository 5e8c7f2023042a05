"""Fit a physical form and a smooth correction to measured cells, and leave parts of them out.

The parameters of the form are found by robust least squares on ln(time). The correction is a
`LogTable` over a few knots per axis, found by least squares with a penalty on differences between
neighbouring knots, so that knots without cells take the value of their neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.fit.errors import Errors
from perfmodel.kernels import LogTable

Array = NDArray[np.float64]

LEAST_NET = 0.3  # share of a cell's time that is left for the form, at least
RIDGE = 0.1  # weight of a knot's value, as of one cell with that error

# The form's seconds for parameter values and cells, in their order.
Form = Callable[[Mapping[str, float], pd.DataFrame], Array]


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """Cells with a column `seconds`, a form, and the axes of its correction.

    `parameters` are (start, lower, upper) by name; `axes` are knots by column; `smoothness` is the
    weight of a difference between neighbouring knots, relative to one cell. With `rising`, the
    correction never falls along an axis. `added` are seconds that the correction does not scale.
    `known` gives further values, found from the cells without the form. `curve` are the seconds of
    the finished curve, if they differ from form times correction.
    """

    form: Form
    parameters: Mapping[str, tuple[float, float, float]]
    axes: Mapping[str, Sequence[float]]
    smoothness: float
    rising: bool = False
    added: Form | None = None
    known: Callable[[pd.DataFrame], Mapping[str, float]] | None = None
    curve: Callable[[Fitted, pd.DataFrame], Array] | None = None

    def added_seconds(self, values: Mapping[str, float], cells: pd.DataFrame) -> Array | float:
        """The seconds that the correction does not scale."""
        return 0.0 if self.added is None else self.added(values, cells)

    @property
    def knots(self) -> tuple[Array, ...]:
        """The knots of each axis."""
        return tuple(np.asarray(values, float) for values in self.axes.values())


@dataclass(frozen=True, eq=False)
class Fitted:
    """Parameter values, the correction, and the smallest and largest value on each of its axes."""

    values: dict[str, float]
    table: LogTable
    ranges: tuple[tuple[float, float], ...] = ()


def fit(problem: Problem, cells: pd.DataFrame, start: Mapping[str, float] | None = None) -> Fitted:
    """Fit the parameters and then the correction of the remaining error."""
    from scipy.optimize import least_squares

    names = list(problem.parameters)
    if not names:
        return Fitted({}, smooth_table(problem, cells, problem.form({}, cells)))
    first, low, high = (np.log([problem.parameters[n][i] for n in names]) for i in range(3))
    if start is not None:
        first = np.clip(np.log([start[n] for n in names]), low, high)
    seconds = cells.seconds.to_numpy()
    known = {} if problem.known is None else dict(problem.known(cells))

    def misfit(logs: Array) -> Array:
        values = known | dict(zip(names, np.exp(logs), strict=True))
        whole = problem.form(values, cells) + problem.added_seconds(values, cells)
        return np.asarray(np.log(whole / seconds))

    best = least_squares(misfit, first, bounds=(low - 1e-9, high + 1e-9), loss="soft_l1",
                         f_scale=0.1)  # fmt: skip
    values = known | {n: float(f"{v:.4g}") for n, v in zip(names, np.exp(best.x), strict=True)}
    net = np.maximum(seconds - problem.added_seconds(values, cells), LEAST_NET * seconds)
    table = smooth_table(problem, cells.assign(seconds=net), problem.form(values, cells))
    ranges = tuple((float(cells[x].min()), float(cells[x].max())) for x in problem.axes)
    return Fitted(values, table, ranges)


def smooth_table(problem: Problem, cells: pd.DataFrame, base: Array) -> LogTable:
    """The correction that takes `base` to the measured times."""
    from scipy.sparse import vstack
    from scipy.sparse.linalg import lsqr

    shape = tuple(k.size for k in problem.knots)
    empty = LogTable(problem.knots, np.zeros(shape))
    design = _design(empty, cells, problem)
    smooth = problem.smoothness * _differences(shape)
    rows = vstack([design, smooth, RIDGE * _identity(int(np.prod(shape)))]).tocsr()
    target = np.zeros(rows.shape[0])
    target[: len(cells)] = np.log(cells.seconds.to_numpy() / base)
    values = lsqr(rows, target)[0].reshape(shape)
    if problem.rising:
        values = _rising(rows, target, shape, values)
    return LogTable(problem.knots, np.round(values, 3))


def _rising(rows: Any, target: Array, shape: tuple[int, ...], start: Array) -> Array:
    """The least-squares solution that never falls along an axis."""
    from scipy.optimize import LinearConstraint, minimize

    normal, right = (rows.T @ rows).toarray(), rows.T @ target
    steps = _differences(shape).toarray()
    solution = minimize(
        lambda x: 0.5 * x @ normal @ x - right @ x,
        start.ravel(),
        jac=lambda x: normal @ x - right,
        method="SLSQP",
        constraints=LinearConstraint(steps, 0.0, np.inf),
        options={"maxiter": 500},
    )
    values = solution.x.reshape(shape)
    for axis in range(values.ndim):  # rounding and the solver's tolerance
        values = np.maximum.accumulate(values, axis)
    return np.asarray(values)


def predict(problem: Problem, fitted: Fitted, cells: pd.DataFrame) -> Array:
    """Seconds of each cell."""
    if problem.curve is not None:
        return problem.curve(fitted, cells)
    factor = fitted.table.factor(*(cells[name].to_numpy(float) for name in problem.axes))
    added = problem.added_seconds(fitted.values, cells)
    return np.asarray(problem.form(fitted.values, cells) * factor + added)


def least_of_larger(cells: Array, others: Array, seconds: Array) -> Array:
    """The least of the seconds (m,) of others (m, sizes) that are as large as a cell in each size.

    For cells (n, sizes), of shape (n,); infinite where there are none.
    """
    covers = (others >= cells[:, None]).all(axis=2)
    return np.asarray(np.where(covers, seconds, np.inf).min(axis=1))


def held_out(
    problem: Problem, fitted: Fitted, cells: pd.DataFrame, column: str, *, inner: bool = False
) -> pd.Series:
    """Relative error of each cell when all cells with its value of `column` are left out.

    Parameters and correction are fitted again without them. With `inner`, the smallest and the
    largest value are not left out, so that every prediction is an interpolation.
    """
    out = pd.Series(np.nan, index=cells.index)
    values = sorted(cells[column].unique())
    for value in values[1:-1] if inner else values:
        part, rest = cells[cells[column] == value], cells[cells[column] != value]
        again = fit(problem, rest, fitted.values)
        out[part.index] = predict(problem, again, part) / part.seconds - 1.0
    return out


def errors_of(
    name: str,
    cells: pd.DataFrame,
    ways: Mapping[str, pd.Series],
    regions: Callable[[Mapping[str, object]], Sequence[str]],
) -> Errors:
    """`Errors` of a frame of cells; NaN means that a cell was not left out."""
    errors = Errors(name, regions=lambda cell: regions(cell))
    records = [{str(k): v for k, v in row.items()} for row in cells.to_dict("records")]
    for way, values in ways.items():
        for record, error in zip(records, values, strict=True):
            if np.isfinite(error):
                errors.add(way, record, float(error))
    return errors


def _design(table: LogTable, cells: pd.DataFrame, problem: Problem):  # type: ignore[no-untyped-def]
    """The interpolation weights of every cell, (cells, knots)."""
    from scipy.sparse import csr_matrix

    row = np.arange(len(cells))
    parts = list(table.corners(*(cells[name].to_numpy(float) for name in problem.axes)))
    index = np.concatenate([np.broadcast_to(i, row.shape) for i, _ in parts])
    weight = np.concatenate([np.broadcast_to(w, row.shape) for _, w in parts])
    places = (np.tile(row, len(parts)), index)
    return csr_matrix((weight, places), shape=(len(cells), table.values.size))


def _differences(shape: tuple[int, ...]):  # type: ignore[no-untyped-def]
    """One row per pair of neighbouring knots."""
    from scipy.sparse import csr_matrix

    index = np.arange(int(np.prod(shape))).reshape(shape)
    pairs = []
    for axis in range(len(shape)):
        along = np.moveaxis(index, axis, 0)
        pairs.append(np.stack([along[1:].ravel(), along[:-1].ravel()]))
    right, left = np.concatenate(pairs, axis=1)
    row = np.arange(right.size)
    signs = np.concatenate([np.ones(right.size), -np.ones(left.size)])
    places = (np.concatenate([row, row]), np.concatenate([right, left]))
    return csr_matrix((signs, places), shape=(right.size, index.size))


def _identity(size: int):  # type: ignore[no-untyped-def]
    from scipy.sparse import identity

    return identity(size)
