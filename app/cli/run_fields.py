"""What a scenario states of a run of the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfmodel import ScenarioInput

# Fields of a scenario that do not affect the engine: the predicted hardware and engine, how
# experts and prompts are divided, the limits and the acceptance curves.
_MACHINE = {"gpu", "machine", "ring_hop_us", "ring_gb_s", "engine", "host_factor"}
NOT_EXECUTED = _MACHINE | {"ep", "dp", "prefill", "prefix_hit_rate", "slo", "acceptance_curve"}


def scenario_fields(mode: str, stated: ScenarioInput, origin: str) -> dict[str, Any]:
    """The fields of a `RunPlan` given by a scenario: all but `NOT_EXECUTED`.

    A baseline run ignores the draft. Raises `ConfigError` if the engine does not support the
    scenario's draft, or it needs another mode.
    """
    from perfmodel import ConfigError, catalog

    plan = stated.plan()
    weights, kv = stated.weight_dtype, stated.kv_dtype
    of_checkpoint = "weight_dtype" not in stated.model_fields_set
    if of_checkpoint and catalog.model(stated.target).weight_dtype == "fp16":
        weights, kv = "fp16", kv if "kv_dtype" in stated.model_fields_set else "fp16"
    values = {
        "model": stated.target,
        "tp": stated.tp,
        "batch": stated.batch,
        "prompt_tokens": stated.prompt_tokens,
        "gen_tokens": stated.output_tokens,
        "weight_dtype": weights,
        "kv_dtype": kv,
        "draft_dtype": stated.draft_dtype or weights,
    }
    if mode == "baseline":
        return values
    if stated.draft_kv_dtype not in (None, kv):
        raise ConfigError(
            f"{origin} has draft_kv_dtype={stated.draft_kv_dtype}, which differs from kv_dtype; "
            f"this engine has one type of KV cache"
        )
    if plan.method is not None:
        raise ConfigError(
            f"{origin} has the built-in draft {plan.draft!r}, which this engine does not support; "
            f"use another draft"
        )
    drafts = {"none": "baseline", "self": "selfspec"}.get(plan.draft, "standalone")
    if drafts != mode:
        raise ConfigError(
            f"{origin} has the draft {plan.draft!r}; run it as `specroof run {drafts}`"
        )
    values |= {"gamma": plan.gamma, "draft_policy": plan.policy, "sink": plan.sink_tokens}
    if plan.budget_text:
        values["kv_budget"] = int(plan.budget_at(stated.prompt_tokens))
    if plan.draft != "self":
        values["draft"] = plan.draft
    if plan.draft_tp is not None:
        values["draft_tp"] = plan.draft_tp
    acceptance = stated.given_acceptance(plan.gamma)
    if acceptance is not None:
        known = acceptance.per_position  # the last one holds for all later positions
        values["acceptance"] = tuple(known[min(i, len(known) - 1)] for i in range(plan.gamma))
    return values
