"""Time per round for which the GPU waits for the host of a serving engine.

Let t = γ·T_D + T_V be the GPU time of a round, h the host time before its first launch, and l the
time to launch all of its passes. Launches run ahead of the GPU, so the passes end max(t, l) after
the first launch:

    round = h + max(t, l)        the host and the GPU take turns (synchronous scheduling)
    round = max(t, h + l)        the host works in parallel with the GPU (asynchronous scheduling)

A round is scheduled like a plain step, so it does not end before such a step would. With
asynchronous scheduling, h is at least the time to schedule a plain step, and the launches of drafts
come on top of it.

A pass that is a full CUDA graph is a single launch, which h includes. A draft step without one
costs a launch per step and layer, and so does each layer of a target pass with a piecewise graph
or with more tokens than any graph.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats
from perfmodel.scenario import Scenario
from perfmodel.specs.draft_methods import MethodKind
from perfmodel.specs.engine import HostCosts
from perfmodel.specs.workload import Prefill, fullest_group


def host_wait_s(
    scenario: Scenario,
    method: str,
    batch: Floats,
    prompt_tokens: Floats,
    gamma: Floats,
    passes_s: Floats,
    *,
    slowdown: ArrayLike = 1.0,
) -> Floats:
    """Seconds of a round in addition to its passes; 0 if the profile has no host costs.

    The method is a decoding method of `HostCosts.method`; `passes_s` is γ·T_D + T_V. Host times are
    `slowdown` times those of the profile. Arrays broadcast.
    """
    costs, slowdown = scenario.engine.host_costs(method), np.asarray(slowdown, float)
    if costs is None:
        return np.zeros(())
    before = slowdown * _before_s(scenario, costs, batch, gamma, prompt_tokens)
    launches = slowdown * _launches_s(scenario, costs, batch, gamma)
    wait = _wait_s(costs, before, launches, passes_s)
    plain = scenario.engine.host_costs("plain")
    if plain is None:
        return wait
    scheduling = slowdown * _step_s(scenario, plain, batch, np.zeros(()))
    return np.maximum(wait, _wait_s(plain, scheduling, np.zeros(()), passes_s))


def host_work_s(scenario: Scenario, method: str) -> float:
    """Seconds that the host works in a step or round, h + l; 0 if the profile has no host costs."""
    costs = scenario.engine.host_costs(method)
    if costs is None:
        return 0.0
    work = scenario.workload
    batch = fullest_group(np.asarray(work.batch, np.float64), scenario.dp)
    gamma, prompt = scenario.plan.gamma, np.asarray(work.prompt_tokens, np.float64)
    before = _before_s(scenario, costs, batch, np.asarray(float(gamma)), prompt)
    if method == "plain":
        return float(before)
    return float(before + _launches_s(scenario, costs, batch, scenario.plan.gamma))


def _prompt_layers(scenario: Scenario) -> int:
    """Layers that a prompt passes; a self-draft uses the target's cache."""
    draft = None if scenario.plan.is_self else scenario.draft
    return scenario.target.layers + (draft.layers if draft else 0)


def mixed_pass_host_s(
    scenario: Scenario, batch: ArrayLike, gamma: ArrayLike, tokens: ArrayLike
) -> Floats:
    """Least seconds of a pass with prompt tokens, which the host launches layer by layer.

    0 if the profile has no host costs. A profile of an engine without graphs of such passes states
    what it costs to launch a layer of them (`EngineProfile.mixed_launch_s`). `batch` and `gamma`
    are those that decode in the pass, and `tokens` all of it; arrays broadcast.
    """
    running, tokens = np.asarray(batch, float), np.asarray(tokens, float)
    costs = scenario.engine.host_costs(method_of(scenario))
    if costs is None:
        return np.zeros(())
    layers = _prompt_layers(scenario)
    steps = np.where(running > 0, gamma, 0)  # of drafts; those of a new sequence come later
    launches = layers * scenario.engine.mixed_launch_s(tokens, tp=scenario.group_tp)
    launches = launches + _drafts_launch_s(scenario, costs, steps)
    step_s, plain = _step_s(scenario, costs, running, steps), scenario.engine.host_costs("plain")
    if plain is not None:  # no round is shorter than a plain step
        step_s = np.maximum(step_s, _step_s(scenario, plain, running, np.zeros(())))
    return np.asarray(step_s + launches)


