"""Kernel curves: `catalog/efficiency/GPU/*.toml`, read into `Efficiency`."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any

from perfmodel import catalog
from perfmodel.errors import unknown_name
from perfmodel.kernels.attention import AttentionCurve
from perfmodel.kernels.collectives import CollectiveCurve
from perfmodel.kernels.curves import Efficiency, carried
from perfmodel.kernels.gemm import GemmCurve

_FOLDER = resources.files("perfmodel") / "catalog" / "efficiency"
# The runtime runs FlashInfer's kernel with blocks of its own; where that was not measured, theirs.
_ATTENTION_LIKE = {"specroof": "flashinfer"}


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
        products and attention are its own, carried to `gpu`. Sums over ranks stay those of `name`.
    gpu : str
        The GPU that the curves are for.

    Raises
    ------
    ConfigError
        If there is no such folder.
    """
    folder, kernels = _folder(name), _folder(measured_on or name)
    attention = _read(kernels / "attention.toml")
    library = measured_attention(kernels.name, attention_kernels)
    if library != "vllm":
        attention |= _read(kernels / f"attention-{library}.toml")
    curves = Efficiency(
        name=measured_on or name,
        gemm=GemmCurve.from_table(_with_own(kernels, "gemm", linear_kernels)),
        attention=AttentionCurve.from_table(attention),
        collectives=CollectiveCurve.from_table(_with_own(folder, "collectives", linear_kernels)),
    )
    if not measured_on or not gpu:
        return curves
    return carried(curves, catalog.gpu(gpu))


def _folder(name: str) -> Any:
    folder = _FOLDER / name
    if not folder.is_dir():
        raise unknown_name("efficiency", name, (f.name for f in _FOLDER.iterdir() if f.is_dir()))
    return folder


def _with_own(folder: Any, kind: str, kernels: str) -> dict[str, Any]:
    """The GPU's table, with what was measured of an engine's own kernels in its place."""
    own = folder / f"{kind}-{kernels}.toml"
    return _read(folder / f"{kind}.toml") | (_read(own) if own.is_file() else {})


def measured_attention(name: str, attention_kernels: str) -> str:
    """The kernel library whose attention curve stands for `attention_kernels` on this GPU."""
    own = (_FOLDER / name / f"attention-{attention_kernels}.toml").is_file()
    return attention_kernels if own else _ATTENTION_LIKE.get(attention_kernels, attention_kernels)


def _read(path: Any) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))
