"""Attention curves fitted to aiconfigurator's kernel tables, written as catalog files.

    python -m calibration.fit.tables.attention_fit --data DIR [--gpu NAME ...] [--out DIR]

Two stages. Seven parameters of the physical form by robust least squares on the logarithm of the
time, per head dimension; then what is left, averaged per (group, work units, KV tokens) cell, as
the residual table. Errors are of held-out cells with the seven parameters kept (thousands of cells
fix them; one cell, or one knot, does not move them).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.fit.tables.attention_report import print_report, summary, toml_text
from calibration.fit.tables.attention_residuals import held_out, residual_table
from calibration.fit.tables.attention_tables import (
    GPUS,
    MeasuredGpu,
    kernel_source,
    read_decode,
    read_prefill,
)
from perfmodel import DecodeTable, LibraryAttention, PrefillTable
from perfmodel.units import US

Array = NDArray[np.float64]

GROUP_KNOTS = np.array([1, 2, 4, 8, 16, 32, 64], float)
KV_HEAD_KNOTS = np.array([1, 2, 4, 8], float)
UNIT_KNOTS = np.array([2**n for n in range(15)], float)
TOKEN_KNOTS = np.array([2, 16, 64, *(2**n for n in range(7, 18))], float)
PREFILL_UNITS = np.array([2**n for n in range(14)], float)
PREFILL_TOKENS = np.array([1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384], float)
MEMORY_EFFICIENCY = 0.8  # of prefill's memory side; rarely binds
DECODE_TOKENS = 128  # cells below are not decode's business, and not in the error figures

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


@dataclass(frozen=True, eq=False)
class DecodeFit:
    """One head dimension: its cells with `base_s`, `regroup_s`, `residual`, and the table."""

    cells: pd.DataFrame
    table: DecodeTable
    regroup_latency_us: float


def fit_gpu(data: Path, gpu: MeasuredGpu) -> tuple[LibraryAttention, list[DecodeFit]]:
    """Both curves of one GPU and, per head dimension, what the error figures are made of."""
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
    """Compute efficiency where neither latency nor too few blocks show."""
    large = table.efficiency[:, table.unit_knots >= 32][:, :, table.token_knots >= 8192]
    return float(np.median(large))


def physical_form(gpu: MeasuredGpu, **given: Any) -> LibraryAttention:
    """The curve before its decode tables: geometry of the GPU and the kernel, and assumptions.

    The row tiles are FlashInfer's and flash-attn's block heights. The factor 1.2 above 16 rows was
    seen on one H200 (FlashInfer fa2, 32 against 16 packed rows); elsewhere it is assumed.
    """
    return LibraryAttention(
        sm_count=gpu.sheet.sm_count,
        blocks_per_sm=gpu.blocks_per_sm,
        split_min_group=gpu.split_min_group,
        split_occupancy=0.8,
        split_min_tokens=128,
        regroup_latency_us=0.0,
        row_tiles=np.array([16.0, 32.0, 64.0, 128.0]),
        row_tile_factor=np.array([1.0, 1.2, 1.2, 1.2]),
        decode=(),
        origin={
            "decode": "fitted",
            "prefill": "fitted",
            "row_tile_factor": "assumed",
            "tensor_core_efficiency": "the plateau of prefill, assumed for decode",
        },
        **given,
    )


def fit_decode(
    cells: pd.DataFrame,
    form: LibraryAttention,
    gpu: MeasuredGpu,
) -> DecodeFit:
    """Parameters, then the residual table, of one head dimension."""
    # Imported here so that reading a fitted curve never needs scipy.
    from scipy.optimize import least_squares

    empty = _empty_table(int(cells.head_dim.iloc[0]))
    copies = ((cells.group > 1) & (cells.kv_heads > 1) & (cells.batch > 1)).to_numpy(float)
    used = (cells.tokens >= 64).to_numpy()
    cold = cells.cold_s.to_numpy()

    def misfit(logs: Array) -> Array:
        table = _with_parameters(empty, np.exp(logs))
        base = _base(form, table, cells[used], gpu) + copies[used] * np.exp(logs[-1]) * US
        return np.asarray(np.log(base / cold[used]))

    start = np.log([*(s for s, _ in PARAMETERS.values()), REGROUP_START_US])
    upper = np.log([*(b for _, b in PARAMETERS.values()), 20.0])
    lower = np.minimum(start, upper) - np.log(1e4)
    best = least_squares(misfit, start, bounds=(lower, upper), loss="soft_l1", f_scale=0.1)
    values = np.array([float(f"{v:.4g}") for v in np.exp(best.x)])
    table = _with_parameters(empty, values)
    base = _base(form, table, cells, gpu)
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
    """Mean ln(time above latency) of a KV head count over that of cells with the same group,
    units and tokens, from 1,024 tokens up and with the KV in HBM."""
    above = cells.cold_s - cells.regroup_s - table.kernel_latency_us * US
    used = cells[(above > 0) & ~cells.in_l2 & (cells.tokens >= 1024)]
    logs = np.log(above[used.index])
    keys = [used.group, used.units, used.tokens]
    apart = (logs - logs.groupby(keys).transform("mean"))[used.index]
    replicated = logs.groupby(keys).transform("size") >= 3
    mean = apart[replicated].groupby(used.kv_heads[replicated]).median()
    return np.asarray(mean.reindex(table.kv_head_knots).fillna(0.0).round(3), float)


def _mean_heads_seconds(cells: pd.DataFrame, table: DecodeTable) -> Array:
    """Measured times without the regrouping copy, brought to the mean KV head count."""
    body = np.maximum(cells.cold_s - cells.regroup_s, 0.3 * cells.base_s).to_numpy()
    latency = table.kernel_latency_us * US
    factor = np.exp(np.interp(np.log(cells.kv_heads), np.log(table.kv_head_knots),
                              table.kv_head_residual))  # fmt: skip
    return np.asarray(np.where(body > latency, latency + (body - latency) / factor, body))


def _stray(cells: pd.DataFrame) -> pd.Series:
    """Cells over 1.25x the time of one with more KV of the same batch and heads: timing accidents.

    They stay out of the table (a running maximum would spread them) but in the error figures.
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
    """The residuals whose times lie midway (in logarithms) between the running maximum from below
    and the running minimum from above, so that times never fall along units (0) or tokens (1)."""
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
    significant = np.vectorize(lambda v: float(f"{v:.3g}"))
    return PrefillTable(
        head_dim=dim,
        kernel_latency_us=round(latency / US, 2),
        memory_efficiency=MEMORY_EFFICIENCY,
        group_knots=GROUP_KNOTS,
        unit_knots=PREFILL_UNITS,
        token_knots=PREFILL_TOKENS,
        efficiency=significant(np.minimum(np.exp(cube), 1.0)),
    )


