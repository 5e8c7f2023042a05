"""The time of a prompt alone on an idle machine, and its 90 % interval.

A prompt runs in passes over chunks of it (`EngineProfile.chunk_of_prompt`). Each takes as long as
its kernels, or as the host that launches them, whichever is longer. Kernels and launches have
errors of their own, so an end of the interval is the same sum with both at that end: it is
continuous, and never falls as prompts grow.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Bools, Floats
from perfmodel.passes.forward import prefill_pass
from perfmodel.passes.rank import Rank
from perfmodel.scenario import Scenario
from perfmodel.specs.draft import DraftPolicy
from perfmodel.speculation.drafting import draft_start_s
from perfmodel.units import Z90

# Rms of ln(predicted / measured time of a prompt) on timed GPUs, where kernels take the time and
# where hosts do: their speed differs. UNFITTED is of a profile that was not fitted to prompts.
PREFILL_ERROR, UNFITTED_PREFILL_ERROR = 0.046, 0.123
LAUNCH_ERROR, RANK_LAUNCH_ERROR = 0.227, 0.265  # several ranks wait for the last of their hosts
# The most that a host of the runtime took per layer (0.3 to 1.05 ms): the high end of a profile
# that was not fitted to prompts, whose launches are not known.
MOST_LAUNCH_LAYER_S = 1.05e-3


def prompt_s(scenario: Scenario, prompt_tokens: ArrayLike, kv_budget_tokens: ArrayLike) -> Floats:
    """Seconds of prompts alone, target and draft, without what is in the prefix cache.

    The arrays broadcast. Profiles with host costs have no launches in prompts.
    """
    return _seconds(scenario, prompt_tokens, kv_budget_tokens, launch_s(scenario), 1.0)


def launch_s(scenario: Scenario) -> float:
    """Least seconds per layer of a pass over a prompt alone; 0 if the profile has host costs."""
    engine = scenario.engine
    return 0.0 if engine.host else engine.eager_launch_s(scenario.group_tp)


def prompt_ends(
    scenario: Scenario,
    prompt_tokens: ArrayLike | None = None,
    *,
    error: float = 0.0,
) -> tuple[Floats, Floats, Floats]:
    """(low, value, high) of the seconds of prompts alone, by default the workload's.

    `error` is the standard error of ln(time of a pass), to which that of prompts is added.
    """
    tokens = scenario.workload.prompt_tokens if prompt_tokens is None else prompt_tokens
    budget = scenario.plan.budget_at(np.asarray(tokens, float))
    layer_s, busy = launch_s(scenario), UNFITTED_PREFILL_ERROR
    least_s, most_s = layer_s, max(layer_s, MOST_LAUNCH_LAYER_S)
    if _is_fitted(scenario):
        waiting = LAUNCH_ERROR if scenario.group_tp == 1 else RANK_LAUNCH_ERROR
        host, busy = math.exp(Z90 * math.hypot(waiting, error)), PREFILL_ERROR
        least_s, most_s = layer_s / host, layer_s * host
    kernels = math.exp(Z90 * math.hypot(busy, error))
    low, value, high = (
        _seconds(scenario, tokens, budget, layer, factor)
        for layer, factor in ((least_s, 1.0 / kernels), (layer_s, 1.0), (most_s, kernels))
    )
    return low, value, high


def waits_for_launches(scenario: Scenario, prompt_tokens: ArrayLike) -> Bools:
    """Whether a pass over the prompts takes longer to launch than to run."""
    budget = scenario.plan.budget_at(np.asarray(prompt_tokens, float))
    kernels_s = _seconds(scenario, prompt_tokens, budget, 0.0, 1.0)
    return np.asarray(prompt_s(scenario, prompt_tokens, budget) > kernels_s)


def _is_fitted(scenario: Scenario) -> bool:
    return scenario.engine.prefill_compute_factor != 1.0


def _seconds(
    scenario: Scenario,
    prompt_tokens: ArrayLike,
    kv_budget_tokens: ArrayLike,
    layer_s: float,
    kernels: float,
) -> Floats:
    """Seconds of prompts alone if a layer's launches take `layer_s`; `kernels` is a factor."""
    prompt, budget = np.asarray(prompt_tokens, float), np.asarray(kv_budget_tokens, float)
    cached = np.floor(scenario.workload.prefix_hit_rate * prompt)
    passes = _passes_s(scenario, prompt)
    launches = scenario.target.layers * layer_s
    of_target = np.where(passes > 0.0, np.maximum(kernels * passes, launches), 0.0).sum(axis=-1)
    of_draft = kernels * draft_start_s(scenario, prompt, budget, cached)
    if scenario.draft is not None and not scenario.plan.is_self:
        read = prompt - cached
        if scenario.plan.policy is not DraftPolicy.FULL:
            read = np.minimum(read, budget)
        count = np.ceil(read / scenario.engine.chunk_of_prompt)
        of_draft = np.maximum(of_draft, count * scenario.draft.layers * layer_s)
    return np.asarray(of_target + of_draft)


def _passes_s(scenario: Scenario, prompt: Floats) -> Floats:
    """Seconds of the target's kernels in each pass over a prompt, on a last axis; 0 after it."""
    rank = Rank.of_scenario(scenario, scenario.target, tp=scenario.tp, is_draft=False)
    chunk = float(scenario.engine.chunk_of_prompt)
    lengths, places = np.unique(prompt, return_inverse=True)
    before = np.floor(scenario.workload.prefix_hit_rate * lengths)[:, None]
    most = max(1, math.ceil(float(np.max(lengths - before[:, 0])) / chunk))
    starts = before + chunk * np.arange(most)
    tokens = np.clip(lengths[:, None] - starts, 0.0, chunk)
    step = prefill_pass(
        rank,
        batch=1,
        prompt_tokens=np.maximum(tokens, 1.0),
        cached_tokens=np.where(tokens > 0.0, starts, 0.0),
    )
    seconds = np.where(tokens > 0.0, np.broadcast_to(step.total_s, tokens.shape), 0.0)
    return np.asarray(seconds[places.reshape(prompt.shape)])
