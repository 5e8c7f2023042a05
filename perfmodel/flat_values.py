"""Flat scenario values: convert a `Scenario` to them, and override some by others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perfmodel import catalog
from perfmodel.scenario import Scenario
from perfmodel.scenario_input import ACCEPTANCE_KEYS
from perfmodel.specs.labels import Origin
from perfmodel.units import GB, US

RING_KEYS = ("ring_hop_us", "ring_gb_s")
# When the value of a key changes, these keys are dropped too, because they depended on it.
SUPERSEDES: dict[str, tuple[str, ...]] = {
    "gpu": ("machine", *RING_KEYS),
    "machine": ("gpu", *RING_KEYS),
    "target": ACCEPTANCE_KEYS,
    "draft": ("draft_policy", "kv_budget", "gamma", "draft_tp", *ACCEPTANCE_KEYS),
    "draft_policy": ("kv_budget", *ACCEPTANCE_KEYS),
    **{key: tuple(k for k in ACCEPTANCE_KEYS if k != key) for key in ACCEPTANCE_KEYS},
}


def override(base: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`base` overridden by `new`, without the keys that a changed value invalidates.

    What `base` states of a draft without naming one applies to the draft that `new` names.
    """
    changed = {name for name, value in new.items() if str(base.get(name)) != str(value)}
    if "draft" not in base and new.get("draft") != "none":
        changed.discard("draft")
    dropped = {key for name in changed for key in SUPERSEDES.get(name, ())}
    return {k: v for k, v in base.items() if k not in dropped} | dict(new)


def scenario_dict(scenario: Scenario) -> dict[str, Any]:
    """The scenario in the keys of the command line, omitting values that are None."""
    plan, work, given = scenario.plan, scenario.workload, scenario.acceptance
    draft, machine = scenario.draft, scenario.machine
    by_name = draft is None or plan.is_self or plan.method is not None
    values: dict[str, Any] = {
        "target": scenario.target.reference,
        "draft": plan.draft if by_name or draft is None else draft.reference,
        "draft_policy": None if plan.draft == "none" else plan.policy,
        "kv_budget": plan.kv_budget_tokens or plan.budget_text or None,
        "gamma": plan.gamma,
        "gpu": machine.gpu.reference,
        "machine": None if machine.gpu.path else machine.name,
        "tp": scenario.tp,
        "ep": scenario.ep if scenario.ep > 1 else None,
        "dp": scenario.dp if scenario.dp > 1 else None,
        "draft_tp": None if plan.draft == "none" else scenario.draft_tp,
        "batch": work.batch,
        "prompt_tokens": work.prompt_tokens,
        "output_tokens": work.output_tokens,
        "prefill": str(work.prefill),
        "prefix_hit_rate": work.prefix_hit_rate,
        # Stating a type for the weights would override those of the checkpoint's parts.
        "weight_dtype": None
        if scenario.expert_dtype or scenario.part_dtypes
        else scenario.weight_dtype,
        "kv_dtype": scenario.kv_dtype,
        "draft_dtype": scenario.draft_dtype or None,
        "draft_kv_dtype": scenario.draft_kv_dtype or None,
        "engine": scenario.engine.name,
        "host_factor": None if scenario.host_factor == 1.0 else scenario.host_factor,
    }
    link, path = machine.link, machine.gpu.path
    usual = catalog.default_machine(path) if path else catalog.machine(machine.name)
    if link.ring_hop_s and link.ring_bandwidth and link != usual.link:
        values |= {
            "ring_hop_us": round(link.ring_hop_s / US, 9),
            "ring_gb_s": round(link.ring_bandwidth / GB, 9),
        }
    # The published acceptance of a built-in draft is looked up again from the draft's name.
    if given is not None and (plan.method is None or given.origin == Origin.GIVEN):
        rates = list(given.per_position)
        key = "acceptance" if len(rates) == 1 else "acceptance_per_position"
        values[key] = rates[0] if len(rates) == 1 else rates
    return {key: value for key, value in values.items() if value is not None}
