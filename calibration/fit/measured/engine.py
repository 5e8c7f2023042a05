"""Fit the `specroof` engine profile to microbenchmarks: `engines/specroof.toml`.

Small kernels, the gap between kernels, and the sustained clock are fitted to kernel timings. The
round overhead is fitted to timed rounds of cases that validation does not use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.fit.errors import Errors
from calibration.records.cells import layer_matrices
from calibration.records.kernels import KernelRecord, KernelRecords
from calibration.records.steps import StepRecord
from calibration.records.toml_file import significant, with_table
from perfmodel import GPU
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
    "model_draft_overhead_s",
    "model_draft_overhead_per_sequence_s",
    "model_draft_overhead_per_draft_s",
)
RANK_FIELDS = (
    "rank_round_overhead_s",
    "rank_round_overhead_per_sequence_s",
    "rank_round_overhead_per_draft_s",
)
ATTENTION_FIELDS = "batch", "kv_tokens", "query_tokens", "query_heads", "kv_heads", "head_dim"
ELEMENT_BYTES = 2.0
ROUND_SCALES = (100.0 * US, US, 10.0 * US, 100.0 * US, US, 100.0 * US)
ROUND_SCATTER = 0.01  # scatter of the host time, relative to the round
LEAST_S = 1e-12  # terms below are at their bound
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
        latency, factor = latency_and_factor(list(map(elements, small)), small, gpu)
        values |= {"kernel_latency_s": latency, "activation_factor": factor}
    alone = [record for record in records.of("best") if record["ranks"] == 1]
    if len(alone) < LEAST_SMALL:
        missing.append("sampling: no record of op best on one rank")
    else:
        logits = [float(record["tokens"] * record["vocab"]) for record in alone]
        latency, factor = latency_and_factor(logits, alone, gpu)
        values |= {"sampling_s": latency, "sampling_factor": factor}
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


def latency_and_factor(
    moved: Sequence[float], records: Sequence[KernelRecord], gpu: GPU
) -> tuple[float, float]:
    """(latency [s], share of the time that bytes take at full rate), neither negative; Huber.

    `moved` are the elements that each record moves.
    """
    from scipy.optimize import least_squares

    at_rate = ELEMENT_BYTES * np.array(moved) / gpu.hbm_bandwidth
    seconds = np.array([r.seconds for r in records])

    def misfit(x: Array) -> Array:
        return np.asarray((x[0] * US + x[1] * at_rate) / seconds - 1.0)

    solved = least_squares(misfit, [2.0, 1.0], bounds=(0.0, np.inf), loss="huber", f_scale=HUBER)
    return float(solved.x[0]) * US, float(solved.x[1])


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

    It is fitted to relative errors, since it matters in short layers. If a layer takes less time
    than its kernels, launches overlap. The latency of small kernels is then reduced instead, and
    the gap is 0.
    """
    from scipy.optimize import least_squares

    parts = np.array([layer_seconds(r, values, gemm, attention, gpu) for r in layers])
    seconds = np.array([r.seconds for r in layers])
    solved = least_squares(
        lambda x: (parts + x[0] * US) / seconds - 1.0, [0.0], loss="huber", f_scale=HUBER
    )
    over = float(solved.x[0]) * US
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


def layer_seconds(
    record: KernelRecord,
    values: dict[str, float],
    gemm: GemmCurve,
    attention: AttentionCurve,
    gpu: GPU,
) -> float:
    """Seconds of a layer's kernels, and of the gaps between them if `values` has them."""
    cell: Any = record.cell
    rates: dict[str, Any] = {"peak_flops": gpu.peak_flops, "hbm_bandwidth": gpu.hbm_bandwidth}
    rows = cell["batch"] * cell["query_tokens"]
    total = sum(float(gemm.seconds(m=rows, n=n, k=k, **rates)) for n, k in layer_matrices(cell))
    total += float(attention.seconds(**{name: cell[name] for name in ATTENTION_FIELDS}, **rates))
    heads = 2 * cell["query_heads"] + 4 * cell["kv_heads"]
    moved = rows * (8 * cell["hidden"] + heads * cell["head_dim"] + 3 * cell["ffn"])
    total += values["activation_factor"] * ELEMENT_BYTES * float(moved) / gpu.hbm_bandwidth
    total += (SMALL_KERNELS + BIG_KERNELS) * values.get("kernel_gap_s", 0.0)
    return total + SMALL_KERNELS * values["kernel_latency_s"]


