"""How wrong the ratio of step times may be: by the distance from what was measured.

An engine profile states the error of its speedups on the GPU and the numbers of ranks at which it
was timed. Elsewhere, the errors of predictions whose GPU or ranks were left out
(`specroof validate coverage`) are added to it, in quadrature, so that no engine is more certain
where it was not timed. Nothing was timed on GPUs of other vendors than NVIDIA: that error is
assumed to be three times that of another architecture, or that of the datasheet if it is larger.

A profile may state the error of host time apart, which counts as far as the host delays a step:

    σ² = speedup_error² + ln(step if the host takes e^host_error times as long / step)²

The last term is 0 where GPU time would hide such a host, too, and host_error² where the host sets
the whole step. In a ratio of two rounds, each has its own: they are missed independently. A plain
step and a round with EAGLE-3, n-gram look-up or another built-in draft share a part of it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats
from perfmodel.kernels.attention import SMOOTH_MAX
from perfmodel.passes.communication import sum_error
from perfmodel.passes.rank import Rank
from perfmodel.scenario import Scenario
from perfmodel.speculation.prompt import prompt_ends
from perfmodel.speculation.round import (
    RoundEstimate,
    estimate,
    target_rank,
    without_speculation,
)
from perfmodel.speculation.uncertainty.distance import Distance, engine_distance, kernel_distance
from perfmodel.speculation.uncertainty.host_delay import Delays, host_delays
from perfmodel.units import Z90

# Rms of ln(predicted / measured speedup), by what was left out, with rounds of earlier engines of
# this project, whose time between passes was longer.
SISTER_ERROR = 0.065  # the GPU, predicted from another one of its architecture
ARCHITECTURE_ERROR = 0.175  # the GPU, predicted from one of another architecture
TP_ERROR = 0.079  # two ranks, predicted from one; taken for each doubling
# Standard errors of ln(time), or of its ratio between passes, of parts that only mixtures have.
PART_ERRORS = {
    # Of the ratio of the times of 4T and T tokens, T from 1 to 128: rms of ln(predicted / measured)
    # with power-law loads, the model left out of the fit (H100, H200 and B200; bf16 0.18 to 0.21,
    # fp8 0.15 to 0.16). Real routing of texts was not timed.
    "experts": 0.18,
    # Of NCCL's all-to-all, modelled as an all-gather of as many bytes: 0.15 to 0.28 on five GPUs, 2
    # to 8 ranks, 512 B to 537 MB (`specroof calibrate fit-tables`).
    "all_to_all": 0.28,
}
# Of the Triton kernel that vLLM runs for some models: rms of ln(measured / predicted attention) in
# six plain steps of Gemma-3-27B. Rounds were not timed (`prefix_attention_factor`).
OTHER_ATTENTION_ERROR = 0.27
# Rms of ln(predicted / measured time) of a plain step, or of a round at a known acceptance, by what
# was left out. On a timed GPU, the error of steps is taken to be that of speedups.
SISTER_STEP_ERROR, TP_STEP_ERROR = 0.091, 0.141
ARCHITECTURE_STEP_ERROR, ARCHITECTURE_ROUND_ERROR = 0.142, 0.29
# Of `ideal`, whose steps are lower bounds: of speedups, plain steps and rounds.
BOUND_ERROR, BOUND_STEP_ERROR, BOUND_ROUND_ERROR = 0.243, 0.500, 0.684
# Rms of ln(predicted / measured ratio of the speedups of two drafts), with the same target, GPU,
# batch and context: PAIR_ERROR, and these shares of the error of one speedup. Both share the rest.
PAIR_ERROR, PAIR_SHARE, PAIR_TP_SHARE = 0.025, 1.0 / 3.0, 0.75
# Where no kernel was measured, the error is assumed to be larger by this factor: for storage types
# and layers, than the profile's; for another vendor's GPUs, than that of another architecture.
UNMEASURED_FACTOR = 3.0


# Of ln(host time) on another machine than the profile's, or at a TP that was not timed: a 90 %
# interval of half to twice the time, as fixed loops took on the cores of one machine type (2.1 to
# 4.5 ms).
OTHER_HOST_ERROR = math.log(2.0) / Z90
# The share of the variance of a host's error that a plain step and a round have in common. The
# likelihood of 73 pairs of vLLM 0.26 that both wait for the host, with EAGLE-3 or n-gram look-up,
# is largest at 0.90, and at 0.87 to 0.95 without one of the files; a smaller share leaves wider
# intervals. No pair with a draft model waits in both; its rounds, which are launched layer by
# layer, are missed independently of others.
HOST_SHARED = 0.8


_NONE = np.zeros(())


def _by_distance(sister: float, architecture: float, bound: float) -> tuple[float, ...]:
    """Standard errors in the order of `Distance`; `bound` is that of `ideal`, of a datasheet."""
    return 0.0, sister, architecture, max(UNMEASURED_FACTOR * architecture, bound)


def ratio_error(
    scenario: Scenario,
    point: RoundEstimate | None = None,
    *,
    batch: ArrayLike | None = None,
    prompt_tokens: ArrayLike | None = None,
) -> Floats:
    """Standard error of ln(speedup) that follows from that of step times.

    Combines `relative_error`, the errors of experts and all-to-alls, that of assumed FLOP/s of
    attention, those of several ranks (of an all-reduce that was not measured, and of ranks at which
    the engine was not timed), and those of host times. If `point`, the estimate of the scenario, is
    known, its batch and prompt tokens must be given with it.
    """
    links = np.subtract(*_link_delays(scenario, point, batch))
    unsplit = np.subtract(*_split_delays(scenario, point, batch, prompt_tokens))
    parts = _parts_error(scenario, point)
    rows = _rows_error(scenario, point, batch, prompt_tokens)
    hosts = _speedup_host_error(scenario, point, batch, prompt_tokens)
    kernels = (relative_error(scenario), parts, rows)
    return _total(*kernels, _ranks_error(scenario), links, unsplit, hosts)


def _total(*errors: ArrayLike) -> Floats:
    """Independent errors in quadrature."""
    return np.asarray(np.sqrt(sum(np.square(error) for error in errors)))


def pair_error(one: Scenario, other: Scenario) -> float:
    """Standard error of ln(ratio of two plans' speedups) that follows from that of step times.

    The plans differ in their drafts, γ or TP; target, workload, GPU and engine are the same. With
    experts, T_V depends on γ; at another TP, so does T_T on the ranks. A kernel of latent attention
    that does not split the cache changes both speedups, so their ratio has the difference. The host
    times of both rounds are missed independently.
    """
    both = (one, other)
    kernels = PAIR_SHARE * max(relative_error(plan) for plan in both)
    links = [float(np.subtract(*_link_delays(plan))) for plan in both]
    ranks = PAIR_TP_SHARE * max(
        math.hypot(link, _ranks_error(plan)) for link, plan in zip(links, both, strict=True)
    )
    rows = abs(math.log((one.plan.gamma + 1) / (other.plan.gamma + 1))) / math.log(4.0)
    experts = rows * max(float(_parts_error(plan)) for plan in both)
    apart = TP_ERROR * math.sqrt(abs(math.log2(one.tp / other.tp)))
    first, second = (float(np.subtract(*_split_delays(plan))) for plan in both)
    tiles = float(_rows_error(one)) - float(_rows_error(other))
    hosts = (float(_host_delays(plan)[0]) for plan in both)
    return math.hypot(PAIR_ERROR, kernels, ranks, experts, apart, first - second, tiles, *hosts)


def time_error(scenario: Scenario) -> float:
    """Standard error of ln(time per token) at a known acceptance; of T_T without a draft."""
    architecture, bound = ARCHITECTURE_STEP_ERROR, BOUND_STEP_ERROR
    if scenario.plan.speculates:
        architecture, bound = ARCHITECTURE_ROUND_ERROR, BOUND_ROUND_ERROR
    engine = scenario.engine
    own = bound if engine.is_bound else engine.speedup_error
    error = _kernel_error(scenario, own, _by_distance(SISTER_STEP_ERROR, architecture, bound))
    ranks = TP_STEP_ERROR * math.sqrt(_doublings(scenario))
    links, unsplit = _link_delays(scenario)[0], _split_delays(scenario)[0] / Z90
    parts, rows = _parts_error(scenario), _rows_error(scenario)
    late = _host_delays(scenario)[0]
    return float(_total(error, ranks, links, unsplit, parts, rows, late))


def relative_error(scenario: Scenario) -> float:
    """Standard error of ln(speedup) on the GPU, at numbers of ranks that were timed.

    Without that of host times, if the profile states it apart.
    """
    errors = _by_distance(SISTER_ERROR, ARCHITECTURE_ERROR, BOUND_ERROR)
    return _kernel_error(scenario, scenario.engine.speedup_error, errors)


def _kernel_error(scenario: Scenario, own: float, errors: tuple[float, ...]) -> float:
    """Standard error of a logarithm, by the distance of the engine and of the kernels.

    The engine profile's `own` error, and that of GPUs or targets that were left out. If kernels
    come from a farther GPU than the engine, their distance adds another error, and so do storage
    types without measured kernels. It is three times as large if experts, latent attention or
    linear attention are priced without measurements.
    """
    engine, kernels = engine_distance(scenario), kernel_distance(scenario)
    error = math.hypot(own, errors[engine])
    together = engine == kernels and engine in (Distance.SISTER, Distance.VENDOR)
    if kernels > Distance.SAME_GPU and not together:
        error = math.hypot(error, errors[kernels])
    ranks = [target_rank(scenario)]
    if scenario.draft is not None:
        tp = scenario.draft_tp
        ranks.append(Rank.of_scenario(scenario, scenario.draft, tp=tp, is_draft=True))
    if any(rank.assumes_types for rank in ranks):
        error = math.hypot(error, math.sqrt(UNMEASURED_FACTOR**2 - 1.0) * own)
    return error * (UNMEASURED_FACTOR if ranks[0].assumes_layers else 1.0)


def prefill_error(scenario: Scenario, prompt_tokens: ArrayLike | None = None) -> Floats:
    """Standard error of ln(time of a prompt, by default the workload's) over that of decoding.

    Of the farther end of `prompt_ends`, in passes as long as those that rounds and prompts share.
    """
    shared = replace(
        without_speculation(scenario), engine=scenario.engine.changed(prompt_chunk_tokens=0)
    )
    low, value, high = prompt_ends(shared, prompt_tokens)
    prompt = np.log(np.maximum(high / value, value / low)) / Z90
    late = _host_delays(scenario)[0]
    return _total(prompt, relative_error(scenario), _ranks_error(scenario), late)


def _ranks_error(scenario: Scenario) -> float:
    """Standard error of ln(speedup) at a TP at which the engine was not timed."""
    return TP_ERROR * math.sqrt(_doublings(scenario))


def _doublings(scenario: Scenario) -> float:
    """Doublings between the TP and the nearest that was timed; 1 for an engine without timings."""
    tp = math.log2(scenario.tp)
    return min(abs(tp - math.log2(timed)) for timed in scenario.engine.timed_tp or (1,))


def _parts_error(scenario: Scenario, point: RoundEstimate | None = None) -> Floats:
    """Standard error of ln(T_V / T_T) that follows from `PART_ERRORS`, by their shares of T_V."""
    if scenario.target.experts is None:
        return _NONE
    verify = (point or estimate(scenario)).verify
    errors = [PART_ERRORS.get(part.name, 0.0) * part.seconds for part in verify.parts]
    return _total(*(error / verify.total_s for error in errors))


def _rows_error(
    scenario: Scenario,
    point: RoundEstimate | None = None,
    batch: ArrayLike | None = None,
    prompt_tokens: ArrayLike | None = None,
) -> Floats:
    """Standard error of ln(round) that follows from the time of several query tokens in T_V.

    Another attention kernel is missed in plain steps, too. Assumed FLOP/s bound the share of T_V's
    attention by which it exceeds that of T_T, in the 4-norm of bytes and FLOPs (`smooth_max`).
    """
    if scenario.engine.uses_other_attention(scenario.target, scenario.machine.gpu):
        point = point or estimate(scenario)
        return OTHER_ATTENTION_ERROR * point.verify.group_s("attention") / point.round_s
    if not scenario.plan.speculates:
        return _NONE
    if scenario.target.latent is not None:
        return _padding_error(scenario, point, batch, prompt_tokens)
    error = scenario.kernels.attention.tensor_core_error
    if not error:
        return _NONE
    point = point or estimate(scenario)
    verify = point.verify.group_s("attention")
    plain = np.minimum(point.target_step.group_s("attention"), verify)
    bound = verify * (1.0 - (plain / verify) ** SMOOTH_MAX)
    return np.where(point.gamma > 0, np.log1p(np.expm1(error) * bound / point.round_s), 0.0)


def _padding_error(
    scenario: Scenario,
    point: RoundEstimate | None,
    batch: ArrayLike | None,
    prompt_tokens: ArrayLike | None,
) -> Floats:
    """The error of a kernel of latent attention that may pad its rows: the interval ends there."""
    rank, workload, point = target_rank(scenario), scenario.workload, point or estimate(scenario)
    if (curve := rank.latent_curve) is None:
        return _NONE
    ratio = curve.padded_ratio(
        batch=np.asarray(workload.batch if batch is None else batch, float) / rank.dp,
        kv_tokens=workload.prompt_tokens if prompt_tokens is None else prompt_tokens,
        query_tokens=np.asarray(point.gamma, float) + 1.0,
        heads=rank.spec.query_heads_per_rank(rank.tp),
        peak_flops=rank.machine.gpu.peak_flops,
        hbm_bandwidth=rank.machine.gpu.hbm_bandwidth,
    )
    saved = point.verify.group_s("attention") * (1.0 - 1.0 / ratio) / point.round_s
    return np.where(np.asarray(point.gamma) > 0, -np.log1p(-saved) / Z90, 0.0)


def _link_delays(
    scenario: Scenario, point: RoundEstimate | None = None, batch: ArrayLike | None = None
) -> Delays:
    """The delays that follow from the standard error of all-reduces that were not measured."""
    rows = np.asarray(scenario.workload.batch if batch is None else batch, float)
    error = sum_error(target_rank(scenario), rows)
    if not np.any(error):
        return _NONE, _NONE
    return _delays(point or estimate(scenario), "comm", np.expm1(error))


def _split_delays(
    scenario: Scenario,
    point: RoundEstimate | None = None,
    batch: ArrayLike | None = None,
    prompt_tokens: ArrayLike | None = None,
) -> Delays:
    """The delays if kernels of latent attention split the cache and the one measured does not.

    Serving engines split it, so no plan may rest on the times of a kernel that does not: this is
    one standard error of a speedup, and the 90 % interval of a time ends at it.
    """
    rank, workload = target_rank(scenario), scenario.workload
    if (curve := rank.latent_curve) is None:
        return _NONE, _NONE
    ratio = curve.unsplit_ratio(
        batch=np.asarray(workload.batch if batch is None else batch, float) / rank.dp,
        kv_tokens=workload.prompt_tokens if prompt_tokens is None else prompt_tokens,
        heads=rank.spec.query_heads_per_rank(rank.tp),
    )
    if np.all(ratio == 1.0):
        return _NONE, _NONE
    return _delays(point or estimate(scenario), "attention", 1.0 / ratio - 1.0)


def host_error(scenario: Scenario) -> float:
    """Standard error of ln(host time), wider on another machine or at a TP that was not timed.

    0 if the profile does not state it apart.
    """
    engine, is_same = scenario.engine, engine_distance(scenario) is Distance.SAME_GPU
    is_known = is_same and engine.is_timed_at(scenario.group_tp)
    stated = engine.host_error
    return max(stated, OTHER_HOST_ERROR) if stated and not is_known else stated


def _speedup_host_error(
    scenario: Scenario,
    point: RoundEstimate | None,
    batch: ArrayLike | None,
    prompt_tokens: ArrayLike | None,
) -> Floats:
    """Standard error of ln(speedup) that follows from that of host times."""
    of_round, plain = _host_delays(scenario, point, batch, prompt_tokens)
    shared = HOST_SHARED if scenario.plan.method is not None else 0.0
    return np.sqrt(of_round**2 + plain**2 - 2.0 * shared * of_round * plain)


def _host_delays(
    scenario: Scenario,
    point: RoundEstimate | None = None,
    batch: ArrayLike | None = None,
    prompt_tokens: ArrayLike | None = None,
) -> Delays:
    """The delays if the host takes one standard error longer."""
    return host_delays(scenario, math.exp(host_error(scenario)), point, batch, prompt_tokens)


def _delays(point: RoundEstimate, group: str, more: Floats) -> Delays:
    """ln(time / predicted) of a round and of a plain step if parts take 1 + `more` as long."""
    spent = point.verify.group_s(group)
    if point.draft_step is not None:
        spent = spent + point.gamma * point.draft_step.group_s(group)
    plain = np.log1p(more * point.target_step.group_s(group) / point.plain_tpot_s)
    late = np.where(point.gamma > 0, np.log1p(more * spent / point.round_s), plain)
    return late, plain
