"""Read the kernel curves of `catalog/efficiency/GPU/*.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

from perfmodel import catalog
from perfmodel.catalog._files import names, table
from perfmodel.catalog._schema import build, build_rows
from perfmodel.catalog.gemm_files import gemm_curve, measured_ratios
from perfmodel.catalog.quantised_kernels import (
    experts_curves,
    kv_fp8_table,
    latent_curves,
    quantised_gemms,
)
from perfmodel.errors import ConfigError, unknown_name
from perfmodel.kernels.attention import AttentionCurve, PrefillTable
from perfmodel.kernels.attention_library import DecodeTable, LibraryAttention, TallBlocks
from perfmodel.kernels.attention_scheduled import BlockTable, ScheduledAttention
from perfmodel.kernels.collectives import AlphaBeta, CollectiveCurve, Exchange, MeasuredTimes
from perfmodel.kernels.curves import Efficiency
from perfmodel.kernels.gemm import GemmCurve
from perfmodel.specs.engine import EngineProfile
from perfmodel.specs.gpu import GPU
from perfmodel.units import GB, US

# The runtime uses FlashInfer's kernel; where its schedule was not measured, FlashInfer's is used.
_ATTENTION_LIKE = {"specroof": "flashinfer"}


def curves_for(engine: EngineProfile, gpu: GPU, link_kind: str) -> Efficiency:
    """The kernel curves of an engine on a GPU.

    PCIe cards whose curves were measured over NVLink use the collectives of the measured PCIe GPU.
    """
    kernels = (engine.attention_kernels, engine.linear_kernels)
    measured_on = engine.measured_on if engine.has_own_kernels else ""
    curves = efficiency(gpu.efficiency, *kernels, measured_on, gpu if measured_on else None)
    if curves.name != gpu.name:
        curves = _without_steps(curves)
    if link_kind == "pcie" != curves.collectives.link_kind:
        return replace(curves, collectives=_pcie_collectives())
    return curves


@lru_cache(maxsize=256)
def _without_steps(curves: Efficiency) -> Efficiency:
    return curves.without_steps()


@cache
def _pcie_collectives() -> CollectiveCurve:
    """The collectives of the only GPU that was measured over PCIe, for other GPUs."""
    name = next(n for n in names("efficiency") if _table(n, "collectives")["link_kind"] == "pcie")
    return efficiency(name).collectives.on_other_machines()


@lru_cache(maxsize=256)  # GPUs of users are not limited in number
def efficiency(
    name: str,
    attention_kernels: str = "vllm",
    linear_kernels: str = "library",
    measured_on: str = "",
    gpu: GPU | None = None,
) -> Efficiency:
    """The curves of a catalog folder, for the given kernel libraries.

    Raises `ConfigError` if the folder does not exist.

    Parameters
    ----------
    name : str
        A folder of `catalog/efficiency/` (`GPU.efficiency`).
    attention_kernels : str
        "vllm"; "flashinfer", which is vLLM's measured kernels with FlashInfer's scheduling; or
        "specroof", the runtime's kernels where they were measured, otherwise as "flashinfer".
    linear_kernels : str
        "library", or "specroof": the runtime's GEMMs and all-reduces where they were measured.
    measured_on : str
        The GPU whose GEMM and attention curves are transferred to `gpu`
        (`EngineProfile.measured_on`). Collectives remain those of `name`.
    gpu : GPU, optional
        The GPU that the curves are for.
    """
    kernels = measured_on or name
    library = measured_attention(kernels, attention_kernels)
    attention = _table(kernels, "attention")
    if library != "vllm":
        rule = {f"fitted_{key}": attention[key] for key in ("split_min_group", "split_occupancy")}
        attention |= rule | _table(kernels, f"attention-{library}")
    gemm = gemm_curve(_with_measured(kernels, "gemm", linear_kernels), f"efficiency/{kernels}/gemm")
    curves = Efficiency(
        name=kernels,
        gemm=gemm,
        gemm_of_ranks=_gemm_of_ranks(gemm, kernels, linear_kernels),
        attention=attention_curve(attention, f"efficiency/{kernels}/attention-{library}"),
        collectives=collective_curve(
            _collectives(name, linear_kernels), f"efficiency/{name}/collectives"
        ),
        quantised=quantised_gemms(kernels),
        experts=experts_curves(kernels),
        latent=latent_curves(kernels),
        kv_fp8=kv_fp8_table(kernels),
    )
    return curves.transfer_to(gpu) if measured_on and gpu else curves


def measured_attention(name: str, attention_kernels: str) -> str:
    """The kernel library whose attention curve is used for `attention_kernels` on this GPU."""
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
    """The GPU's table, in which keys measured with an engine's kernels replace the library's."""
    file = f"{kind}-{kernels}"
    return _table(name, kind) | (_table(name, file) if file in _files_of(name) else {})


