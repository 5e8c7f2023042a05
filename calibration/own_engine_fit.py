"""The `specroof` engine profile from microbenchmarks alone: small kernels, what lies between
kernels, and the clock that a long run keeps. The round's overhead comes from runs of other cases
than those that validate.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from calibration.fit_errors import Errors
from calibration.kernel_grid import layer_matrices
from calibration.kernel_records import KernelRecord, KernelRecords
from calibration.step_cases import StepRecord
from perfmodel import GPU, AttentionCurve, GemmCurve
from perfmodel.units import US

Array = NDArray[np.float64]

SMALL_KERNELS = 4  # a layer: two norms, rotary with append, activation
BIG_KERNELS = 5  # a layer: four products, attention
LEAST_SMALL, LEAST_LAYERS = 8, 5  # records
ELEMENT_BYTES = 2.0
HUBER = 0.05  # relative error beyond which a record counts less


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class EngineFit:
    """Profile fields found, their source, and how far whole layers are missed."""

    values: dict[str, float]
    errors: Errors
    missing: list[str] = field(default_factory=list)


def fit_engine(
    records: KernelRecords, gemm: GemmCurve, attention: AttentionCurve, gpu: GPU
) -> EngineFit:
    """Latency and bytes of small kernels, the gap between kernels, and the sustained clock.

    Parameters
    ----------
    gemm, attention : curves
        As fitted to the same records.
    """
    values: dict[str, float] = {
        "kernels_per_layer": float(SMALL_KERNELS), "attention_factor": 1.0,
        "draft_attention_factor": 1.0, "linear_factor": 1.0,
    }  # fmt: skip
    errors = Errors("layers", regions=lambda cell: (f"batch {cell['batch']:.0f}",))
    missing = []
    small = [r for r in records.records if r.op in ("add_norm", "place", "silu_mul")]
    if len(small) < LEAST_SMALL:
        missing.append(f"small kernels: {len(small)} records; {LEAST_SMALL} are needed")
    else:
        latency, factor = _small_kernels(small, gpu)
        values |= {"kernel_latency_s": latency, "activation_factor": factor}
    sustained = _sustained_share(records)
    if sustained is None:
        missing.append("sustained clock: no product timed both briefly and for long")
    else:
        values["compute_factor"] = sustained
    layers = records.of("layer")
    if len(layers) < LEAST_LAYERS or "kernel_latency_s" not in values:
        missing.append(f"layers: {len(layers)} records; {LEAST_LAYERS} are needed")
    else:
        values |= _between_kernels(layers, values, gemm, attention, gpu, errors)
    return EngineFit(values=values, errors=errors, missing=missing)


def elements(cell: KernelRecord) -> float:
    """Elements that a small kernel moves, as the model counts them."""
    tokens = float(cell["tokens"])
    if cell.op == "add_norm":
        return 4.0 * tokens * float(cell["hidden"])
    if cell.op == "silu_mul":
        return 3.0 * tokens * float(cell["ffn"])
    heads = 2.0 * (cell["query_heads"] + cell["kv_heads"]) + 2.0 * cell["kv_heads"]
    return float(tokens * heads * cell["head_dim"])


def _small_kernels(records: Sequence[KernelRecord], gpu: GPU) -> tuple[float, float]:
    """(latency [s], share of the time that bytes take at full rate), neither negative; Huber."""
    from scipy.optimize import least_squares

    moved = np.array([ELEMENT_BYTES * elements(r) for r in records]) / gpu.hbm_bandwidth
    seconds = np.array([r.seconds for r in records])

    def misfit(x: Array) -> Array:
        return np.asarray((x[0] * US + x[1] * moved) / seconds - 1.0)

    found = least_squares(misfit, [2.0, 1.0], bounds=(0.0, np.inf), loss="huber", f_scale=HUBER)
    return float(found.x[0]) * US, float(found.x[1])


def _sustained_share(records: KernelRecords) -> float | None:
    """Speed of products that run long over their speed in a short burst; at most 1."""
    brief = {(r["m"], r["n"], r["k"]): r.seconds for r in records.of("gemm", path="runtime")}
    pairs = [
        brief[shape] / r.seconds
        for r in records.of("gemm_sustained")
        if (shape := (r["m"], r["n"], r["k"])) in brief
    ]
    return min(1.0, float(np.median(pairs))) if pairs else None


def _between_kernels(
    layers: Sequence[KernelRecord],
    values: dict[str, float],
    gemm: GemmCurve,
    attention: AttentionCurve,
    gpu: GPU,
    errors: Errors,
) -> dict[str, float]:
    """The idle time between kernels: what layers take beyond their parts, by the number of kernels.

    Where a layer takes less, a kernel's launch hides behind the one before it: then the small
    kernels show less latency than alone, and there is no gap.
    """
    parts = np.array([layer_parts(r, values, gemm, attention, gpu) for r in layers])
    seconds = np.array([r.seconds for r in layers])
    over = float(np.median(seconds - parts))
    latency, gap = values["kernel_latency_s"], 0.0
    if over > 0:
        gap = over / (SMALL_KERNELS + BIG_KERNELS)
    else:
        latency = max(0.0, latency + over / SMALL_KERNELS)
    change = SMALL_KERNELS * (latency - values["kernel_latency_s"])
    change += (SMALL_KERNELS + BIG_KERNELS) * gap
    for record, found in zip(layers, parts + change, strict=True):
        errors.add("in sample", record.cell, float(found) / record.seconds - 1.0)
    return {"kernel_latency_s": latency, "kernel_gap_s": gap}


def layer_parts(
    record: KernelRecord,
    values: dict[str, float],
    gemm: GemmCurve,
    attention: AttentionCurve,
    gpu: GPU,
) -> float:
    """Seconds of a layer's kernels by the curves, nothing between them."""
    cell, rates = dict(record.cell), {"hbm_bandwidth": gpu.hbm_bandwidth}
    rows = cell["batch"] * cell["query_tokens"]
    total = sum(
        float(gemm.seconds(m=rows, n=n, k=k, peak_flops=gpu.peak_flops, **rates))
        for n, k in layer_matrices(cell)
    )
    total += float(
        attention.seconds(
            batch=cell["batch"], kv_tokens=cell["kv_tokens"], query_tokens=cell["query_tokens"],
            query_heads=cell["query_heads"], kv_heads=cell["kv_heads"],
            head_dim=cell["head_dim"], peak_flops=gpu.peak_flops, **rates,
        )
    )  # fmt: skip
    heads = 2 * cell["query_heads"] + 4 * cell["kv_heads"]
    moved = rows * (8 * cell["hidden"] + heads * cell["head_dim"] + 3 * cell["ffn"])
    total += values["activation_factor"] * ELEMENT_BYTES * float(moved) / gpu.hbm_bandwidth
    return total + SMALL_KERNELS * values["kernel_latency_s"]