def round_overhead(steps: Sequence[StepRecord]) -> dict[str, float]:
    """Time of rounds beyond γ T_D + T_V: fixed, per sequence and per draft step, and what a draft
    model adds to each, all at least 0.

    After a self-draft, the device chooses among tables that were prepared, as long as there are
    sequences and draft steps. A draft model waits for the accepted tokens to be copied to the host,
    and for the host to fill its tables and to launch it. Errors are relative to the round, because
    long rounds scatter more; beyond `ROUND_SCATTER` the loss is linear, so that delayed rounds do
    not distort the fit.
    """
    rounds = [s for s in steps if s.case.plan.gamma > 0]
    if len(rounds) < LEAST_ROUNDS:
        return {}
    over, matrix, seconds = round_terms(rounds)
    found = _robust_terms(over / seconds, matrix / seconds[:, None], ROUND_SCALES)
    return dict(zip(ROUND_FIELDS, found, strict=True))


def plain_host(by_host: Mapping[str, float]) -> dict[str, float]:
    """The host's work per plain step, taken to be that of a round with one draft of the target.

    `by_host` is the overhead of an engine whose host works between all passes. [s]
    """
    fixed, per_sequence, per_draft = (by_host[name] for name in ROUND_FIELDS[:3])
    return {"plain_host_s": fixed + per_draft, "plain_host_per_sequence_s": per_sequence}


def rank_round_overhead(
    steps: Sequence[StepRecord], alone: Mapping[str, float]
) -> dict[str, float]:
    """What several ranks add to the overhead of a round: fixed, per sequence and per draft step.

    Ranks exchange the verdict, and every pass waits for the last rank.

    Parameters
    ----------
    steps : sequence of StepRecord
        Timed rounds of several ranks.
    alone : mapping of str to float
        `round_overhead` of one rank with the same engine. [s]
    """
    rounds = [s for s in steps if s.case.plan.gamma > 0]
    if len(rounds) < LEAST_ROUNDS or not alone:
        return {}
    over, matrix, seconds = round_terms(rounds)
    more, factors = over - _overheads(alone, matrix), matrix[:, : len(RANK_FIELDS)]
    scales = ROUND_SCALES[: len(RANK_FIELDS)]
    found = _robust_terms(more / seconds, factors / seconds[:, None], scales)
    return dict(zip(RANK_FIELDS, found, strict=True))


def _robust_terms(aims: Array, shares: Array, scales: Sequence[float]) -> list[float]:
    """x >= 0 with shares @ x near the aims, as shares of rounds that scatter by ROUND_SCATTER."""
    from scipy.optimize import least_squares, lsq_linear

    start = lsq_linear(shares, aims, bounds=(0.0, np.inf)).x
    solved = least_squares(
        lambda x: shares @ x - aims,
        np.maximum(start, 1e-3 * US),
        bounds=(0.0, np.inf),
        loss="soft_l1",
        f_scale=ROUND_SCATTER,
        x_scale=scales,
        xtol=1e-12,
        ftol=1e-12,
        gtol=1e-12,
    )
    return [float(value) if value > LEAST_S else 0.0 for value in solved.x]


def _overheads(values: Mapping[str, float], matrix: Array) -> Array:
    """Overheads of rounds with these factors of `ROUND_FIELDS`. [s]"""
    alone = matrix @ [values[name] for name in ROUND_FIELDS]
    ranks = [values.get(name, 0.0) for name in RANK_FIELDS]
    return np.asarray(alone + matrix[:, : len(RANK_FIELDS)] @ ranks)


def round_overhead_errors(
    steps: Sequence[StepRecord],
    name: str = "round overhead",
    *,
    alone: Mapping[str, float] | None = None,
) -> Errors:
    """Errors relative to the round, in sample and with each round left out in turn.

    `alone` is the overhead of one rank if the rounds are of several.
    """
    errors = Errors(name, regions=lambda cell: (f"gamma {cell['gamma']:.0f}",))
    rounds = [s for s in steps if s.case.plan.gamma > 0]
    for index, step in enumerate(rounds):
        over, matrix, seconds = round_terms([step])
        others = rounds[:index] + rounds[index + 1 :]
        for kind, used in (("in sample", rounds), ("a case out", others)):
            found = round_overhead(used) if alone is None else rank_round_overhead(used, alone)
            if found:
                predicted = float(_overheads({**(alone or {}), **found}, matrix)[0])
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
    factors = np.stack([np.ones_like(batch), batch, gamma], 1)
    factors = np.hstack([factors, by_model[:, None] * factors])
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
