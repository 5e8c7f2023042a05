"""`Efficiency`: the fitted kernel curves of one GPU, read from `catalog/efficiency/`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from perfmodel.attention_curve import AttentionCurve
from perfmodel.collectives import CollectiveCurve
from perfmodel.errors import unknown_name
from perfmodel.gemm_curve import GemmCurve

_FOLDER = resources.files("perfmodel") / "catalog" / "efficiency"


@dataclass(frozen=True, eq=False, kw_only=True)
class Efficiency:
    """Kernel times as fitted fractions of a GPU's peaks; each curve says where it was measured."""

    name: str
    gemm: GemmCurve
    attention: AttentionCurve
    collectives: CollectiveCurve


@cache
def efficiency(name: str, attention_kernels: str = "vllm") -> Efficiency:
    """The curves of catalog folder `name`, with attention by the named kernel library.

    Parameters
    ----------
    name : str
        A folder of `catalog/efficiency/`, as `GPU.efficiency` states it.
    attention_kernels : str
        "vllm", or "flashinfer": vLLM's measured kernels with what FlashInfer schedules otherwise.

    Raises
    ------
    ConfigError
        If there is no such folder.
    """
    folder = _FOLDER / name
    if not folder.is_dir():
        raise unknown_name("efficiency", name, (f.name for f in _FOLDER.iterdir() if f.is_dir()))
    attention = _read(folder / "attention.toml")
    if attention_kernels != "vllm":
        attention |= _read(folder / f"attention-{attention_kernels}.toml")
    return Efficiency(
        name=name,
        gemm=GemmCurve.from_table(_read(folder / "gemm.toml")),
        attention=AttentionCurve.from_table(attention),
        collectives=CollectiveCurve.from_table(_read(folder / "collectives.toml")),
    )


def _read(path: Any) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))
