"""How wrong the ratio of step times may be: by the distance from what was measured.

An engine profile states the error of its speedups on the GPU and the numbers of ranks at which it
was timed. Elsewhere, the errors are those of predictions whose GPU or ranks were left out
(`specroof validate coverage`). Independent errors add in quadrature.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum

import numpy as np

from perfmodel import catalog
from perfmodel.passes.communication import sum_error
from perfmodel.passes.forward import prefill_pass
from perfmodel.passes.rank import Rank
from perfmodel.scenario import Scenario
from perfmodel.specs.gpu import GPU
from perfmodel.specs.labels import Origin
from perfmodel.speculation.round import RoundEstimate, estimate, target_rank
from perfmodel.units import Z90

# Rms of ln(predicted / measured speedup), by what was left out.
SISTER_ERROR = 0.065  # the GPU, predicted from another one of its architecture
ARCHITECTURE_ERROR = 0.172  # the GPU, predicted from one of another architecture
TP_ERROR = 0.079  # two ranks, predicted from one; taken for each doubling
# Rms of ln(predicted / measured time of a prompt) on timed GPUs, also where a pass takes less than
# LAUNCH_LAYER_S per layer: such passes wait for the launch of kernels, which is not predicted.
PREFILL_ERROR, LAUNCH_ERROR = 0.092, 0.592
LAUNCH_LAYER_S = 0.8e-3  # the runtime's host takes 0.3 ms with one rank, up to 0.8 ms with two
# Standard errors of ln(time), or of its ratio between passes, of parts that only mixtures have.
PART_ERRORS = {
    # Of the ratio of the times of 4T and T tokens, T from 1 to 128: rms of ln(predicted / measured)
    # with power-law loads, the model left out of the fit (H100 and B200, bf16 and fp8; 0.17-0.21).
    "experts": 0.18,
    # Of NCCL's all-to-all, modelled as an all-gather of as many bytes: 0.15 to 0.28 on five GPUs, 2
    # to 8 ranks, 512 B to 537 MB (`specroof calibrate fit-tables`).
    "all_to_all": 0.28,
}
# Rms of ln(predicted / measured time) of a plain step, or of a round at a known acceptance, by what
# was left out. On a timed GPU, the error of steps is taken to be that of speedups.
SISTER_STEP_ERROR, TP_STEP_ERROR = 0.093, 0.115
ARCHITECTURE_STEP_ERROR, ARCHITECTURE_ROUND_ERROR = 0.148, 0.293
BOUND_STEP_ERROR, BOUND_ROUND_ERROR = 0.49, 0.684  # of `ideal`, whose steps are lower bounds
# Rms of ln(predicted / measured ratio of the speedups of two drafts), with the same target, GPU,
# batch and context: PAIR_ERROR, and these shares of the error of one speedup. Both share the rest.
PAIR_ERROR, PAIR_SHARE, PAIR_TP_SHARE = 0.025, 1.0 / 3.0, 0.75
# Storage types or layers whose kernels were not measured: assumed, times the profile's error.
UNMEASURED_FACTOR = 3.0


class Distance(IntEnum):
    """Where engine or kernels were timed, relative to the GPU of a prediction."""

    SAME_GPU = 0
    SISTER = 1  # another GPU of the same architecture
    ARCHITECTURE = 2  # a GPU of another architecture, or none


_ERRORS = (0.0, SISTER_ERROR, ARCHITECTURE_ERROR)


def ratio_error(scenario: Scenario, point: RoundEstimate | None = None) -> float:
    """Standard error of ln(speedup) that follows from that of step times.

    Combines `relative_error`, the errors of experts and all-to-alls, and that of several ranks: of
    the all-reduce, or of ranks at which the engine was not timed, whichever is larger. `point` is
    the estimate of the scenario, if it is known.
    """
    ranks = max(_link_error(scenario, point), _ranks_error(scenario))
    unsplit = _unsplit_distance(scenario, point, lambda found: float(found.speedup))
    return math.hypot(relative_error(scenario), ranks, unsplit, _parts_error(scenario, point))


def pair_error(one: Scenario, other: Scenario) -> float:
    """Standard error of ln(ratio of two plans' speedups) that follows from that of step times.

    The plans differ in their drafts, γ or TP; target, workload, GPU and engine are the same. With
    experts, T_V depends on γ; at another TP, so does T_T on the ranks. A kernel of latent attention
    that does not split the cache changes both speedups, so their ratio has the difference.
    """
    both = (one, other)
    kernels = PAIR_SHARE * max(relative_error(plan) for plan in both)
    ranks = PAIR_TP_SHARE * max(max(_link_error(plan), _ranks_error(plan)) for plan in both)
    rows = abs(math.log((one.plan.gamma + 1) / (other.plan.gamma + 1))) / math.log(4.0)
    experts = rows * max(_parts_error(plan) for plan in both)
    apart = TP_ERROR * math.sqrt(abs(math.log2(one.tp / other.tp)))
    first, second = (
        _unsplit_distance(plan, None, lambda found: float(found.speedup)) for plan in both
    )
    return math.hypot(PAIR_ERROR, kernels, ranks, experts, apart, first - second)


def time_error(scenario: Scenario) -> float:
    """Standard error of ln(time per token) at a known acceptance; of T_T without a draft."""
    architecture, bound = ARCHITECTURE_STEP_ERROR, BOUND_STEP_ERROR
    if scenario.plan.speculates:
        architecture, bound = ARCHITECTURE_ROUND_ERROR, BOUND_ROUND_ERROR
    engine = scenario.engine
    own = bound if engine.is_bound else engine.speedup_error
    error = _kernel_error(scenario, own, (0.0, SISTER_STEP_ERROR, architecture))
    tp = math.log2(scenario.tp)
    doublings = min(abs(tp - math.log2(timed)) for timed in engine.timed_tp or (1,))
    ranks = max(_link_error(scenario), TP_STEP_ERROR * math.sqrt(doublings))
    unsplit = _unsplit_distance(scenario, None, lambda found: float(found.tpot_s))
    return math.hypot(error, ranks, unsplit / Z90, _parts_error(scenario))


def relative_error(scenario: Scenario) -> float:
    """Standard error of ln(speedup) on the GPU, at numbers of ranks that were timed."""
    return _kernel_error(scenario, scenario.engine.speedup_error, _ERRORS)


def _kernel_error(scenario: Scenario, own: float, errors: tuple[float, float, float]) -> float:
    """Standard error of a logarithm, by the distance of the engine and of the kernels.

    The engine profile's `own` error on the GPU where it was timed; elsewhere at least that of a
    GPU left out. If kernels come from a farther GPU than the engine, their distance adds another
    error, and so do storage types without measured kernels. It is three times as large if experts,
    latent attention or linear attention are priced without measurements.
    """
    engine, kernels = engine_distance(scenario), kernel_distance(scenario)
    error = max(own, errors[engine])
    if kernels > Distance.SAME_GPU and not engine == kernels == Distance.SISTER:
        error = math.hypot(error, errors[kernels])
    ranks = [target_rank(scenario)]
    if scenario.draft is not None:
        tp = scenario.draft_tp
        ranks.append(Rank.of_scenario(scenario, scenario.draft, tp=tp, is_draft=True))
    if any(rank.assumes_types for rank in ranks):
        error = math.hypot(error, math.sqrt(UNMEASURED_FACTOR**2 - 1.0) * own)
    return error * (UNMEASURED_FACTOR if ranks[0].assumes_layers else 1.0)


def prefill_error(scenario: Scenario, prompt_tokens: int | None = None) -> float:
    """Standard error of ln(time of a prompt), relative to that of decoding.

    `prompt_tokens` defaults to that of the workload.
    """
    tokens = scenario.workload.prompt_tokens if prompt_tokens is None else prompt_tokens
    own = LAUNCH_ERROR if waits_for_launches(scenario, tokens) else PREFILL_ERROR
    return math.hypot(own, relative_error(scenario), _ranks_error(scenario))


def waits_for_launches(scenario: Scenario, prompt_tokens: int) -> bool:
    """Whether the GPU may finish the kernels of a prompt's passes faster than a host launches."""
    chunk = min(prompt_tokens, scenario.engine.prefill_chunk_tokens)
    pass_s = prefill_pass(target_rank(scenario), batch=1, prompt_tokens=chunk).total_s
    return float(pass_s) < LAUNCH_LAYER_S * scenario.target.layers


def engine_distance(scenario: Scenario) -> Distance:
    """Where the engine was timed; a profile without overheads needs no timing."""
    engine, gpu = scenario.engine, scenario.machine.gpu
    if engine.measured_on:
        return _between(engine.measured_on, gpu)
    stated = engine.origin in (Origin.FITTED, Origin.MEASURED, Origin.DATASHEET)
    return Distance.SAME_GPU if stated else Distance.ARCHITECTURE


def kernel_distance(scenario: Scenario) -> Distance:
    """Where the kernels were timed, with the engine if they are its own."""
    engine, gpu = scenario.engine, scenario.machine.gpu
    own = engine.measured_on if engine.has_own_kernels else ""
    return _between(own or gpu.efficiency, gpu)


def _between(measured: str, gpu: GPU) -> Distance:
    if measured == gpu.name:
        return Distance.SAME_GPU
    same = catalog.gpu(measured).architecture == gpu.architecture
    return Distance.SISTER if same else Distance.ARCHITECTURE


def _ranks_error(scenario: Scenario) -> float:
    """Standard error of ln(speedup) at a TP at which the engine was not timed.

    An engine without timings has the larger error of its distance.
    """
    engine = scenario.engine
    if not engine.measured_on or engine_distance(scenario) == Distance.ARCHITECTURE:
        return 0.0
    doublings = min(abs(math.log2(scenario.tp) - math.log2(timed)) for timed in engine.timed_tp)
    return TP_ERROR * math.sqrt(doublings)


def _parts_error(scenario: Scenario, point: RoundEstimate | None = None) -> float:
    """Standard error of ln(T_V / T_T) that follows from `PART_ERRORS`, by their shares of T_V."""
    if scenario.target.experts is None:
        return 0.0
    verify = (point or estimate(scenario)).verify
    errors = [PART_ERRORS.get(part.name, 0.0) * part.seconds for part in verify.parts]
    return math.hypot(*(float(error / verify.total_s) for error in errors))


def _link_error(scenario: Scenario, point: RoundEstimate | None = None) -> float:
    """Standard error of ln(speedup) that follows from that of all-reduces."""
    error = sum_error(target_rank(scenario), np.asarray(float(scenario.workload.batch)))
    if not error:
        return 0.0
    slower = scenario.engine.changed(comm_factor=scenario.engine.comm_factor * math.exp(error))
    other = estimate(replace(scenario, engine=slower))
    return abs(math.log(float(other.speedup) / float((point or estimate(scenario)).speedup)))


def _unsplit_distance(
    scenario: Scenario, point: RoundEstimate | None, value: Callable[[RoundEstimate], float]
) -> float:
    """ln(value) with kernels of latent attention that split the cache over that with the measured.

    0 if it splits it. Serving engines split it, so no plan may rest on the times of a kernel that
    does not: this is one standard error of a speedup, and the 90 % interval of a time ends at it.
    """
    rank, workload = target_rank(scenario), scenario.workload
    if (curve := rank.latent_curve) is None:
        return 0.0
    ratio = float(
        curve.unsplit_ratio(
            batch=workload.batch / rank.dp,
            kv_tokens=workload.prompt_tokens,
            heads=rank.spec.query_heads_per_rank(rank.tp),
        )
    )
    if ratio == 1.0:
        return 0.0
    engine = scenario.engine
    other = engine.changed(attention_factor=engine.attention_factor / ratio)
    split = estimate(replace(scenario, engine=other))
    return math.log(value(split) / value(point or estimate(scenario)))
