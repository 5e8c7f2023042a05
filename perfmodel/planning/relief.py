"""If no plan meets the limits: the closest one, and single changes that would let one meet them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from perfmodel import catalog
from perfmodel.catalog.engines import engine_names, engine_profile
from perfmodel.errors import ConfigError, either
from perfmodel.passes.memory import memory_estimate
from perfmodel.planning.candidate import Candidate
from perfmodel.planning.capacity import MOST_REQUESTS, capacity
from perfmodel.planning.search import Search, evaluated
from perfmodel.scenario import Scenario
from perfmodel.scenario_notes import length_excess
from perfmodel.specs.dtypes import is_quantised
from perfmodel.specs.workload import Prefill
from perfmodel.speculation import estimate, service_tpot, without_speculation
from perfmodel.speculation.break_even import service_within
from perfmodel.speculation.gain import GAMMAS
from perfmodel.units import format_seconds

TP_DEGREES = (1, 2, 4, 8, 16)
MOST_MACHINES = 3  # named in a line
SHORTEST_PROMPT = 1 / 16  # of the scenario's, tried by halves
Change = Callable[[Scenario], Scenario]


def nearest_miss(result: Search) -> str:
    """One line on the plan that comes closest and the limits that it exceeds."""
    nearest = min(result.candidates, key=lambda c: miss(result, c))
    if nearest.parts and result.slo.tpot_s is not None:  # if plain decoding is what misses them
        plain = evaluated(without_speculation(nearest.scenario), result.objective)
        nearest = min(plain, nearest, key=lambda c: miss(result, c))
    broken = nearest.violation(result.slo)
    value = {
        "memory": f"memory {nearest.memory_fraction:.1%} of the GPU",
        "tpot": f"tpot {format_seconds(nearest.tpot_s)}",
        "ttft": f"ttft {format_seconds(nearest.ttft_s)}",
    }
    near = ""
    if set(broken) == {"tpot"} and service_tpot(nearest.scenario).low <= (result.slo.tpot_s or 0.0):
        near = ", which is within the error"
    misses = ", ".join(f"{value[name]} ({ratio:.2f}x the limit)" for name, ratio in broken.items())
    misses += near
    work, too_long = nearest.scenario.workload, length_excess(nearest.scenario)
    ideal = ""
    for other in replace(result, candidates=result.not_runnable).ranked()[:1]:
        scenario = other.scenario
        ideal = f"; in principle, {other.label}, TP {scenario.tp}, meets them, but "
        ideal += f"{scenario.obstacle_on(result.version)}"
    return (
        f"no plan meets the limits at batch {work.batch} and {work.prompt_tokens:,} tokens; the "
        f"closest is {nearest.label} at tp={nearest.scenario.tp}: {misses}{ideal}"
        f"{_reliefs(result)}"
        f"{_groups_hint(nearest) if 'memory' in broken else ''}"
        f"{too_long and f'; {too_long}'}"
    )


def miss(result: Search, candidate: Candidate) -> float:
    """Value over limit, of the limit that a plan exceeds by most."""
    return max(candidate.violation(result.slo).values())


def _groups_hint(nearest: Candidate) -> str:
    """What data-parallel attention takes, if only it makes a latent cache fit; else ""."""
    scenario, target = nearest.scenario, nearest.scenario.target
    tp = scenario.tp
    if target.latent is None or target.experts is None or scenario.dp > 1 or tp == 1:
        return ""
    work = replace(scenario.workload, prefill=Prefill.DISAGGREGATED)
    plain = replace(without_speculation(scenario), ep=tp, dp=tp, workload=work)
    memory = estimate(plain).memory
    if not memory.fits:
        return ""
    return (
        f"; data-parallel attention, which divides the latent cache among the GPUs, takes "
        f"{float(memory.fraction):.0%} of the memory without speculation (--tp {tp} --dp {tp})"
    )


def _reliefs(result: Search) -> str:
    """One clause on changes that help, each alone, plain decoding or with the nearest draft."""
    plans = _nearest_plans(result)
    fewer = _fewer_requests(result, plans)
    changes = [name for name, change in _changes(plans[0], result) if _helps(result, plans, change)]
    changes += _machines(result, plans)
    if not changes and not fewer:
        return _machines_for_fewer(result, plans[0])
    return fewer + (f"; {either(changes)} would meet them" if changes else "")


def _nearest_plans(result: Search) -> list[Scenario]:
    """The plans with and without a draft that miss the limits by least."""
    kinds = [
        [c for c in result.candidates if c.scenario.plan.speculates is speculates]
        for speculates in (False, True)
    ]
    return [min(kind, key=lambda c: miss(result, c)).scenario for kind in kinds if kind]


def _fewer_requests(result: Search, plans: list[Scenario]) -> str:
    """The plan that meets the limits at the most requests."""
    tried = [c for c in result.candidates if c.parts == 0 or c.scenario in plans]
    sized = [capacity(candidate, result.slo) for candidate in tried]
    most = max((one for one in sized if one), key=lambda one: one.concurrency, default=None)
    if most is None or most.concurrency >= plans[0].workload.batch:
        return ""
    plan = most.candidate
    up_to = "" if most.concurrency == MOST_REQUESTS else "up to "  # more are not searched
    at = f"{up_to}{most.concurrency} requests"
    return f"; {plan.label}, TP {plan.scenario.tp}, meets them at {at}"


def _changes(base: Scenario, result: Search) -> Iterator[tuple[str, Change]]:
    """Changes on the same machine, by name."""
    searched = {candidate.scenario.tp for candidate in result.candidates}
    for tp in TP_DEGREES:
        if tp not in searched and tp <= base.machine.gpus_per_node:
            yield f"TP {tp}", _at_tp(tp)
    if not is_quantised(base.kv_dtype):
        yield "an fp8 KV cache", lambda scenario: replace(scenario, kv_dtype="fp8")
    if not is_quantised(base.weight_dtype) and not is_quantised(base.expert_dtype):
        yield "fp8 weights", lambda scenario: replace(scenario, weight_dtype="fp8")
    for length in _shorter_prompts(base):
        if _helps(result, [base], change := _at_prompt(length)):
            yield f"prompts of {length:,} tokens", change
            return


def _at_tp(tp: int) -> Change:
    return lambda scenario: replace(scenario, tp=tp)


def _at_prompt(tokens: int) -> Change:
    return lambda scenario: replace(
        scenario, workload=replace(scenario.workload, prompt_tokens=tokens)
    )


def _shorter_prompts(base: Scenario) -> Iterator[int]:
    tokens = whole = base.workload.prompt_tokens
    while (tokens := tokens // 2) >= max(1.0, whole * SHORTEST_PROMPT):
        yield tokens


def _machines(result: Search, plans: list[Scenario]) -> list[str]:
    """Machines that help, each at its smallest TP; those with the smallest TP first."""
    found: list[tuple[int, str]] = []
    for name in _machine_names():
        if name == plans[0].machine.name:
            continue
        most = catalog.machine(name).gpus_per_node
        degrees = (tp for tp in TP_DEGREES if tp <= most)
        tp = next((tp for tp in degrees if _helps(result, plans, _on(name, tp))), None)
        found += [] if tp is None else [(tp, name)]
    return [f"{name} at TP {tp}" for tp, name in sorted(found)[:MOST_MACHINES]]


def _machines_for_fewer(result: Search, plain: Scenario) -> str:
    """The machines that take the most requests, for limits that no single change meets."""
    found: list[tuple[int, str]] = []
    for name in _machine_names():
        for tp in (tp for tp in TP_DEGREES if tp <= catalog.machine(name).gpus_per_node):
            if (changed := _changed(result, plain, _on(name, tp))) is not None:
                sized = capacity(evaluated(changed, result.objective), result.slo)
                found += [(sized.concurrency, f"{name} at TP {tp}")] if sized else []
    if not found:
        return "; no machine of the catalog meets them without a draft, not even for one request"
    best = [
        f"{name} (at most {most} requests)"
        for most, name in sorted(found, reverse=True)[:MOST_MACHINES]
    ]
    return (
        f"; no single change meets them; fewer requests and {either(best)} would, without a draft"
    )


def _machine_names() -> list[str]:
    """The machines of the catalog, except single nodes, whose ring is that of a publication."""
    names = catalog.machine_names()
    return [name for name in names if catalog.machine(name).link.ring_hop_s is None]


def _on(name: str, tp: int) -> Change:
    machine = catalog.machine(name)

    def change(scenario: Scenario) -> Scenario:
        engine = scenario.engine
        if engine.name in engine_names():  # a user's profile is used as it is
            engine = engine_profile(engine.name, machine.gpu)
            engine = engine.on_slower_host(scenario.host_factor)
        return replace(scenario, machine=machine, tp=tp, engine=engine)

    return change


def _helps(result: Search, plans: list[Scenario], change: Change) -> bool:
    """Whether one of the plans meets the limits after a change, at any γ if it has a draft."""
    for plan in plans:
        if (changed := _changed(result, plan, change)) is not None:
            gammas = GAMMAS if plan.plan.speculates else np.zeros(1)
            if _fits(changed, gammas[0]) and np.any(
                service_within(changed, result.slo, gamma=gammas)[1]
            ):
                return True
    return False


def _fits(scenario: Scenario, gamma: float) -> bool:
    """Whether a scenario fits in memory at a γ, and so may at larger ones; needs no times."""
    work = scenario.workload
    return bool(
        memory_estimate(
            scenario,
            batch=work.batch,
            prompt_tokens=work.prompt_tokens,
            gamma=gamma,
            kv_budget_tokens=scenario.plan.budget_at(work.prompt_tokens),
        ).fits
    )


def _changed(result: Search, plan: Scenario, change: Change) -> Scenario | None:
    """The plan after a change; None if it is not possible, as with a TP that splits no head."""
    try:
        changed = change(plan)
    except ConfigError:
        return None
    return changed if changed.obstacle_on(result.version) is None else None
