"""Read the curves of quantised GEMMs, experts, latent attention and fp8 caches of a GPU.

A weight type that was not measured on a GPU takes the curve of a similar type (`Dtype.like`), and
otherwise that of the GPU on which weight-only kernels were measured; neither counts as measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from perfmodel import catalog
from perfmodel.catalog._files import names, table
from perfmodel.catalog._schema import Knots, Number, Numbers, Table, Text, read
from perfmodel.catalog.gemm_files import gemm_curve
from perfmodel.errors import ConfigError
from perfmodel.kernels.curves import QuantisedGemm
from perfmodel.kernels.experts import ExpertsCurve
from perfmodel.kernels.gemm import GemmCurve
from perfmodel.kernels.interpolate import LogTable
from perfmodel.kernels.latent import LatentCurve
from perfmodel.specs.dtypes import DTYPES, UNQUANTISED, dtype_bytes
from perfmodel.units import US

WEIGHT_ONLY_GPU = "a100-sxm-80gb"


@cache
def quantised_gemms(name: str) -> Mapping[str, QuantisedGemm]:
    """The GEMM curves of all quantised weight types in the folder `name`."""
    found = {}
    for dtype in DTYPES.values():
        if dtype.name not in UNQUANTISED:
            found[dtype.name] = _quantised(name, (dtype.name, *dtype.like), dtype.name)
    return found


def _quantised(name: str, types: tuple[str, ...], wanted: str) -> QuantisedGemm:
    for folder in (name, WEIGHT_ONLY_GPU):
        for dtype in types:
            file = f"gemm-{dtype}"
            if file in names(f"efficiency/{folder}"):
                return QuantisedGemm(
                    curve=_gemm_curve(folder, file),
                    peak_ratio=DTYPES[dtype].peak_ratio,
                    measured=folder == name and dtype == wanted,
                )
    raise ConfigError(f"no GEMM curve for {wanted} weights")


@cache  # similar types share a curve
def _gemm_curve(folder: str, file: str) -> GemmCurve:
    return gemm_curve(_table(folder, file), f"efficiency/{folder}/{file}")


class _Format(Table):
    kernels: Text
    dtype: Text
    peak_ratio: Number
    kernel_latency_us: Number
    memory_efficiency: Number
    compute_efficiency: Number
    activation_efficiency: Number
    overlap_exponent: Number
    models: int
    rows_each: Knots
    touched: Knots
    matrix: Knots
    measured: list[list[float]]  # first and last value on each axis
    correction: Numbers
    residuals: dict[str, float]
    sort_latency_us: Number = 0.0
    remote_latency_us: Number = 0.0
    remote_efficiency: Number = 0.0


class _ExpertsFile(Table):
    source: Text
    format: list[_Format]


@cache
def experts_curves(name: str) -> Mapping[str, ExpertsCurve]:
    """The curves of routed experts by weight type; empty without a file."""
    if "experts" not in names(f"efficiency/{name}"):
        return {}
    return expert_curves(_table(name, "experts"), f"efficiency/{name}/experts")


def expert_curves(entries: Mapping[str, Any], where: str) -> dict[str, ExpertsCurve]:
    file = read(_ExpertsFile, entries, where)
    return {
        one.dtype: ExpertsCurve(
            dtype=one.dtype,
            peak_ratio=one.peak_ratio,
            kernel_latency_s=one.kernel_latency_us * US,
            memory_efficiency=one.memory_efficiency,
            compute_efficiency=one.compute_efficiency,
            activation_efficiency=one.activation_efficiency,
            overlap_exponent=one.overlap_exponent,
            source=f"{file.source}, {one.kernels}",
            correction=LogTable((one.rows_each, one.touched, one.matrix), one.correction),
            measured=tuple((least, most) for least, most in one.measured),
            sort_latency_s=one.sort_latency_us * US,
            remote_latency_s=one.remote_latency_us * US,
            remote_efficiency=one.remote_efficiency,
        )
        for one in file.format
    }


class _Cache(Table):
    kv_dtype: Text
    kernel_latency_us: Number
    memory_efficiency: Number
    compute_efficiency: Number
    prefill_latency_us: Number
    prefill_efficiency: Number
    heads: Knots
    batch: Knots
    tokens: Knots
    correction: Numbers
    prefill_units: Knots
    prefill_tokens: Knots
    prefill_correction: Numbers
    residuals: dict[str, float]


class _LatentFile(Table):
    source: Text
    cache: list[_Cache]


@cache
def latent_curves(name: str) -> Mapping[str, LatentCurve]:
    """The curves of latent attention by KV type; empty without a file."""
    if "latent" not in names(f"efficiency/{name}"):
        return {}
    file = read(_LatentFile, _table(name, "latent"), f"efficiency/{name}/latent")
    return {
        one.kv_dtype: LatentCurve(
            kv_dtype=one.kv_dtype,
            kv_bytes_per_element=dtype_bytes(one.kv_dtype),
            kernel_latency_s=one.kernel_latency_us * US,
            memory_efficiency=one.memory_efficiency,
            compute_efficiency=one.compute_efficiency,
            prefill_latency_s=one.prefill_latency_us * US,
            prefill_efficiency=one.prefill_efficiency,
            source=file.source,
            correction=LogTable((one.heads, one.batch, one.tokens), one.correction),
            prefill_correction=LogTable(
                (one.prefill_units, one.prefill_tokens), one.prefill_correction
            ),
        )
        for one in file.cache
    }


class _KvFile(Table):
    source: Text
    units: Knots
    tokens: Knots
    correction: Numbers
    residuals: dict[str, float]


@cache
def kv_fp8_table(name: str) -> LogTable | None:
    """The correction of decode attention with an fp8 cache; None if it was not measured."""
    if "kv-fp8" not in names(f"efficiency/{name}"):
        return None
    file = read(_KvFile, _table(name, "kv-fp8"), f"efficiency/{name}/kv-fp8")
    return LogTable((file.units, file.tokens), file.correction)


def _table(name: str, file: str) -> dict[str, Any]:
    catalog.gpu(name)
    return table(f"efficiency/{name}", file)