def _base(
    form: LibraryAttention, table: DecodeTable, cells: pd.DataFrame, gpu: MeasuredGpu
) -> Array:
    out = np.empty(len(cells))
    for group in cells.group.unique():
        mine = (cells.group == group).to_numpy()
        out[mine] = form.base_seconds(
            table,
            cells.units.to_numpy(float)[mine],
            cells.tokens.to_numpy(float)[mine],
            group=float(group),
            packed_rows=float(form.padded_rows(float(group))),
            peak_flops=gpu.sheet.peak_flops,
            hbm_bandwidth=gpu.sheet.hbm_bandwidth,
        )
    return out


def _with_parameters(table: DecodeTable, values: Array) -> DecodeTable:
    changes: dict[str, Any] = {n: float(v) for n, v in zip(PARAMETERS, values, strict=False)}
    return replace(table, **changes)


def _empty_table(head_dim: int) -> DecodeTable:
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


WAYS = ("cell", "heads", "batch", "units", "tokens")


def errors(curve: LibraryAttention, fits: list[DecodeFit], gpu: MeasuredGpu) -> pd.DataFrame:
    """Decode cells from 128 KV tokens up, with the relative error of each way of holding out.

    `in_sample` is the finished curve's, running maximum and rounding included.
    """
    parts = []
    for fit in fits:
        cells = fit.cells.assign(heads=fit.cells.query_heads * 1000 + fit.cells.kv_heads)
        ways = {f"{way}_out": held_out(cells, fit.table, way) for way in WAYS}
        parts.append(cells.assign(**ways, in_sample=_in_sample(curve, cells, gpu)))
    frame = pd.concat(parts)
    return frame[frame.tokens >= DECODE_TOKENS]


