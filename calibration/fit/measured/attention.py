"""Fit the runtime's attention over a KV cache: `attention-specroof.toml`.

For each head dimension and tile of query rows, nine parameters of the form in
`perfmodel/kernels/attention_scheduled.py` are fitted by robust least squares. The residual is then
averaged around the knots of (group, blocks per multiprocessor, tokens of a KV range), and between
the numbers of blocks that were timed it is interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.fit.errors import Errors, token_band
from calibration.fit.measured.kv_tiles import kv_tile_tokens
from calibration.fit.measured.prefill import fit_prefill
from calibration.records.kernels import KernelRecord
from calibration.records.toml_file import fields_of, significant, toml_text
from perfmodel import GPU
from perfmodel.kernels import (
    BLOCKS_PER_SM,
    TILE_ROWS,
    AttentionCall,
    AttentionCurve,
    BlockTable,
    ScheduledAttention,
    SplitKV,
    tile_index,
)

Array = NDArray[np.float64]

LEAST_CELLS = 30  # per head dimension and tile
# Shared memory per multiprocessor (CUDA programming guide, compute capabilities).
SHARED_BYTES = {"hopper": 228 * 1024.0, "ampere": 164 * 1024.0, "ada": 100 * 1024.0}
BOUNDS = {  # parameter: (lower bound, start, upper bound)
    "launch_us": (0.5, 2.0, 8.0),
    "merge_us": (1.0, 2.5, 6.0),
    "merge_row_ns": (1.0, 3.4, 6.0),
    "block_us": (0.1, 3.0, 20.0),
    "token_ns": (0.5, 10.0, 200.0),
    "pair_slowdown": (0.02, 0.5, 0.98),
    "tile_share": (0.02, 0.5, 0.98),
    "lockstep": (0.02, 0.8, 0.98),
    "stream_efficiency": (0.5, 0.9, 0.93),  # no kernel reached more of an H200's HBM bandwidth
}
STARTS = [{"block_us": b, "token_ns": t} for b in (1.0, 4.0) for t in (4.0, 15.0)]
SCALE = 0.05  # relative error beyond which a cell has less weight
TOKEN_KNOTS = 128.0 * 2.0 ** np.arange(0.0, 10.6, 0.5)
BLOCK_STEP, BLOCK_WIDTH, TOKEN_WIDTH = 0.1, 0.05, 0.3  # in logarithms
PRIOR = 0.2  # weight of a zero residual at each knot, relative to a cell at the knot
KNOWN = 0.5  # weight of the cells around a knot from which it has a residual of its own
FOLDS = 5
HEADER = """\
Attention of the runtime, measured on this GPU; replaces the decode tables of attention.toml.
Written by `specroof calibrate fit`; the form is in perfmodel/kernels/attention_scheduled.py.
residual: ln(measured / form), [group][blocks per multiprocessor][tokens of a range].
"""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class ScheduledFit:
    """The curve of the measured kernels, and its errors."""

    curve: ScheduledAttention
    errors: Errors

    def toml(self) -> str:
        """The catalog file `attention-specroof.toml`.

        Prefill is only written if it was measured; otherwise the GPU's public tables apply.
        """
        curve = self.curve
        values: dict[str, Any] = {"source": curve.source, "sm_count": curve.sm_count}
        values |= {"origin": curve.origin, "residuals": self.errors.flat()}
        values["blocks"] = [fields_of(table) for table in curve.blocks]
        if curve.origin.get("prefill") == "measured":
            values["prefill"] = [fields_of(table) for table in curve.prefill]
        return toml_text(values, header=HEADER)


def missing_attention(records: Sequence[KernelRecord]) -> str | None:
    """What is missing for a fit, as a clause; None if the records suffice."""
    single = [r for r in records if r["query_tokens"] == 1]
    by_dim = {dim: sum(r["head_dim"] == dim for r in single) for dim in (64, 128)}
    if max(by_dim.values()) >= LEAST_CELLS:
        return None
    return (
        f"attention: {max(by_dim.values())} cells with one query token for a head dimension; "
        f"{LEAST_CELLS} are needed"
    )


def fit_attention(
    records: Sequence[KernelRecord],
    published: AttentionCurve,
    gpu: GPU,
    *,
    source: str,
    between: Sequence[KernelRecord] = (),
    prefill: Sequence[KernelRecord] = (),
) -> ScheduledFit:
    """Fit a curve to records of op "attention" for which `missing_attention` returns None.

    Parameters
    ----------
    published : AttentionCurve
        The source of prefill tables for head dimensions without a timed prompt.
    between : sequence of KernelRecord
        Records of op "attention_between", with batches and lengths off the grid. Every other batch
        is fitted (for the cost of partly filled tiles); the rest is only used for the errors.
    prefill : sequence of KernelRecord
        Records of op "prefill_attention".
    """
    frame, off_grid = cells_of(records), cells_of(between)
    checks = off_grid.batch.isin(sorted(off_grid.batch.unique())[1::2])
    frame = pd.concat([frame, off_grid[~checks]], ignore_index=True)
    blocks = fit_blocks(frame, gpu)
    # A launch takes as long for all tiles; fits of some also count what blocks wait for.
    latency: dict[int, float] = {}
    for table in blocks:
        latency[table.head_dim] = min(table.launch_us, latency.get(table.head_dim, np.inf))
    curve = ScheduledAttention(
        source=source,
        sm_count=gpu.sm_count,
        blocks=blocks,
        prefill=fit_prefill(prefill, published, latency, gpu),
        origin={"decode": "fitted", "prefill": "measured" if prefill else "fitted"},
    )
    return ScheduledFit(curve=curve, errors=_errors(frame, off_grid[checks], curve, gpu))


def cells_of(records: Sequence[KernelRecord]) -> pd.DataFrame:
    """Median seconds per cell, with its group, units (batch x KV heads), query rows and tile."""
    names = ["batch", "query_heads", "kv_heads", "head_dim", "kv_tokens", "query_tokens"]
    rows = [{n: float(r[n]) for n in names} | {"seconds": r.seconds} for r in records]
    frame = pd.DataFrame(rows, columns=[*names, "seconds"], dtype=float)
    frame = frame.groupby(names, as_index=False).seconds.median()
    frame["group"] = frame.query_heads / frame.kv_heads
    frame["units"] = frame.batch * frame.kv_heads
    frame["rows"] = frame.query_tokens * frame.group
    frame["tile"] = np.array(TILE_ROWS, float)[tile_index(frame.rows.to_numpy())]
    return frame


def fit_blocks(frame: pd.DataFrame, gpu: GPU) -> tuple[BlockTable, ...]:
    """One table for each head dimension and tile with enough cells."""
    return tuple(
        _fit_table(cells, gpu)
        for _, cells in frame.groupby(["head_dim", "tile"])
        if len(cells) >= LEAST_CELLS
    )


def _fit_table(cells: pd.DataFrame, gpu: GPU) -> BlockTable:
    from scipy.optimize import least_squares

    names, (least, first, most) = list(BOUNDS), np.log(np.array(list(BOUNDS.values()))).T
    empty = _empty_table(cells, gpu)
    seconds = cells.seconds.to_numpy()

    def with_values(logs: Array) -> BlockTable:
        values: dict[str, Any] = dict(zip(names, map(float, np.exp(logs)), strict=True))
        return replace(empty, **values)

    cut = _cut(empty, cells, gpu)

    def misfit(logs: Array) -> Array:
        return np.asarray(np.log(_form(with_values(logs), cells, cut, gpu) / seconds))

    starts = [
        first + [np.log(s[n] / BOUNDS[n][1]) if n in s else 0.0 for n in names] for s in STARTS
    ]
    results = [
        least_squares(misfit, start, bounds=(least, most), loss="soft_l1", f_scale=SCALE)
        for start in starts
    ]
    best = min(results, key=lambda result: float(result.cost))
    rounded = [significant(v, 4) for v in np.exp(best.x)]
    values: dict[str, Any] = dict(zip(names, rounded, strict=True))
    return with_residual(replace(empty, **values), cells, gpu)


def with_residual(table: BlockTable, cells: pd.DataFrame, gpu: GPU) -> BlockTable:
    """The table with the mean ln(measured / form) of the cells around each knot as residual.

    Knots without a cell nearby take the residual between the next numbers of blocks that have one:
    how well a block runs alone on a multiprocessor does not depend on how many others do.
    """
    cut = _cut(table, cells, gpu)
    left = np.log(cells.seconds.to_numpy() / _form(table, cells, cut, gpu))
    blocks, tokens = np.log(cut.blocks / gpu.sm_count), np.log(cut.range_tokens)
    near = [
        np.exp(-0.5 * ((np.log(knots)[:, None] - at) / width) ** 2)
        for knots, at, width in (
            (table.block_knots, blocks, BLOCK_WIDTH),
            (table.token_knots, tokens, TOKEN_WIDTH),
        )
    ]
    planes = []
    for group in table.group_knots:
        of_group = (cells.group == group).to_numpy(float)
        weight = np.einsum("bc,tc,c->bt", *near, of_group)
        total = np.einsum("bc,tc,c->bt", *near, of_group * left)
        planes.append(_between(total / (weight + PRIOR), weight >= KNOWN, table.block_knots))
    return replace(table, residual=np.round(planes, 3))


def _between(plane: Array, known: NDArray[np.bool_], blocks: Array) -> Array:
    """The plane (blocks, tokens), interpolated over ln(blocks) where it is not known."""
    at, filled = np.log(blocks), plane.copy()
    for column in np.flatnonzero(known.any(axis=0)):
        has = known[:, column]
        filled[~has, column] = np.interp(at[~has], at[has], plane[has, column])
    return filled


def _empty_table(cells: pd.DataFrame, gpu: GPU) -> BlockTable:
    head_dim, tile = int(cells.head_dim.iloc[0]), int(cells.tile.iloc[0])
    shared = SHARED_BYTES.get(gpu.architecture, SHARED_BYTES["ampere"]) / BLOCKS_PER_SM
    groups = np.array(sorted(cells.group.unique()))
    knots = block_knots(float(cells.units.max()) / gpu.sm_count)
    first: dict[str, Any] = {name: start for name, (_, start, _) in BOUNDS.items()}
    return BlockTable(
        head_dim=head_dim,
        tile_rows=tile,
        tile_tokens=kv_tile_tokens(head_dim=head_dim, tile_rows=tile, shared_bytes=shared),
        group_knots=groups,
        block_knots=knots,
        token_knots=TOKEN_KNOTS,
        residual=np.zeros((len(groups), len(knots), len(TOKEN_KNOTS))),
        max_unit_tokens=float((cells.units * cells.kv_tokens).max()),
        **first,
    )


def block_knots(most: float) -> Array:
    """Blocks per multiprocessor: even steps in the logarithm, and both sides of small integers."""
    even = np.exp(np.arange(np.log(0.03), np.log(1.1 * most), BLOCK_STEP))
    integers = np.arange(1.0, 9.0)
    return np.unique(np.round(np.concatenate([even, integers, integers * 1.008]), 4))


def _cut(table: BlockTable, cells: pd.DataFrame, gpu: GPU) -> SplitKV:
    call = AttentionCall(
        query_tokens=cells.query_tokens.to_numpy(),
        query_heads=cells.query_heads.to_numpy(),
        kv_heads=cells.kv_heads.to_numpy(),
        head_dim=table.head_dim,
        sm_count=gpu.sm_count,
    )
    return call.split_kv(cells[["kv_tokens"]].to_numpy(), cells[["batch"]].to_numpy())


def _form(table: BlockTable, cells: pd.DataFrame, cut: SplitKV, gpu: GPU) -> Array:
    return table.form_seconds(
        cut,
        unit_tokens=(cells.units * cells.kv_tokens).to_numpy(),
        merged_rows=(cells.units * cells.rows).to_numpy(),
        sm_count=gpu.sm_count,
        hbm_bandwidth=gpu.hbm_bandwidth,
    )


def _errors(
    frame: pd.DataFrame, between: pd.DataFrame, curve: ScheduledAttention, gpu: GPU
) -> Errors:
    """Errors in sample, off the grid ("between"), and without a fifth of the cells in turn."""
    errors = Errors("attention", regions=_regions)
    for way, cells in (("in sample", frame), ("between", between)):
        _add(errors, way, cells, curve, gpu)
    fold = np.random.default_rng(0).integers(FOLDS, size=len(frame))
    for part in range(FOLDS):
        tables = []
        for table in curve.blocks:
            fitted = (frame.head_dim == table.head_dim) & (frame.tile == table.tile_rows)
            tables.append(with_residual(table, frame[fitted & (fold != part)], gpu))
        without = replace(curve, blocks=tuple(tables))
        _add(errors, "a fifth out", frame[fold == part], without, gpu)
    return errors


def _add(errors: Errors, way: str, cells: pd.DataFrame, curve: AttentionCurve, gpu: GPU) -> None:
    for _, part in cells.groupby(["query_heads", "kv_heads", "head_dim"]):
        shape = {n: int(part[n].iloc[0]) for n in ("query_heads", "kv_heads", "head_dim")}
        seconds = curve.seconds(
            batch=part.batch.to_numpy(),
            kv_tokens=part.kv_tokens.to_numpy(),
            query_tokens=part.query_tokens.to_numpy(),
            **shape,
            peak_flops=gpu.peak_flops,
            hbm_bandwidth=gpu.hbm_bandwidth,
        )
        for (_, cell), predicted in zip(part.iterrows(), seconds, strict=True):
            errors.add(way, dict(cell), float(predicted) / cell.seconds - 1.0)


def _regions(cell: Any) -> tuple[str, ...]:
    return (
        f"{cell['query_heads']:.0f}/{cell['kv_heads']:.0f} heads of {cell['head_dim']:.0f}",
        token_band(cell["kv_tokens"]),
        f"tile {cell['tile']:.0f}",
    )
