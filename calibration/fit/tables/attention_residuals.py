"""Residuals of the physical form as a table over knots, and errors of cells held out of it.

The columns of a frame of cells are group, units, tokens, kv_heads, `residual` (ln(time / form)),
`base_s`, `regroup_s`, `cold_s` and `stray`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from perfmodel.kernels import DecodeTable

Array = NDArray[np.float64]


def residual_table(cells: pd.DataFrame, groups: Array, units: Array, tokens: Array) -> Array:
    """Median residual at each knot without stray cells, (groups, units, tokens), without holes.

    A hole between measured knots is the mean of the interpolations along units and along tokens. A
    hole beyond the measured knots is the smaller of its neighbours on the measured side.
    """
    cells = cells[~cells.stray]
    on = cells[cells.group.isin(groups) & cells.units.isin(units) & cells.tokens.isin(tokens)]
    median = on.groupby(["group", "units", "tokens"]).residual.median()
    index = pd.MultiIndex.from_product([groups, units, tokens])
    cube = median.reindex(index).to_numpy().reshape(len(groups), len(units), len(tokens))
    axes = np.log(units), np.log(tokens)
    return np.stack([fill_plane(plane, *axes) for plane in cube])


def held_out(cells: pd.DataFrame, table: DecodeTable, column: str) -> pd.Series:
    """Relative error of every cell from a table without the cells that share its `column` value.

    `column` is "cell" (only the cell itself is left out), "heads", "batch", "units" or "tokens".
    Leaving out units or tokens removes a knot, so that its cells are interpolated.
    """
    if column == "cell":
        return _leave_one_cell(cells, table)
    out = pd.Series(np.nan, index=cells.index)
    for value, part in cells.groupby(column):
        knots = {"units": table.unit_knots, "tokens": table.token_knots}
        if column in knots:
            knots[column] = knots[column][knots[column] != value]
        rest = cells[cells[column] != value]
        cube = residual_table(rest, table.group_knots, knots["units"], knots["tokens"])
        trial = replace(
            table, residual=cube, unit_knots=knots["units"], token_knots=knots["tokens"]
        )
        out[part.index] = _error(part, table, residual_of(trial, part))
    return out


def residual_of(table: DecodeTable, cells: pd.DataFrame) -> Array:
    """The table's residual at each cell."""
    out = np.empty(len(cells))
    for group in cells.group.unique():
        of_group = (cells.group == group).to_numpy()
        units, u = np.unique(cells.units[of_group].to_numpy(float), return_inverse=True)
        tokens, t = np.unique(cells.tokens[of_group].to_numpy(float), return_inverse=True)
        out[of_group] = table.residual_at(float(group), units, tokens)[u, t]
    return out


def _leave_one_cell(cells: pd.DataFrame, table: DecodeTable) -> pd.Series:
    """Predict a cell from replicates with the same group, units and tokens or, if there are none,
    like a hole of the table; cells off the knots are not in the table anyway."""
    shape = (table.group_knots, table.unit_knots, table.token_knots)
    on = cells[~cells.stray & cells.group.isin(shape[0])]
    on = on[on.units.isin(shape[1]) & on.tokens.isin(shape[2])]
    guess = pd.Series(residual_of(table, cells), index=cells.index)
    for (group, units, tokens), part in on.groupby(["group", "units", "tokens"]):
        values = part.residual.to_numpy()
        if len(values) > 1:
            guess[part.index] = [np.median(np.delete(values, i)) for i in range(len(values))]
            continue
        plane = table.residual[int(np.searchsorted(shape[0], group))].copy()
        where = int(np.searchsorted(shape[1], units)), int(np.searchsorted(shape[2], tokens))
        plane[where] = np.nan
        guess[part.index] = fill_plane(plane, np.log(shape[1]), np.log(shape[2]))[where]
    return pd.Series(_error(cells, table, guess.to_numpy()), index=cells.index)


def _error(cells: pd.DataFrame, table: DecodeTable, residual: Array) -> Array:
    mean = (cells.base_s * np.exp(residual)).to_numpy()
    out = np.empty(len(cells))
    for kv_heads in cells.kv_heads.unique():
        of_count = (cells.kv_heads == kv_heads).to_numpy()
        out[of_count] = table.with_kv_heads(mean[of_count], int(kv_heads))
    return np.asarray((out + cells.regroup_s) / cells.cold_s - 1.0)


def fill_plane(plane: Array, log_units: Array, log_tokens: Array) -> Array:
    """A (units, tokens) plane with NaNs filled as described in `residual_table`."""
    along_tokens = np.stack([_line(row, log_tokens) for row in plane])
    along_units = np.stack([_line(column, log_units) for column in plane.T]).T
    mean = (along_tokens + along_units) / 2
    either = np.where(np.isnan(along_units), along_tokens, mean)
    both = np.where(np.isnan(along_tokens), along_units, either)
    result = np.where(np.isnan(plane), both, plane)
    # Beyond the measurements utilisation is near its limit: use the better one of both neighbours.
    for u in range(len(result)):
        for t in range(len(result[0])):
            if np.isnan(result[u, t]):
                fewer_units = result[u - 1, t] if u else np.nan
                result[u, t] = np.fmin(fewer_units, result[u, t - 1] if t else np.nan)
    for row in result:
        _hold(row)
    for column in result.T:
        _hold(column)
    return np.nan_to_num(result)


def _line(values: Array, x: Array) -> Array:
    """Values with holes interpolated linearly; NaN before the first and after the last value."""
    known = ~np.isnan(values)
    if known.sum() < 2:
        return values
    return np.asarray(np.interp(x, x[known], values[known], left=np.nan, right=np.nan))


def _hold(values: Array) -> None:
    known = np.flatnonzero(~np.isnan(values))
    if len(known):
        values[: known[0]] = values[known[0]]
        values[known[-1] + 1 :] = values[known[-1]]
