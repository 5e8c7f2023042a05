"""The `specroof` engine profile from microbenchmarks alone: small kernels, what lies between
kernels, and the clock that a long run keeps. The round's overhead comes from runs of other cases
than those that validate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from calibration.fit.errors import Errors
from calibration.records.cells import layer_matrices
from calibration.records.kernels import KernelRecord, KernelRecords
from calibration.records.steps import StepRecord
from perfmodel import GPU, AttentionCurve, GemmCurve, catalog
from perfmodel.units import US

Array = NDArray[np.float64]

SMALL_KERNELS = 4  # a layer: two norms, rotary with append, activation
BIG_KERNELS = 5  # a layer: four products, attention
LEAST_SMALL, LEAST_LAYERS, LEAST_ROUNDS = 8, 5, 5  # records
ROUND_FIELDS = (
    "round_overhead_s", "round_overhead_per_sequence_s", "round_overhead_per_draft_s",
)  # fmt: skip
ELEMENT_BYTES = 2.0
ROUND_SCATTER = 0.01  # of a round: what its host time moves by from one to the next
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
    if best := records.of("argmax"):
        values |= _sampling(best, values, gpu)
    else:
        missing.append("sampling: no record of op argmax")
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


def _sampling(
    records: Sequence[KernelRecord], values: dict[str, float], gpu: GPU
) -> dict[str, float]:
    """Seconds a column of the fewest rows, and the share of the time that many rows' bytes take.

    Medians over vocabularies: of each the smallest and the largest row count.
    """
    columns, factors = [], []
    latency, activation = values.get("kernel_latency_s", 0.0), values.get("activation_factor", 1.0)
    for vocab in {r["vocab"] for r in records}:
        mine = sorted((r for r in records if r["vocab"] == vocab), key=lambda r: float(r["tokens"]))
        few, many = mine[0], mine[-1]
        columns.append(max(0.0, few.seconds - latency) / vocab)
        moved = ELEMENT_BYTES * vocab * many["tokens"] / gpu.hbm_bandwidth
        factors.append(max(0.0, many.seconds - latency) / moved)
    return {
        "sampling_column_s": float(np.median(columns)),
        "sampling_factor": float(np.median(factors)) / activation,
    }


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
    cell, rates = record.cell, {"hbm_bandwidth": gpu.hbm_bandwidth}
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
    """What rounds take beyond γ T_D + T_V: a fixed time, one a sequence and one a draft step.

    These are what the device waits for in the runtime's round: the verdict's way to the host, pages
    and tokens of each sequence, and the tables of all draft steps before the first. Verification's
    tables are filled while the drafts run. None is negative; each round counts by its share of its
    own time, since a long one hides more and scatters by more, and beyond `ROUND_SCATTER` only in
    proportion, so that a round which was held up does not bend the rest.
    """
    from scipy.optimize import least_squares, lsq_linear

    rounds = [s for s in steps if s.case.plan.gamma > 0]
    if len(rounds) < LEAST_ROUNDS:
        return {}
    over, matrix, whole = _round_terms(rounds)
    shares, aims = matrix / whole[:, None], over / whole
    start = lsq_linear(shares, aims, bounds=(0.0, np.inf)).x
    found = least_squares(
        lambda x: shares @ x - aims,
        np.maximum(start, 1e-3 * US),
        bounds=(0.0, np.inf),
        loss="soft_l1",
        f_scale=ROUND_SCATTER,
        x_scale=(100.0 * US, US, 100.0 * US),
        xtol=1e-12, ftol=1e-12, gtol=1e-12,
    ).x  # fmt: skip
    return dict(zip(ROUND_FIELDS, map(float, found), strict=True))


def with_sampling(step: StepRecord, values: Mapping[str, float], gpu: GPU) -> StepRecord:
    """The same record, the choice of tokens counted to its verification, as the model has it.

    The runtime makes that choice after the pass that was timed.
    """
    vocab, rows = (
        catalog.model(step.case.target).vocab,
        step.case.batch * (step.case.plan.gamma + 1),
    )
    moved_s = ELEMENT_BYTES * vocab * rows / gpu.hbm_bandwidth
    factor = values.get("sampling_factor", 1.0) * values.get("activation_factor", 1.0)
    seconds = max(factor * moved_s, values.get("sampling_column_s", 0.0) * vocab)
    seconds += values.get("kernel_latency_s", 0.0)
    return replace(step, verify_s=step.verify_s + seconds)


def round_overhead_errors(steps: Sequence[StepRecord]) -> Errors:
    """How far rounds are missed, as a share of each, in sample and with each left out in turn."""
    errors = Errors("round overhead", regions=lambda cell: (f"gamma {cell['gamma']:.0f}",))
    rounds = [s for s in steps if s.case.plan.gamma > 0]
    for index, step in enumerate(rounds):
        over, matrix, whole = _round_terms([step])
        others = rounds[:index] + rounds[index + 1 :]
        for kind, used in (("in sample", rounds), ("a case out", others)):
            if values := round_overhead(used):
                predicted = float(matrix[0] @ [values[name] for name in ROUND_FIELDS])
                cell = {"gamma": step.case.plan.gamma, "batch": step.case.batch}
                errors.add(kind, cell, (predicted - float(over[0])) / float(whole[0]))
    return errors


def speedup_error(layers: Errors, rounds: Errors) -> float | None:
    """Standard error of a predicted speedup: that of two passes' ratio, and of what lies between.

    Layers were timed apart from the kernels that price them, and a left-out round apart from the
    overhead that prices it; the errors of a plain step and of a round's passes are taken to be
    independent. None where either is missing.
    """
    passes = [error for _, error in layers.found.get("in sample", [])]
    between = [error for _, error in rounds.found.get("a case out", [])]
    if not passes or not between:
        return None
    return float(np.sqrt(2.0 * np.mean(np.square(passes)) + np.mean(np.square(between))))


def _round_terms(rounds: Sequence[StepRecord]) -> tuple[Array, Array, Array]:
    """Seconds beyond the passes; what multiplies each field; seconds of the whole round."""
    batch = np.array([s.case.batch for s in rounds], float)
    gamma = np.array([s.case.plan.gamma for s in rounds], float)
    whole = np.array([s.times["round_s"] for s in rounds])
    passes = [s.case.plan.gamma * s.times["draft_step_s"] + s.times["verify_s"] for s in rounds]
    return whole - np.array(passes), np.stack([np.ones_like(batch), batch, gamma], axis=1), whole


def profile_text(shipped: str, fit: EngineFit, source: str, gpu: str) -> str:
    """An engine file with the fitted values for one GPU; the rest of it stays."""
    head = f"[gpu.{gpu}]"
    lines = ["# Written by `specroof calibrate fit`.", 'origin = "fitted"', f'source = "{source}"']
    for name, value in fit.values.items():
        if name.endswith("_s"):
            lines.append(f"{name.removesuffix('_s')}_us = {value / US:.6g}")
        else:
            lines.append(f"{name} = {value:.4f}")
    section = "\n".join([head, *lines]) + "\n"
    found = re.search(rf"^{re.escape(head)}\n(?:[^\[\n].*\n|\n(?!\n*\[))*", shipped, re.M)
    if found is None:
        return shipped.rstrip("\n") + "\n\n" + section
    return shipped[: found.start()] + section + shipped[found.end() :]