def _collectives(name: str, kernels: str) -> dict[str, Any]:
    """Like `_with_measured`; a GPU without a measured exchange uses that of its architecture.

    An exchange depends on the link bandwidth, which the machine states, and on multiprocessors.
    """
    entries = _with_measured(name, "collectives", kernels)
    if "exchange" in entries or kernels == "library":
        return entries
    for other in names("efficiency"):
        same = catalog.gpu(other).architecture == catalog.gpu(name).architecture
        exchange = _with_measured(other, "collectives", kernels).get("exchange") if same else None
        if exchange:
            return entries | {"exchange": exchange | {"measured_ranks": []}}
    return entries


# ---- attention --------------------------------------------------------------------------------


def attention_curve(entries: Mapping[str, Any], where: str = "attention") -> AttentionCurve:
    """The curve of a parsed attention file: `ScheduledAttention` if it has `[[blocks]]`.

    Raises `ConfigError` if a key is unknown or missing, knots do not increase, or a shape does not
    match its knots.
    """
    body = {
        key: value for key, value in entries.items() if key != "residuals"
    }  # only documentation
    blocks = build_rows(BlockTable, body.pop("blocks", ()), f"{where}: blocks")
    for kind, row in (("decode", DecodeTable), ("prefill", PrefillTable)):
        body[kind] = build_rows(row, body.get(kind, ()), f"{where}: {kind}")
        if not body[kind]:
            raise ConfigError(f"{where}: needs one [[{kind}]] table per head dimension")
    if "tall" in body:
        body["tall"] = build(TallBlocks, body["tall"], f"{where}: tall")
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


# ---- dense layers of ranks, collectives -------------------------------------------------------


def _gemm_of_ranks(gemm: GemmCurve, name: str, kernels: str) -> GemmCurve:
    """The curve with the matrices of tensor-parallel ranks added, if they were timed."""
    file = f"gemm-{kernels}-ranks"
    if file not in _files_of(name) or gemm.measured is None:
        return gemm
    ranks = measured_ratios(_table(name, file).get("measured", {}), f"efficiency/{name}/{file}")
    return replace(gemm, measured=gemm.measured.joined(ranks))


def collective_curve(entries: Mapping[str, Any], where: str = "collectives") -> CollectiveCurve:
    """The curve of a parsed `collectives.toml`; errors as in `attention_curve`."""
    body = {key: value for key, value in entries.items() if key != "residuals"}
    if "exchange" in body:
        units = {
            "_s": ("_us", US),
            "_s_per_byte": ("_us_per_KiB", US / 1024),
            "_bytes": ("_KiB", 1024.0),
        }
        body["exchange"] = build(Exchange, body["exchange"], f"{where}: exchange", units)
    for kind, row in (("measured", MeasuredTimes), ("alpha_beta", AlphaBeta)):
        body[kind] = build_rows(
            row, body.get(kind, ()), f"{where}: {kind}", {"seconds": ("time_us", US)}
        )
    return build(CollectiveCurve, body, where, {"link_bandwidth": ("link_GBps", GB)})
