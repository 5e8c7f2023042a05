"""Fit the `specroof` engine profile to microbenchmarks: `engines/specroof.toml`.

Small kernels, the gap between kernels, and the sustained clock are fitted to kernel timings. The
round overhead is fitted to timed rounds of cases that validation does not use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.fit.errors import Errors
from calibration.records.cells import layer_matrices
from calibration.records.kernels import KernelRecord, KernelRecords
from calibration.records.steps import StepRecord
from calibration.records.toml_file import significant, with_table
from perfmodel import GPU, catalog
from perfmodel.kernels import AttentionCurve, GemmCurve
from perfmodel.units import US

Array = NDArray[np.float64]

SMALL_KERNELS = 4  # per layer: two norms, rotary with append, activation
BIG_KERNELS = 5  # per layer: four GEMMs, attention
LEAST_SMALL, LEAST_LAYERS, LEAST_ROUNDS = 8, 5, 5  # records
ROUND_FIELDS = (
    "round_overhead_s",
    "round_overhead_per_sequence_s",
    "round_overhead_per_draft_s",
    "round_overhead_per_model_draft_s",
)
ATTENTION_FIELDS = (
    "batch",
    "kv_tokens",
    "query_tokens",
    "query_heads",
    "kv_heads",
    "head_dim",
)
ELEMENT_BYTES = 2.0
ROUND_SCATTER = 0.01  # scatter of the host time, relative to the round
HUBER = 0.05  # relative error beyond which a record has less weight


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class ProfileFit:
    """Profile fields by name, the errors of whole layers, and what could not be fitted."""

    values: dict[str, float]
    errors: Errors
    missing: list[str] = field(default_factory=list)
    timed_tp: set[int] = field(default_factory=lambda: {1})  # numbers of ranks of timed steps


def fit_engine(
    records: KernelRecords, gemm: GemmCurve, attention: AttentionCurve, gpu: GPU
) -> ProfileFit:
    """Latency and bytes of small kernels, the gap between kernels, and the sustained clock.

    Parameters
    ----------
    gemm, attention : curves
        As fitted to the same records.
    """
    values: dict[str, float] = {
        "kernels_per_layer": float(SMALL_KERNELS),
        "attention_factor": 1.0,
        "draft_attention_factor": 1.0,
        "linear_factor": 1.0,
    }
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
        missing.append("sustained clock: no GEMM was timed both briefly and for long")
    else:
        values["compute_factor"] = sustained
    layers = records.of("layer")
    if len(layers) < LEAST_LAYERS or "kernel_latency_s" not in values:
        missing.append(f"layers: {len(layers)} records; {LEAST_LAYERS} are needed")
    else:
        values |= _between_kernels(layers, values, gemm, attention, gpu, errors)
    return ProfileFit(values=values, errors=errors, missing=missing)


def elements(cell: KernelRecord) -> float:
    """Elements that a small kernel moves according to the model."""
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

    solved = least_squares(misfit, [2.0, 1.0], bounds=(0.0, np.inf), loss="huber", f_scale=HUBER)
    return float(solved.x[0]) * US, float(solved.x[1])


def _sampling(
    records: Sequence[KernelRecord], values: dict[str, float], gpu: GPU
) -> dict[str, float]:
    """Seconds per vocabulary column at few rows, and time over that of the bytes at many rows.

    Medians over vocabularies, each at its smallest and largest row count.
    """
    columns, factors = [], []
    latency, activation = values.get("kernel_latency_s", 0.0), values.get("activation_factor", 1.0)
    for vocab in {r["vocab"] for r in records}:
        of_vocab = [r for r in records if r["vocab"] == vocab]
        few = min(of_vocab, key=lambda r: float(r["tokens"]))
        many = max(of_vocab, key=lambda r: float(r["tokens"]))
        columns.append(max(0.0, few.seconds - latency) / vocab)
        moved = ELEMENT_BYTES * vocab * many["tokens"] / gpu.hbm_bandwidth
        factors.append(max(0.0, many.seconds - latency) / moved)
    return {
        "sampling_column_s": float(np.median(columns)),
        "sampling_factor": float(np.median(factors)) / activation,
    }


def _sustained_share(records: KernelRecords) -> float | None:
    """Speed of GEMMs in long runs over their speed in short ones; at most 1."""
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
    """The gap between kernels: (layer - sum of its kernels) / number of kernels.

    If a layer takes less time than its kernels, launches overlap. The latency of small kernels is
    then reduced instead, and the gap is 0.
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
    for record, predicted in zip(layers, parts + change, strict=True):
        errors.add("in sample", record.cell, float(predicted) / record.seconds - 1.0)
    return {"kernel_latency_s": latency, "kernel_gap_s": gap}


def layer_parts(
    record: KernelRecord,
    values: dict[str, float],
    gemm: GemmCurve,
    attention: AttentionCurve,
    gpu: GPU,
) -> float:
    """Seconds of a layer's kernels by the curves, without gaps between them."""
    cell: Any = record.cell
    rates: dict[str, Any] = {"peak_flops": gpu.peak_flops, "hbm_bandwidth": gpu.hbm_bandwidth}
    rows = cell["batch"] * cell["query_tokens"]
    total = sum(float(gemm.seconds(m=rows, n=n, k=k, **rates)) for n, k in layer_matrices(cell))
    total += float(attention.seconds(**{name: cell[name] for name in ATTENTION_FIELDS}, **rates))
    heads = 2 * cell["query_heads"] + 4 * cell["kv_heads"]
    moved = rows * (8 * cell["hidden"] + heads * cell["head_dim"] + 3 * cell["ffn"])
    total += values["activation_factor"] * ELEMENT_BYTES * float(moved) / gpu.hbm_bandwidth
    return total + SMALL_KERNELS * values["kernel_latency_s"]