def most_sequences_in_graph(scenario: Scenario) -> int | None:
    """The most sequences of which a pass with one prompt is in a CUDA graph; None without graphs.

    With one sequence more, the host launches each layer, and a pass with a prompt takes longer by a
    step. The launches were measured in rounds, not beside prompts.
    """
    work, engine = scenario.workload, scenario.engine
    if not engine.graph_tokens or work.prefill is not Prefill.SHARED or not engine.host:
        return None
    computed = work.prompt_tokens - int(work.prefix_hit_rate * work.prompt_tokens)
    room = engine.graph_tokens - computed % engine.prefill_chunk_tokens
    sequences = int(room // (scenario.plan.gamma + 1.0)) + 1
    return sequences if sequences > 0 else None


def schedules_ahead(scenario: Scenario) -> bool:
    """Whether the host schedules a pass while the GPU still runs the one before."""
    costs = scenario.engine.host_costs(method_of(scenario))
    return costs is not None and costs.overlapped


def method_of(scenario: Scenario) -> str:
    """The name of the scenario's decoding method in `HostCosts.method`."""
    plan = scenario.plan
    if plan.method is not None:
        return plan.draft
    return "plain" if plan.draft == "none" else "draft"


def _before_s(
    scenario: Scenario, costs: HostCosts, batch: Floats, gamma: Floats, prompt_tokens: Floats
) -> Floats:
    """Host seconds before the first launch, with the look-ups of drafts."""
    look_ups = costs.lookup_token_s * batch * prompt_tokens
    return np.asarray(_step_s(scenario, costs, batch, gamma) + look_ups)


def _step_s(scenario: Scenario, costs: HostCosts, batch: Floats, gamma: Floats) -> Floats:
    """Host seconds of a step or round before its first launch, without the look-ups of drafts."""
    step_s, plain = _scheduling_s(costs, batch, gamma), scenario.engine.host_costs("plain")
    if costs.overlapped and plain is not None:
        step_s = np.maximum(step_s, _scheduling_s(plain, batch, np.zeros(())))
    return step_s + (scenario.engine.rank_step_s if scenario.group_tp > 1 else 0.0)


def _scheduling_s(costs: HostCosts, batch: Floats, gamma: Floats) -> Floats:
    of_sequence = costs.sequence_s + costs.draft_token_s * gamma
    return np.asarray(costs.step_s + of_sequence * batch)


def _wait_s(costs: HostCosts, before: Floats, launches: Floats, passes_s: Floats) -> Floats:
    if costs.overlapped:
        return np.asarray(np.maximum(before + launches - passes_s, 0.0))
    return np.asarray(before + np.maximum(launches - passes_s, 0.0))


def _launches_s(scenario: Scenario, costs: HostCosts, batch: Floats, gamma: ArrayLike) -> Floats:
    engine, total = scenario.engine, _drafts_launch_s(scenario, costs, gamma)
    if engine.default_graphs:
        target, tp = scenario.target, scenario.group_tp
        launch_s = engine.default_launch_s(costs.method, batch, gamma, tp=tp, target=target)
        total = total + target.layers * launch_s
    return np.asarray(total)


def _drafts_launch_s(scenario: Scenario, costs: HostCosts, gamma: ArrayLike) -> Floats:
    draft, method = scenario.draft, scenario.plan.method
    per_step = costs.draft_step_s + costs.draft_layer_s * (draft.layers if draft else 0)
    steps = np.asarray(gamma, float)
    if method is not None and method.kind is MethodKind.ONE_PASS:
        steps = np.minimum(steps, 1.0)
    return np.asarray(steps * per_step)
