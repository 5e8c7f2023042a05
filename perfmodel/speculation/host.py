"""Time per round that the GPU waits for the host of a serving engine.

With the GPU's time t = γ·T_D + T_V, host time h before the first launch, and l to launch all passes
of the round, the passes end max(t, l) after the first launch, since launches run ahead of the GPU:

    round = h + max(t, l)        host and GPU in turn (synchronous scheduling)
    round = max(t, h + l)        host in parallel with the GPU (asynchronous scheduling)

A pass within a captured CUDA graph is one launch, counted in h. A draft step without a full graph
costs a launch per step and layer; a pass of more tokens than any graph holds, one per layer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats
from perfmodel.scenario import Scenario
from perfmodel.specs.engine import HostCosts


def host_wait_s(
    scenario: Scenario,
    *,
    batch: Floats,
    prompt_tokens: Floats,
    gamma: Floats,
    passes_s: Floats,
    method: str,
) -> Floats:
    """Seconds that a round takes beyond its passes; 0 where the profile has no host costs.

    Parameters
    ----------
    batch, prompt_tokens, gamma, passes_s : array, mutually broadcastable
        Sequences; context of each; drafts per round [1]; γ·T_D + T_V [s].
    method : str
        "plain", or the way to draft as `HostCosts.method` names it.
    """
    costs = scenario.engine.host_costs(method)
    if costs is None:
        return np.zeros(())
    before = costs.step_s + costs.sequence_s * batch
    if costs.lookup_token_s:
        before = before + costs.lookup_token_s * batch * prompt_tokens
    launches = _launches_s(scenario, costs, batch, gamma)
    if costs.overlapped:
        return np.asarray(np.maximum(before + launches - passes_s, 0.0))
    return np.asarray(before + np.maximum(launches - passes_s, 0.0))


def method_of(scenario: Scenario) -> str:
    """The name under which a profile lists the host costs of the scenario's draft."""
    plan = scenario.plan
    if plan.method is not None:
        return plan.draft
    return "plain" if plan.draft == "none" else "draft"


def _launches_s(scenario: Scenario, costs: HostCosts, batch: Floats, gamma: ArrayLike) -> Floats:
    engine, draft = scenario.engine, scenario.draft
    one = costs.draft_step_s + costs.draft_layer_s * (draft.layers if draft else 0)
    method = scenario.plan.method
    steps = np.asarray(gamma, float)
    if method is not None and method.kind == "one-pass":
        steps = np.minimum(steps, 1.0)
    total = steps * one
    if engine.graph_tokens and engine.eager_layer_s:
        eager = batch * (np.asarray(gamma) + 1.0) > engine.graph_tokens
        total = total + np.where(eager, engine.eager_layer_s * scenario.target.layers, 0.0)
    return np.asarray(total)
