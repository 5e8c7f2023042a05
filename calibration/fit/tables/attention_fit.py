"""Fit an attention curve to aiconfigurator's tables: `attention.toml`.

For each head dimension, seven parameters of the physical form are fitted by robust least squares on
ln(time). The median residual at each (group, work units, KV tokens) is then stored as a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.fit.tables.attention_residuals import residual_table
from calibration.fit.tables.attention_tables import (
    kernel_source,
    read_decode,
    read_prefill,
)
from calibration.fit.tables.gpus import MeasuredGpu
from calibration.records.toml_file import compact, fields_of, significant, toml_text
from perfmodel.kernels import DecodeTable, LibraryAttention, PrefillTable
from perfmodel.units import US

Array = NDArray[np.float64]

GROUP_KNOTS = np.array([1, 2, 4, 8, 16, 32, 64], float)
KV_HEAD_KNOTS = np.array([1, 2, 4, 8], float)
UNIT_KNOTS = np.array([2**n for n in range(15)], float)
TOKEN_KNOTS = np.array([2, 16, 64, *(2**n for n in range(7, 18))], float)
PREFILL_UNITS = np.array([2**n for n in range(14)], float)
PREFILL_TOKENS = np.array([1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384], float)
MEMORY_EFFICIENCY = 0.8  # of prefill; memory is rarely the limit
HEADER = """\
Attention times of one layer on one rank, {gpu}.
Written by `specroof calibrate fit-tables`; the form is in perfmodel/kernels/attention.py.
residual: ln(measured / form), [group][units][tokens]; efficiency: [group][units][tokens].
Cells whose KV fitted in L2 were corrected to HBM: calibration/fit/tables/attention_tables.py.
"""

PARAMETERS = {  # name: (start, upper bound)
    "kernel_latency_us": (11.0, 50.0),
    "split_latency_us": (4.0, 50.0),
    "wave_overhead_us": (6.0, 100.0),
    "block_bandwidth_fraction": (0.011, 0.05),
    "stream_efficiency": (0.85, 1.0),
    "pair_slowdown": (0.5, 1.2),
    "drain_blocks": (0.9, 2.0),
}
REGROUP_START_US = 2.0
_TABLES = ("decode", "prefill", "blocks", "origin")  # written last
# Written only if not 0: other kernels than the measured ones have them.
_OF_ASSUMPTIONS = (
    "tensor_core_error",
    "fitted_split_min_group",
    "fitted_split_occupancy",
    "tall",
)


@dataclass(frozen=True, eq=False)
class DecodeFit:
    """The fit of one head dimension: its cells with `base_s`, `regroup_s` and `residual`, and the
    table."""

    cells: pd.DataFrame
    table: DecodeTable
    regroup_latency_us: float


def fit_attention_tables(data: Path, gpu: MeasuredGpu) -> tuple[LibraryAttention, list[DecodeFit]]:
    """The curve of one GPU, and the fits of its head dimensions."""
    prefill = fit_prefill(read_prefill(data, gpu), gpu)
    frame = read_decode(data, gpu)
    plateau = round(max(_plateau(table) for table in prefill), 3)
    source = f"PyPI aiconfigurator-core 0.12.0, Apache-2.0: {kernel_source(data, gpu)}"
    form = physical_form(gpu, source=source, tensor_core_efficiency=plateau, prefill=prefill)
    fits = [fit_decode(cells, form, gpu) for _, cells in frame.groupby("head_dim")]
    regroup = float(np.mean([f.regroup_latency_us for f in fits]))
    curve = replace(
        form,
        decode=tuple(f.table for f in fits),
        regroup_latency_us=round(regroup, 2) if regroup > 0.05 else 0.0,
    )
    return curve, fits


def _plateau(table: PrefillTable) -> float:
    """Compute efficiency of calls that are large enough to hide latency and fill the GPU."""
    large = table.efficiency[:, table.unit_knots >= 32][:, :, table.token_knots >= 8192]
    return float(np.median(large))


def physical_form(gpu: MeasuredGpu, *, source: str, **given: Any) -> LibraryAttention:
    """The curve without decode tables: geometry of GPU and kernel, and assumptions.

    FlashAttention 3 packs up to 128 rows into one tile, so rows of several tokens take as long as
    those of one: 20 and 24 rows in rounds of vLLM 0.26 on an H200 (engine-vllm-0.26-h200*.jsonl)
    take as long as 16. The tiles of other kernels are the block heights of FlashInfer and
    FlashAttention 2; their factor 1.2 above 16 rows was measured on one H200 (FlashInfer fa2, 32
    packed rows compared with 16) and is assumed for other GPUs.
    """
    one_tile = "flash_attn_fa3" in source
    return LibraryAttention(
        sm_count=gpu.sheet.sm_count,
        blocks_per_sm=gpu.blocks_per_sm,
        split_min_group=gpu.split_min_group,
        split_occupancy=0.8,
        split_min_tokens=128,
        regroup_latency_us=0.0,
        row_tiles=np.array([16.0, 32.0, 64.0, 128.0]),
        row_tile_factor=np.array([1.0, *[1.0 if one_tile else 1.2] * 3]),
        source=source,
        decode=(),
        origin={
            "decode": "fitted",
            "prefill": "fitted",
            "row_tile_factor": "one tile of 128 rows" if one_tile else "assumed",
            "tensor_core_efficiency": "the plateau of prefill, assumed for decode",
        },
        **given,
    )


def fit_decode(
    cells: pd.DataFrame,
    form: LibraryAttention,
    gpu: MeasuredGpu,
) -> DecodeFit:
    """Fit the parameters and the residual table of one head dimension."""
    from scipy.optimize import least_squares

    empty = empty_table(int(cells.head_dim.iloc[0]))
    copies = ((cells.group > 1) & (cells.kv_heads > 1) & (cells.batch > 1)).to_numpy(float)
    used = (cells.tokens >= 64).to_numpy()
    cold = cells.cold_s.to_numpy()

    def misfit(logs: Array) -> Array:
        table = with_parameters(empty, np.exp(logs))
        base = form_seconds(form, table, cells[used], gpu) + copies[used] * np.exp(logs[-1]) * US
        return np.asarray(np.log(base / cold[used]))

    start = np.log([*(s for s, _ in PARAMETERS.values()), REGROUP_START_US])
    upper = np.log([*(b for _, b in PARAMETERS.values()), 20.0])
    lower = np.minimum(start, upper) - np.log(1e4)
    best = least_squares(misfit, start, bounds=(lower, upper), loss="soft_l1", f_scale=0.1)
    values = np.array([significant(v, 4) for v in np.exp(best.x)])
    table = with_parameters(empty, values)
    base = form_seconds(form, table, cells, gpu)
    done = cells.assign(base_s=base, regroup_s=copies * values[-1] * US)
    table = replace(table, kv_head_residual=_kv_head_residual(done, table))
    done["residual"] = np.log(_mean_heads_seconds(done, table) / done.base_s)
    done["stray"] = _stray(done)
    cube = residual_table(done, GROUP_KNOTS, UNIT_KNOTS, TOKEN_KNOTS)
    table = replace(
        table,
        residual=_monotone(form, table, cube, gpu).round(3),
        max_unit_tokens=float((done.units * done.tokens).max()),
    )
    return DecodeFit(done, table, float(values[-1]))


def _kv_head_residual(cells: pd.DataFrame, table: DecodeTable) -> Array:
    """Median ln(time above latency) of each KV head count, relative to the mean of the cells with
    the same group, units and tokens; from 1,024 tokens on and with KV in HBM."""
    above = cells.cold_s - cells.regroup_s - table.kernel_latency_us * US
    used = cells[(above > 0) & ~cells.in_l2 & (cells.tokens >= 1024)]
    logs = np.log(above[used.index])
    keys = [used.group, used.units, used.tokens]
    apart = (logs - logs.groupby(keys).transform("mean"))[used.index]
    replicated = logs.groupby(keys).transform("size") >= 3
    mean = apart[replicated].groupby(used.kv_heads[replicated]).median()
    return np.asarray(mean.reindex(table.kv_head_knots).fillna(0.0).round(3), float)


def _mean_heads_seconds(cells: pd.DataFrame, table: DecodeTable) -> Array:
    """Measured times without the regrouping copy, converted to the mean KV head count."""
    body = np.maximum(cells.cold_s - cells.regroup_s, 0.3 * cells.base_s).to_numpy()
    latency = table.kernel_latency_us * US
    log_heads = np.log(cells.kv_heads)
    factor = np.exp(np.interp(log_heads, np.log(table.kv_head_knots), table.kv_head_residual))
    return np.asarray(np.where(body > latency, latency + (body - latency) / factor, body))


def _stray(cells: pd.DataFrame) -> pd.Series:
    """Outliers: cells slower by over 1.25x than a cell with more KV of the same batch and heads.

    They are not in the table, since a running maximum would spread them, but count in the errors.
    """
    ordered = cells.sort_values("tokens", ascending=False)
    keys = ["batch", "query_heads", "kv_heads"]
    least = ordered.groupby(keys).cold_s.cummin()
    return (ordered.cold_s > 1.25 * least).reindex(cells.index)


def _monotone(
    form: LibraryAttention,
    table: DecodeTable,
    cube: Array,
    gpu: MeasuredGpu,
) -> Array:
    """Residuals with which times never fall along units (axis 0) or tokens (axis 1): the mean, in
    logarithms, of the running maximum from below and the running minimum from above."""
    out = np.empty_like(cube)
    for i, group in enumerate(table.group_knots):
        base = form.base_seconds(
            table,
            table.unit_knots[:, None],
            table.token_knots,
            group=float(group),
            packed_rows=float(form.padded_rows(float(group))),
            peak_flops=gpu.sheet.peak_flops,
            hbm_bandwidth=gpu.sheet.hbm_bandwidth,
        )
        log_s = np.log(base) + cube[i]
        up, down = log_s, log_s[::-1, ::-1]
        for axis in (0, 1):
            up = np.maximum.accumulate(up, axis=axis)
            down = np.minimum.accumulate(down, axis=axis)
        out[i] = (up + down[::-1, ::-1]) / 2 - np.log(base)
    return out


def fit_prefill(frame: pd.DataFrame, gpu: MeasuredGpu) -> tuple[PrefillTable, ...]:
    """Compute efficiency per head dimension over (batch x query heads, new tokens)."""
    return tuple(_prefill_table(cells, gpu) for _, cells in frame.groupby("head_dim"))


def _prefill_table(cells: pd.DataFrame, gpu: MeasuredGpu) -> PrefillTable:
    latency = float(cells.measured_s.quantile(0.01))
    dim = int(cells.head_dim.iloc[0])
    new = cells.new_tokens.astype(float)
    flops = 2.0 * cells.batch * cells.query_heads * dim * new**2
    memory = 4.0 * cells.batch * dim * new * (cells.query_heads + cells.kv_heads)
    memory /= gpu.sheet.hbm_bandwidth * MEMORY_EFFICIENCY
    body = np.maximum(cells.measured_s - latency, 0.02 * cells.measured_s)
    compute = np.maximum(body**4 - memory**4, (0.3 * body) ** 4) ** 0.25
    cells = cells.assign(units=cells.batch * cells.query_heads, tokens=new, stray=False)
    cells["group"] = cells.query_heads / cells.kv_heads
    cells["residual"] = np.log(flops / (gpu.sheet.peak_flops * compute))
    cube = residual_table(cells, GROUP_KNOTS, PREFILL_UNITS, PREFILL_TOKENS)
    rounded = np.vectorize(lambda v: significant(v, 3))
    return PrefillTable(
        head_dim=dim,
        kernel_latency_us=round(latency / US, 2),
        memory_efficiency=MEMORY_EFFICIENCY,
        group_knots=GROUP_KNOTS,
        unit_knots=PREFILL_UNITS,
        token_knots=PREFILL_TOKENS,
        efficiency=rounded(np.minimum(np.exp(cube), 1.0)),
    )


def form_seconds(
    form: LibraryAttention, table: DecodeTable, cells: pd.DataFrame, gpu: MeasuredGpu
) -> Array:
    """Seconds of each decode cell by the physical form, without residual or regrouping."""
    out = np.empty(len(cells))
    for group in cells.group.unique():
        of_group = (cells.group == group).to_numpy()
        out[of_group] = form.base_seconds(
            table,
            cells.units.to_numpy(float)[of_group],
            cells.tokens.to_numpy(float)[of_group],
            group=float(group),
            packed_rows=float(form.padded_rows(float(group))),
            peak_flops=gpu.sheet.peak_flops,
            hbm_bandwidth=gpu.sheet.hbm_bandwidth,
        )
    return out


def with_parameters(table: DecodeTable, values: Array) -> DecodeTable:
    """The table with `PARAMETERS` set to these values, in their order."""
    changes: dict[str, Any] = {n: float(v) for n, v in zip(PARAMETERS, values, strict=False)}
    return replace(table, **changes)


def empty_table(head_dim: int) -> DecodeTable:
    """A decode table without residuals, with the parameters' start values."""
    start: dict[str, Any] = {name: first for name, (first, _) in PARAMETERS.items()}
    return DecodeTable(
        head_dim=head_dim,
        group_knots=GROUP_KNOTS,
        unit_knots=UNIT_KNOTS,
        token_knots=TOKEN_KNOTS,
        residual=np.zeros((len(GROUP_KNOTS), len(UNIT_KNOTS), len(TOKEN_KNOTS))),
        kv_head_knots=KV_HEAD_KNOTS,
        kv_head_residual=np.zeros(len(KV_HEAD_KNOTS)),
        max_unit_tokens=0.0,
        **start,
    )


def catalog_text(gpu: str, curve: LibraryAttention, residuals: Mapping[str, Any]) -> str:
    """The catalog file of a fitted curve; `residuals` are the figures of its errors."""
    names = [
        name
        for name in curve.__dataclass_fields__
        if name not in _TABLES and (name not in _OF_ASSUMPTIONS or getattr(curve, name))
    ]
    values: dict[str, Any] = {"source": curve.source}
    values |= {name: compact(getattr(curve, name)) for name in names}
    values |= {"origin": curve.origin, "residuals": residuals}
    for kind in ("decode", "prefill"):
        values[kind] = [fields_of(table) for table in getattr(curve, kind)]
    return toml_text(values, header=HEADER.format(gpu=gpu))
