"""Attention timed on one's own GPU over a cache, as the runtime runs it: `attention-specroof.toml`.

Reuses the fit of published tables: seven parameters of the physical form by robust least squares,
then what is left per (group, work units, KV tokens). Here the rows of verification are measured
too: what each taller tile of packed rows adds, per (tile, units, tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.attention_fit import DecodeFit, Knots, fit_decode, physical_form
from calibration.attention_report import own_toml_text
from calibration.attention_residuals import held_out, residual_of, residual_table
from calibration.attention_tables import MeasuredGpu
from calibration.fit_errors import Errors, token_band
from calibration.kernel_grid import ROW_TILES
from calibration.kernel_records import KernelRecord
from calibration.own_prefill_fit import own_prefill
from perfmodel import GPU, AttentionCurve

Array = NDArray[np.float64]

LEAST_CELLS = 30  # of one query token, per head dimension
BLOCKS_PER_SM = 2  # what FlashInfer's fa2 kernel is built to run side by side, flashinfer 0.6.6
# Shared memory of a multiprocessor by architecture (CUDA programming guide, compute capabilities).
SHARED_BYTES = {"hopper": 228 * 1024.0, "ampere": 164 * 1024.0, "ada": 100 * 1024.0}
SPLIT_MIN_TOKENS = 128  # the runtime cuts no shorter range
MERGE_ROW_NS = 3.4  # of a row of a query head; timed on an H200 (runtime/split_cost.py)
TENSOR_RATES = np.geomspace(0.05, 0.8, 41)  # of the peak: candidates
START_TENSOR_RATE = 0.26
WAYS = ("cell", "batch", "units", "tokens")


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class OwnAttentionFit:
    """The curve of one's own kernels, and how far it errs."""

    curve: AttentionCurve
    errors: Errors

    def toml(self) -> str:
        """The catalog file."""
        figures: dict[str, Any] = {}
        for way in self.errors.found:
            name = way.replace(" ", "_")
            for key, value in self.errors.figures(way).items():
                figures[f"{name}_{key}"] = round(value, 2)
        return own_toml_text(self.curve, figures)


def missing_attention(records: Sequence[KernelRecord]) -> str | None:
    """What is lacking for a fit, in a clause; None where there is enough."""
    single = [r for r in records if r["query_tokens"] == 1]
    by_dim = {dim: sum(r["head_dim"] == dim for r in single) for dim in (64, 128)}
    if max(by_dim.values()) >= LEAST_CELLS:
        return None
    return (
        f"attention: {max(by_dim.values())} cells of one query token and one head dimension; "
        f"{LEAST_CELLS} are needed"
    )


def fit_own_attention(
    records: Sequence[KernelRecord],
    published: AttentionCurve,
    gpu: GPU,
    *,
    source: str,
    prefill: Sequence[KernelRecord] = (),
) -> OwnAttentionFit:
    """The decode curve of records of op "attention"; `missing_attention` must have said None.

    Parameters
    ----------
    published : AttentionCurve
        Whose prefill tables stay for head dimensions without a record in `prefill`.
    prefill : sequence of KernelRecord
        Of op "prefill_attention".
    """
    frame, measured = cells_of(records), _measured_gpu(gpu)
    form = _form(measured, published, source, START_TENSOR_RATE)
    form = replace(form, shared_bytes=SHARED_BYTES.get(gpu.architecture, 0.0) / BLOCKS_PER_SM)
    first = _fits(frame, form, measured)
    form = replace(form, tensor_core_efficiency=_tensor_rate(frame, form, first, measured))
    fits = _fits(frame, form, measured)
    tables = tuple(
        replace(fit.table, tile_residual=_tile_residual(frame, form, fit, measured)) for fit in fits
    )
    origin = {**form.origin, "prefill": "measured" if prefill else "fitted"}
    curve = replace(
        form,
        decode=tables,
        prefill=own_prefill(prefill, published, tables, gpu),
        origin=origin,
    )
    return OwnAttentionFit(curve=curve, errors=_errors(frame, curve, fits, gpu))


