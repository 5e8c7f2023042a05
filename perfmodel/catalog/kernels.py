"""Kernel curves: `catalog/efficiency/GPU/*.toml`, read into `Efficiency`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from perfmodel import catalog
from perfmodel.catalog._files import names, table
from perfmodel.catalog._schema import Knots, Number, Numbers, Table, Text, build, build_rows, read
from perfmodel.errors import ConfigError, unknown_name
from perfmodel.kernels.attention import AttentionCurve, PrefillTable
from perfmodel.kernels.attention_library import DecodeTable, LibraryAttention
from perfmodel.kernels.attention_scheduled import BlockTable, ScheduledAttention
from perfmodel.kernels.collectives import AlphaBeta, CollectiveCurve, MeasuredTimes
from perfmodel.kernels.curves import Efficiency
from perfmodel.kernels.gemm import GemmCurve, OwnProducts, Waves
from perfmodel.specs.engine import EngineProfile
from perfmodel.specs.gpu import GPU
from perfmodel.units import GB, US

# The runtime runs FlashInfer's kernel with its own schedule; where that was not measured, theirs.
_ATTENTION_LIKE = {"specroof": "flashinfer"}


def curves_for(engine: EngineProfile, gpu: GPU) -> Efficiency:
    """The kernel curves of an engine on a GPU."""
    kernels = (engine.attention_kernels, engine.linear_kernels)
    measured_on = engine.measured_on if engine.has_own_kernels else ""
    return efficiency(gpu.efficiency, *kernels, measured_on, gpu.name)


@cache
def efficiency(
    name: str,
    attention_kernels: str = "vllm",
    linear_kernels: str = "library",
    measured_on: str = "",
    gpu: str = "",
) -> Efficiency:
    """The curves of catalog folder `name`, with attention by the named kernel library.

    Parameters
    ----------
    name : str
        A folder of `catalog/efficiency/`, as `GPU.efficiency` states it.
    attention_kernels : str
        "vllm"; "flashinfer", vLLM's measured kernels with what FlashInfer schedules otherwise; or
        "specroof", the runtime's own where they were measured, else as "flashinfer".
    linear_kernels : str
        "library", or "specroof": the runtime's own products, and sums over ranks, where they
        were measured.
    measured_on : str
        The GPU whose kernels were timed with the engine, as `EngineProfile.measured_on` states it:
        products and attention are that GPU's, transferred to `gpu`. Sums over ranks stay those of
        `name`.
    gpu : str
        The GPU that the curves are for.

    Raises
    ------
    ConfigError
        If there is no such folder.
    """
    kernels = measured_on or name
    library = measured_attention(kernels, attention_kernels)
    attention = _table(kernels, "attention")
    if library != "vllm":
        attention |= _table(kernels, f"attention-{library}")
    curves = Efficiency(
        name=kernels,
        gemm=gemm_curve(
            _with_measured(kernels, "gemm", linear_kernels), f"efficiency/{kernels}/gemm"
        ),
        attention=attention_curve(attention, f"efficiency/{kernels}/attention-{library}"),
        collectives=collective_curve(
            _with_measured(name, "collectives", linear_kernels), f"efficiency/{name}/collectives"
        ),
    )
    return curves.transfer_to(catalog.gpu(gpu)) if measured_on and gpu else curves


def measured_attention(name: str, attention_kernels: str) -> str:
    """The kernel library whose attention curve serves `attention_kernels` on this GPU."""
    if f"attention-{attention_kernels}" in _files_of(name):
        return attention_kernels
    return _ATTENTION_LIKE.get(attention_kernels, attention_kernels)


def _files_of(name: str) -> tuple[str, ...]:
    if name not in names("efficiency"):
        raise unknown_name("efficiency", name, names("efficiency"))
    return names(f"efficiency/{name}")


def _table(name: str, file: str) -> dict[str, Any]:
    return table(f"efficiency/{name}", file)


def _with_measured(name: str, kind: str, kernels: str) -> dict[str, Any]:
    """The GPU's table, with the keys replaced that were measured with an engine's kernels."""
    file = f"{kind}-{kernels}"
    return _table(name, kind) | (_table(name, file) if file in _files_of(name) else {})


# ---- attention --------------------------------------------------------------------------------


def attention_curve(entries: Mapping[str, Any], where: str = "attention") -> AttentionCurve:
    """The curve of a parsed attention file: with `[[blocks]]` scheduled, else a library's.

    Raises
    ------
    ConfigError
        If a key is unknown or missing, knots do not rise, or a shape does not match its knots.
    """
    body = {key: value for key, value in entries.items() if key != "residuals"}  # for people
    blocks = build_rows(BlockTable, body.pop("blocks", ()), f"{where}: blocks")
    for kind, row in (("decode", DecodeTable), ("prefill", PrefillTable)):
        body[kind] = build_rows(row, body.get(kind, ()), f"{where}: {kind}")
        if not body[kind]:
            raise ConfigError(f"{where}: needs a [[{kind}]] per head dimension")
    library = build(LibraryAttention, body, where)
    if not blocks:
        return library
    return ScheduledAttention(
        source=library.source,
        sm_count=library.sm_count,
        prefill=library.prefill,
        origin=library.origin,
        blocks=blocks,
    )


# ---- dense layers -----------------------------------------------------------------------------


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
    time_over_roofline_per_mille: Numbers  # a row for each (n, k), n-major; a column for each m


class _OwnTable(Table):
    source: Text
    command: Text
    median_percent: Number
    p90_percent: Number
    m: Knots
    shapes: Numbers  # (n, k)
    time_over_table_per_10000: Numbers  # a row for each shape, a column for each m


def gemm_curve(entries: Mapping[str, Any], where: str = "gemm") -> GemmCurve:
    """The curve of a parsed `gemm.toml`; errors as `attention_curve`."""
    parts = ("source", "table", "waves", "own")
    source, table, waves, own = (entries.get(part) for part in parts)
    about = read(_GemmSource, source or {}, f"{where}: source")
    grid = read(_GemmTable, table or {}, f"{where}: table")
    per_mille, shape = grid.time_over_roofline_per_mille, (grid.n.size * grid.k.size, grid.m.size)
    if per_mille.shape != shape or not np.all(per_mille > 0):
        raise ConfigError(
            f"{where}: table.time_over_roofline_per_mille needs {shape[0]} rows of {shape[1]} "
            f"positive figures, one for each (n, k) and m; its shape is {per_mille.shape}"
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
        "own": own and _own_products(read(_OwnTable, own, f"{where}: own"), where),
    }
    return build(GemmCurve, known | made, where, {"latency_s": ("latency_us", US)})


def _own_products(own: _OwnTable, where: str) -> OwnProducts:
    shapes = own.shapes.reshape(-1, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        made = {
            "m_knots": own.m,
            "log_n": np.log(shapes[:, 0]),
            "log_k": np.log(shapes[:, 1]),
            "log_ratio": np.log(own.time_over_table_per_10000 / 1e4),
        }
    return build(OwnProducts, made, where)


def collective_curve(entries: Mapping[str, Any], where: str = "collectives") -> CollectiveCurve:
    """The curve of a parsed `collectives.toml`; errors as `attention_curve`, and falling times."""
    body = {key: value for key, value in entries.items() if key != "residuals"}
    for kind, row in (("measured", MeasuredTimes), ("alpha_beta", AlphaBeta)):
        body[kind] = build_rows(
            row, body.get(kind, ()), f"{where}: {kind}", {"seconds": ("time_us", US)}
        )
    return build(CollectiveCurve, body, where, {"link_bandwidth": ("link_GBps", GB)})
