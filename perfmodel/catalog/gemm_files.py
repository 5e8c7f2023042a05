"""Parse the files of GEMM curves: `gemm*.toml` of `catalog/efficiency/GPU/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from perfmodel.catalog._schema import Knots, Number, Numbers, Table, Text, build, read
from perfmodel.errors import ConfigError
from perfmodel.kernels.gemm import GemmCurve, MeasuredRatios, Waves
from perfmodel.units import US


class _GemmSource(Table):
    dataset: Text
    licence: Text
    device: Text
    kernel_library: Text
    kernel_version: Text
    dtype: Text


class _GemmTable(Table):
    m: Knots
    n: Knots
    k: Knots
    time_over_roofline_per_mille: Numbers  # one row per (n, k), n-major; one column per m


class _MeasuredTable(Table):
    source: Text
    command: Text
    median_percent: Number
    p90_percent: Number
    m: Knots
    shapes: Numbers  # (n, k)
    time_over_table_per_10000: Numbers  # one row per shape, one column per m


def gemm_curve(entries: Mapping[str, Any], where: str = "gemm") -> GemmCurve:
    """The curve of a parsed `gemm.toml`; `ConfigError` if it is malformed."""
    parts = ("source", "table", "waves", "measured", "own")
    source, table, waves, measured, former = (entries.get(part) for part in parts)
    measured = measured or former  # files of earlier versions have [own]
    about = read(_GemmSource, source or {}, f"{where}: source")
    grid = read(_GemmTable, table or {}, f"{where}: table")
    per_mille, shape = grid.time_over_roofline_per_mille, (grid.n.size * grid.k.size, grid.m.size)
    if per_mille.shape != shape or not np.all(per_mille > 0):
        raise ConfigError(
            f"{where}: table.time_over_roofline_per_mille needs {shape[0]} rows of {shape[1]} "
            f"positive numbers, one per (n, k) and m; its shape is {per_mille.shape}"
        )
    cube = per_mille.reshape(grid.n.size, grid.k.size, grid.m.size)
    known = {key: entries[key] for key in entries if key not in (*parts, "fit", "residuals")}
    made = {
        "m_knots": grid.m,
        "n_knots": grid.n,
        "k_knots": grid.k,
        "log_multiplier": np.moveaxis(np.log(cube / 1000.0), -1, 0),
        "source": f"{about.dataset}, {about.device}, {about.kernel_library}",
        "waves": waves and build(Waves, waves, f"{where}: waves"),
        "measured": measured and measured_ratios(measured, f"{where}: measured"),
    }
    return build(GemmCurve, known | made, where, {"latency_s": ("latency_us", US)})


def measured_ratios(entries: Mapping[str, Any], where: str) -> MeasuredRatios:
    """The ratios of a parsed `[measured]` table; errors as in `gemm_curve`."""
    table = read(_MeasuredTable, entries, where)
    shapes = table.shapes.reshape(-1, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        made = {
            "m_knots": table.m,
            "log_n": np.log(shapes[:, 0]),
            "log_k": np.log(shapes[:, 1]),
            "log_ratio": np.log(table.time_over_table_per_10000 / 1e4),
        }
    return build(MeasuredRatios, made, where)