def cells_of(records: Sequence[KernelRecord]) -> pd.DataFrame:
    """Cells with the columns that the fit of published tables reads; all are cold.

    `use` says what for: "decode" (one query token), "tile" (the fewest query tokens that take a
    taller tile fully enough) or "check" (not fitted on).
    """
    names = ("batch", "query_heads", "kv_heads", "head_dim", "kv_tokens", "query_tokens")
    frame = pd.DataFrame([{n: float(r[n]) for n in names} | {"seconds": r.seconds}
                          for r in records])  # fmt: skip
    frame = frame.groupby(list(names), as_index=False).seconds.median()
    frame = frame.rename(columns={"kv_tokens": "tokens", "seconds": "measured_s"})
    frame["cold_s"] = frame.measured_s
    frame["in_l2"] = False
    frame["group"] = frame.query_heads / frame.kv_heads
    frame["units"] = frame.batch * frame.kv_heads
    frame["kv_bytes"] = 4.0 * frame.units * frame.tokens * frame.head_dim
    frame["tile"] = _tile(frame.query_tokens * frame.group)
    frame["use"] = "check"
    keys = ["query_heads", "kv_heads", "head_dim", "tile"]
    # The query count that was timed most is the grid's own for its tile; the others check it.
    counts = frame.groupby([*keys, "query_tokens"]).size().rename("cells").reset_index()
    most = counts.sort_values("cells").groupby(keys).tail(1)
    chosen = frame.merge(most[[*keys, "query_tokens"]], on=[*keys, "query_tokens"], how="left",
                         indicator=True)  # fmt: skip
    is_tile = (chosen["_merge"] == "both").to_numpy() & (frame.tile > ROW_TILES[0]).to_numpy()
    frame.loc[is_tile, "use"] = "tile"
    frame.loc[frame.query_tokens == 1, "use"] = "decode"
    return frame.reset_index(drop=True)


def _tile(rows: pd.Series) -> pd.Series:
    tiles = np.array(ROW_TILES, float)
    index = np.minimum(np.searchsorted(tiles, rows.to_numpy()), len(tiles) - 1)
    return pd.Series(tiles[index], index=rows.index)


def _measured_gpu(gpu: GPU) -> MeasuredGpu:
    return MeasuredGpu(
        name=gpu.name, folder="", sm_count=gpu.sm_count, peak_flops=gpu.peak_flops,
        hbm_bandwidth=gpu.hbm_bandwidth, l2_bytes=gpu.l2_bytes, link_kind="", link_bandwidth=0.0,
        blocks_per_sm=BLOCKS_PER_SM, split_min_group=1,
    )  # fmt: skip


def _form(
    gpu: MeasuredGpu, published: AttentionCurve, source: str, tensor_rate: float
) -> AttentionCurve:
    form = physical_form(
        gpu, source=source, tensor_core_efficiency=tensor_rate, prefill=published.prefill
    )
    return replace(
        form,
        split_occupancy=1.0,
        split_min_tokens=SPLIT_MIN_TOKENS,
        even_cuts=True,
        merge_row_ns=MERGE_ROW_NS,
        row_tiles=np.array(ROW_TILES, float),
        row_tile_factor=np.ones(len(ROW_TILES)),
        origin={"decode": "fitted", "prefill": "fitted", "row_tile_factor": "measured",
                "tensor_core_efficiency": "fitted to verification"},
    )  # fmt: skip


def _fits(frame: pd.DataFrame, form: AttentionCurve, gpu: MeasuredGpu) -> list[DecodeFit]:
    """One fit per head dimension with enough cells, on the cells of one query token."""
    single = frame[frame.use == "decode"]
    return [
        fit_decode(cells.reset_index(drop=True), form, gpu, knots=_knots(cells), scheduled=True)
        for _, cells in single.groupby("head_dim")
        if len(cells) >= LEAST_CELLS
    ]


def _knots(cells: pd.DataFrame) -> Knots:
    def of(column: str) -> Array:
        return np.array(sorted(cells[column].unique()), float)

    return Knots(
        groups=of("group"), units=of("units"), tokens=of("tokens"), kv_heads=of("kv_heads")
    )