def round_overhead(steps: Sequence[StepRecord]) -> dict[str, float]:
    """Time of rounds beyond γ T_D + T_V: fixed, per sequence, per draft step, and more per draft
    step of a draft model, all at least 0.

    The device waits for the copy of the accepted tokens to the host and for the choice among the
    tables that were prepared for a self-draft; for a draft model, the pages and tokens of each
    sequence come first, and then the tables of all draft steps. The tables of verification are
    filled during the draft steps. Errors are relative to the round, because long rounds scatter
    more; beyond `ROUND_SCATTER` the loss is linear, so that delayed rounds do not distort the fit.
    """
    from scipy.optimize import least_squares, lsq_linear

    rounds = [s for s in steps if s.case.plan.gamma > 0]
    if len(rounds) < LEAST_ROUNDS:
        return {}
    over, matrix, seconds = round_terms(rounds)
    shares, aims = matrix / seconds[:, None], over / seconds
    start = lsq_linear(shares, aims, bounds=(0.0, np.inf)).x
    solved = least_squares(
        lambda x: shares @ x - aims,
        np.maximum(start, 1e-3 * US),
        bounds=(0.0, np.inf),
        loss="soft_l1",
        f_scale=ROUND_SCATTER,
        x_scale=(100.0 * US, US, 100.0 * US, 100.0 * US),
        xtol=1e-12,
        ftol=1e-12,
        gtol=1e-12,
    )
    return dict(zip(ROUND_FIELDS, map(float, solved.x), strict=True))


def rank_round_overhead(
    steps: Sequence[StepRecord], alone: Mapping[str, float]
) -> dict[str, float]:
    """The differences between the round overheads of several ranks and those of one, at least 0.

    Ranks start the passes of a round at different times, and every pass waits for the last rank.

    Parameters
    ----------
    steps : sequence of StepRecord
        Timed rounds of several ranks.
    alone : mapping of str to float
        `round_overhead` of one rank. [s]
    """
    values = round_overhead(steps)
    if not values:
        return {}
    return {f"rank_{n}": max(0.0, value - alone.get(n, 0.0)) for n, value in values.items()}


def with_sampling(step: StepRecord, values: Mapping[str, float], gpu: GPU) -> StepRecord:
    """The record with the modelled time of sampling added to its verification time.

    The runtime samples after the pass that was timed.
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


def round_overhead_errors(steps: Sequence[StepRecord], name: str = "round overhead") -> Errors:
    """Errors relative to the round, in sample and with each round left out in turn."""
    errors = Errors(name, regions=lambda cell: (f"gamma {cell['gamma']:.0f}",))
    rounds = [s for s in steps if s.case.plan.gamma > 0]
    for index, step in enumerate(rounds):
        over, matrix, seconds = round_terms([step])
        others = rounds[:index] + rounds[index + 1 :]
        for kind, used in (("in sample", rounds), ("a case out", others)):
            if values := round_overhead(used):
                predicted = float(matrix[0] @ [values[name] for name in ROUND_FIELDS])
                cell = {"gamma": step.case.plan.gamma, "batch": step.case.batch}
                errors.add(kind, cell, (predicted - float(over[0])) / float(seconds[0]))
    return errors


def speedup_error(layers: Errors, rounds: Errors) -> float | None:
    """Standard error of a predicted speedup: sqrt(2 layers² + rounds²); None if either is missing.

    `layers` are errors of whole layers predicted from their kernels, `rounds` those of left-out
    rounds. The errors of a plain step and of a round's passes are taken to be independent.
    """
    passes = [error for _, error in layers.cells.get("in sample", [])]
    between = [error for _, error in rounds.cells.get("a case out", [])]
    if not passes or not between:
        return None
    return float(np.sqrt(2.0 * np.mean(np.square(passes)) + np.mean(np.square(between))))


def round_terms(rounds: Sequence[StepRecord]) -> tuple[Array, Array, Array]:
    """Seconds beyond the passes; the factor of each of `ROUND_FIELDS`; seconds of each round."""
    batch = np.array([s.case.batch for s in rounds], float)
    gamma = np.array([s.case.plan.gamma for s in rounds], float)
    seconds = np.array([s.times["round_s"] for s in rounds])
    passes = [s.case.plan.gamma * s.times["draft_step_s"] + s.times["verify_s"] for s in rounds]
    by_model = np.array([s.case.plan.draft != "self" for s in rounds], float)
    factors = np.stack([np.ones_like(batch), batch, gamma, by_model * gamma], 1)
    return seconds - np.array(passes), factors, seconds


def profile_text(shipped: str, fit: ProfileFit, source: str, gpu: str) -> str:
    """The engine's catalog file with the fitted values in `[gpu.NAME]`; the rest is unchanged."""
    section: dict[str, Any] = {"origin": "fitted", "source": source}
    if len(fit.timed_tp) > 1:
        section["timed_tp"] = sorted(fit.timed_tp)
    for name, value in fit.values.items():
        if name.endswith("_s"):
            section[f"{name.removesuffix('_s')}_us"] = significant(value / US, 6)
        else:
            section[name] = round(value, 4)
    return with_table(shipped, "gpu", gpu, section, note="Written by `specroof calibrate fit`.")