def round_overhead(steps: Sequence[StepRecord]) -> dict[str, float]:
    """What rounds take beyond γ T_D + T_V, as a line in the batch; neither coefficient negative."""
    from scipy.optimize import lsq_linear

    rounds = [s for s in steps if s.case.plan.gamma > 0]
    if len(rounds) < 2:
        return {}
    batch = np.array([s.case.batch for s in rounds], float)
    times = [s.times for s in rounds]
    gamma = [s.case.plan.gamma for s in rounds]
    over = np.array([t["round_s"] - g * t["draft_step_s"] - t["verify_s"]
                     for t, g in zip(times, gamma, strict=True)])  # fmt: skip
    matrix = np.stack([np.ones_like(batch), batch], axis=1)
    fixed, per_sequence = lsq_linear(matrix / US, over / US, bounds=(0.0, np.inf)).x
    return {"round_overhead_s": float(fixed), "round_overhead_per_sequence_s": float(per_sequence)}


def profile_text(shipped: str, fit: EngineFit, source: str) -> str:
    """An engine file with the fitted values in place of its own; the rest of it stays."""
    text = shipped
    known = {"origin": '"fitted"', "source": f'"{source}"'}
    for name, seconds in fit.values.items():
        if name.endswith("_s"):
            known[f"{name.removesuffix('_s')}_us"] = f"{seconds / US:.4f}"
        else:
            known[name] = f"{seconds:.4f}"
    for key, value in known.items():
        line, stated = f"{key} = {value}", re.compile(rf"^{key} = .*$", flags=re.M)
        if stated.search(text):
            text = stated.sub(line.replace("\\", r"\\"), text)
        else:
            text = text.rstrip("\n") + f"\n{line}\n"
    return text