def _untiled(cells: pd.DataFrame, form: AttentionCurve, fit: DecodeFit, gpu: MeasuredGpu) -> Array:
    """Seconds of cells by the curve without what taller tiles add. [s]"""
    base = np.empty(len(cells))
    for (group, tile), part in cells.groupby(["group", "tile"]):
        mine = ((cells.group == group) & (cells.tile == tile)).to_numpy()
        base[mine] = form.base_seconds(
            fit.table,
            part.units.to_numpy(float),
            part.tokens.to_numpy(float),
            group=float(group),
            packed_rows=float(tile),
            peak_flops=gpu.peak_flops,
            hbm_bandwidth=gpu.hbm_bandwidth,
        )
    return np.asarray(base * np.exp(residual_of(fit.table, cells)))


def _tensor_rate(
    frame: pd.DataFrame, form: AttentionCurve, fits: list[DecodeFit], gpu: MeasuredGpu
) -> float:
    """The share of the peak FLOP/s at which taller tiles are told best; robust to outliers."""
    parts = [(fit, frame[(frame.use == "tile") & (frame.head_dim == fit.table.head_dim)])
             for fit in fits]  # fmt: skip
    parts = [(fit, cells) for fit, cells in parts if len(cells)]
    if not parts:
        return form.tensor_core_efficiency

    def misfit(rate: float) -> float:
        trial = replace(form, tensor_core_efficiency=rate)
        logs = [np.log(_untiled(cells, trial, fit, gpu) / cells.cold_s.to_numpy())
                for fit, cells in parts]  # fmt: skip
        return float(np.abs(np.concatenate(logs)).mean())

    return round(float(min(TENSOR_RATES, key=misfit)), 4)


def _tile_residual(
    frame: pd.DataFrame, form: AttentionCurve, fit: DecodeFit, gpu: MeasuredGpu
) -> Array | None:
    """Median ln(measured / untiled) per (taller tile, units, tokens), holes filled."""
    cells = frame[(frame.use == "tile") & (frame.head_dim == fit.table.head_dim)]
    if cells.empty:
        return None
    left = np.log(cells.cold_s.to_numpy() / _untiled(cells, form, fit, gpu))
    cells = cells.assign(residual=left, stray=False, group=cells.tile)
    tiles = np.array(ROW_TILES[1:], float)
    table = fit.table
    cube = residual_table(cells, tiles, table.unit_knots, table.token_knots, tokens_first=True)
    for index, tile in enumerate(tiles):  # a tile that was not timed goes on as the one below it
        if not (cells.tile == tile).any() and index:
            cube[index] = cube[index - 1]
    return np.asarray(cube.round(3))


def _errors(frame: pd.DataFrame, curve: AttentionCurve, fits: list[DecodeFit], gpu: GPU) -> Errors:
    """The finished curve on every cell, and cells, batches, units or lengths left out."""
    errors = Errors("attention", regions=_regions)
    dims = {fit.table.head_dim for fit in fits}
    for _, cell in frame[frame.head_dim.isin(dims)].iterrows():
        seconds = curve.seconds(
            batch=cell.batch, kv_tokens=cell.tokens, query_tokens=cell.query_tokens,
            query_heads=int(cell.query_heads), kv_heads=int(cell.kv_heads),
            head_dim=int(cell.head_dim), peak_flops=gpu.peak_flops,
            hbm_bandwidth=gpu.hbm_bandwidth,
        )  # fmt: skip
        way = "other queries out" if cell.use == "check" else "in sample"
        errors.add(way, dict(cell), float(seconds) / cell.cold_s - 1.0)
    for fit in fits:
        for way in WAYS:
            found = held_out(fit.cells, fit.table, way)
            for (_, cell), error in zip(fit.cells.iterrows(), found, strict=True):
                errors.add(f"{way} out", dict(cell), float(error))
    return errors


def _regions(cell: Any) -> tuple[str, ...]:
    return (
        f"{cell['query_heads']:.0f}/{cell['kv_heads']:.0f} heads of {cell['head_dim']:.0f}",
        token_band(cell["tokens"]),
        f"tile {cell['tile']:.0f}",
    )