def _in_sample(curve: LibraryAttention, cells: pd.DataFrame, gpu: MeasuredGpu) -> pd.Series:
    out = pd.Series(np.nan, index=cells.index)
    for (query_heads, kv_heads), part in cells.groupby(["query_heads", "kv_heads"]):
        seconds = curve.seconds(
            batch=part.batch.to_numpy(),
            kv_tokens=part.tokens.to_numpy(),
            query_heads=int(query_heads),
            kv_heads=int(kv_heads),
            head_dim=int(part.head_dim.iloc[0]),
            peak_flops=gpu.sheet.peak_flops,
            hbm_bandwidth=gpu.sheet.hbm_bandwidth,
        )
        out[part.index] = seconds / part.cold_s - 1.0
    return out


def prefill_errors(curve: LibraryAttention, frame: pd.DataFrame, gpu: MeasuredGpu) -> pd.DataFrame:
    """Prefill cells with the curve's relative error; `on_knots` cells are in its table."""
    parts = []
    for (dim, query_heads, kv_heads), part in frame.groupby(
        ["head_dim", "query_heads", "kv_heads"]
    ):
        seconds = curve.prefill_seconds(
            batch=part.batch.to_numpy(),
            new_tokens=part.new_tokens.to_numpy(),
            query_heads=int(query_heads),
            kv_heads=int(kv_heads),
            head_dim=int(dim),
            peak_flops=gpu.sheet.peak_flops,
            hbm_bandwidth=gpu.sheet.hbm_bandwidth,
        )
        on = part.new_tokens.isin(PREFILL_TOKENS) & (part.batch * query_heads).isin(PREFILL_UNITS)
        on &= query_heads / kv_heads in GROUP_KNOTS
        parts.append(part.assign(error=seconds / part.measured_s - 1.0, on_knots=on))
    return pd.concat(parts)


def main() -> None:
    """Fit, print and, with --out, write `<out>/<gpu>/attention.toml`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of the system folders")
    parser.add_argument("--gpu", nargs="*", default=list(GPUS), choices=list(GPUS))
    parser.add_argument("--out", type=Path, help="efficiency catalog to write into")
    arguments = parser.parse_args()
    for name in arguments.gpu:
        gpu = GPUS[name]
        curve, fits = fit_gpu(arguments.data, gpu)
        decode = errors(curve, fits, gpu)
        columns = ["in_sample", *(f"{way}_out" for way in WAYS)]
        print_report(name, decode, columns)
        prefill = prefill_errors(curve, read_prefill(arguments.data, gpu), gpu)
        figures = {**summary(decode, columns), **prefill_summary(prefill)}
        if arguments.out:
            folder = arguments.out / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "attention.toml").write_text(toml_text(name, curve, figures))


def prefill_summary(cells: pd.DataFrame) -> dict[str, float]:
    out = {}
    regions = {
        "long": cells[cells.new_tokens >= 1024],
        "short": cells[cells.new_tokens.between(16, 512)],
    }
    for region, part in regions.items():
        for label, some in (("on", part[part.on_knots]), ("between", part[~part.on_knots])):
            size = some.error.abs() * 100
            name = f"prefill_{region}_{label}_knots"
            out[f"{name}_median_percent"] = round(float(size.median()), 2)
            out[f"{name}_p90_percent"] = round(float(size.quantile(0.9)), 2)
    print("prefill |error| %:", out)
    return out


if __name__ == "__main__":
    main()
