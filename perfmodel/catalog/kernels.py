"""Kernel curves: `catalog/efficiency/GPU/*.toml`, read into `Efficiency`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import numpy as np

from perfmodel import catalog
from perfmodel.catalog._files import names, table
from perfmodel.catalog._schema import Knots, Number, Numbers, Table, Text, Whole, build, read
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

_Row = TypeVar("_Row")

# The runtime runs FlashInfer's kernel with its own schedule; where that was not measured, theirs.
_ATTENTION_LIKE = {"specroof": "flashinfer"}


def curves_for(engine: EngineProfile, gpu: GPU) -> Efficiency:
    """The kernel curves of an engine on a GPU."""
    kernels = (engine.attention_kernels, engine.linear_kernels)
    return efficiency(gpu.efficiency, *kernels, engine.measured_on, gpu.name)


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
        gemm=gemm_curve(_with_own(kernels, "gemm", linear_kernels), f"efficiency/{kernels}/gemm"),
        attention=attention_curve(attention, f"efficiency/{kernels}/attention-{library}"),
        collectives=collective_curve(
            _with_own(name, "collectives", linear_kernels), f"efficiency/{name}/collectives"
        ),
    )
    return curves.transfer_to(catalog.gpu(gpu)) if measured_on and gpu else curves


def measured_attention(name: str, attention_kernels: str) -> str:
    """The kernel library whose attention curve stands for `attention_kernels` on this GPU."""
    if f"attention-{attention_kernels}" in _files_of(name):
        return attention_kernels
    return _ATTENTION_LIKE.get(attention_kernels, attention_kernels)


def _files_of(name: str) -> tuple[str, ...]:
    if name not in names("efficiency"):
        raise unknown_name("efficiency", name, names("efficiency"))
    return names(f"efficiency/{name}")


def _table(name: str, file: str) -> dict[str, Any]:
    return table(f"efficiency/{name}", file)


def _with_own(name: str, kind: str, kernels: str) -> dict[str, Any]:
    """The GPU's table, with what was measured of an engine's own kernels in its place."""
    own = f"{kind}-{kernels}"
    return _table(name, kind) | (_table(name, own) if own in _files_of(name) else {})


# ---- attention --------------------------------------------------------------------------------


def attention_curve(entries: Mapping[str, Any], where: str = "attention") -> AttentionCurve:
    """The curve of a parsed attention file: with `[[blocks]]` scheduled, else a library's.

    Raises
    ------
    ConfigError
        If a key is unknown or missing, knots do not rise, or a shape does not match its knots.
    """
    body = {key: value for key, value in entries.items() if key != "residuals"}  # for people
    blocks = _rows(BlockTable, body.pop("blocks", ()), f"{where}: blocks")
    for kind, row in (("decode", DecodeTable), ("prefill", PrefillTable)):
        body[kind] = _rows(row, body.get(kind, ()), f"{where}: {kind}")
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


def _rows(row: type[_Row], entries: Sequence[Mapping[str, Any]], where: str) -> tuple[_Row, ...]:
    return tuple(build(row, each, f"{where}[{i}]") for i, each in enumerate(entries))


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


class _GemmFile(Table):
    kernel_latency_us: Number
    memory_efficiency: Number
    compute_efficiency: Number
    overlap_exponent: Number
    source: _GemmSource
    fit: dict[str, Any]  # how it was made and how far it errs: for people
    residuals: dict[str, Any]
    waves: dict[str, Any] | None = None
    table: _GemmTable
    own: _OwnTable | None = None


def gemm_curve(entries: Mapping[str, Any], where: str = "gemm") -> GemmCurve:
    """The curve of a parsed `gemm.toml`.

    Raises
    ------
    ConfigError
        If a key is unknown or missing, or a figure is out of its range; it is named.
    """
    file = read(_GemmFile, entries, where)
    m, n, k = file.table.m, file.table.n, file.table.k
    per_mille, shape = file.table.time_over_roofline_per_mille, (n.size * k.size, m.size)
    if per_mille.shape != shape or not np.all(per_mille > 0):
        raise ConfigError(
            f"{where}: table.time_over_roofline_per_mille needs {shape[0]} rows of {shape[1]} "
            f"positive figures, one for each (n, k) and m; its shape is {per_mille.shape}"
        )
    source = file.source
    try:
        return GemmCurve(
            kernel_latency_s=file.kernel_latency_us * US,
            memory_efficiency=file.memory_efficiency,
            compute_efficiency=file.compute_efficiency,
            overlap_exponent=file.overlap_exponent,
            m_knots=m,
            n_knots=n,
            k_knots=k,
            log_multiplier=np.moveaxis(
                np.log(per_mille.reshape(n.size, k.size, m.size) / 1000.0), -1, 0
            ),
            source=f"{source.dataset}, {source.device}, {source.kernel_library}",
            waves=None if file.waves is None else build(Waves, file.waves, "waves"),
            own=None if file.own is None else _own_products(file.own),
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _own_products(own: _OwnTable) -> OwnProducts:
    shapes = own.shapes.reshape(-1, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return OwnProducts(
            m_knots=own.m,
            log_n=np.log(shapes[:, 0]),
            log_k=np.log(shapes[:, 1]),
            log_ratio=np.log(own.time_over_table_per_10000 / 1e4),
        )


# ---- collectives ------------------------------------------------------------------------------


class _Measured(Table):
    operation: Text
    algorithm: Text
    ranks: Whole
    message_bytes: Knots
    time_us: Numbers


class _CollectiveFile(Table):
    source: Text
    link_kind: Text
    link_GBps: Number
    alpha_beta: list[dict[str, Any]]
    measured: tuple[_Measured, ...] = ()
    residuals: dict[str, Any] | None = None


def collective_curve(entries: Mapping[str, Any], where: str = "collectives") -> CollectiveCurve:
    """The curve of a parsed `collectives.toml`.

    Raises
    ------
    ConfigError
        If a key is unknown or missing, or measured times fall as messages grow.
    """
    file = read(_CollectiveFile, entries, where)
    for row in file.measured:
        time, name = row.time_us, f"{where}: {row.operation} {row.algorithm} x{row.ranks}"
        if time.shape != row.message_bytes.shape or time.size < 2:
            raise ConfigError(f"{name}: {row.message_bytes.size} sizes but {time.size} times")
        if time[0] <= 0 or np.any(np.diff(time) < 0):
            raise ConfigError(f"{name}: times must be positive and never fall")
    return CollectiveCurve(
        source=file.source,
        link_kind=file.link_kind,
        link_bandwidth=file.link_GBps * GB,
        measured=tuple(
            MeasuredTimes(
                operation=row.operation,
                algorithm=row.algorithm,
                ranks=row.ranks,
                message_bytes=row.message_bytes,
                seconds=row.time_us * US,
            )
            for row in file.measured
        ),
        alpha_beta=_rows(AlphaBeta, file.alpha_beta, f"{where}: alpha_beta"),
    )
