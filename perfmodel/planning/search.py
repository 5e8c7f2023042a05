"""`search`: rank every draft choice, γ, KV budget and TP of a service under an SLO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from perfmodel._typing import Bools, Floats
from perfmodel.errors import ConfigError, either
from perfmodel.planning.candidate import Candidate
from perfmodel.planning.variants import draft_choices, variants
from perfmodel.scenario import Scenario
from perfmodel.specs.engine_support import EngineVersion, profile_version
from perfmodel.specs.workload import SLO
from perfmodel.speculation.break_even import break_even_alpha, within
from perfmodel.speculation.gain import GAMMAS, OBJECTIVES, cost_s, plateau
from perfmodel.speculation.round import without_speculation
from perfmodel.speculation.service import ServiceEstimate, service

BUDGETS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmeasured:
    """A draft choice with unknown acceptance, and the α at which it breaks even."""

    candidate: Candidate  # at the γ and budget with the lowest break-even α
    alpha_to_break_even: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """All candidates of a search."""

    objective: str
    slo: SLO
    # For each draft choice, TP and budget: the best γ (and batch) within all limits, within memory,
    # and without limits.
    candidates: tuple[Candidate, ...]
    unmeasured: tuple[Unmeasured, ...]
    not_runnable: tuple[Candidate, ...] = ()  # the same for plans that `version` cannot run
    drafts: tuple[str, ...] = ()  # that were searched
    version: EngineVersion | None = None
    most_requests: int | None = None  # at once per replica of a fleet, if stated

    def ranked(self) -> list[Candidate]:
        """Candidates within the limits, best first."""
        return sorted((c for c in self.candidates if not c.violation(self.slo)), key=self.cost)

    def cost(self, candidate: Candidate) -> float:
        """The quantity to minimise: GPU seconds per token, or seconds per token of a sequence."""
        if self.objective == "latency":
            return candidate.tpot_s
        return 1.0 / candidate.throughput_per_gpu


def search(
    scenario: Scenario,
    *,
    objective: str = "throughput",
    slo: SLO | None = None,
    choices: Sequence[tuple[str, str]] | None = None,
    tps: Sequence[int] | None = None,
    draft_tps: Sequence[int] = (1, 2, 4, 8, 16),
    budgets: Sequence[int] = BUDGETS,
    batches: Sequence[int] | None = None,
    measured_budget: int | None = None,
    runs_on: EngineVersion | None = None,
) -> Search:
    """Evaluate every draft choice, budget, γ from 1 to 16, and TP of a scenario.

    If a version of a serving engine is given, or named by the engine profile, plans that it cannot
    run are only listed as `not_runnable`.

    Parameters
    ----------
    scenario : Scenario
        Machine, target, workload and engine; an acceptance applies only to the scenario's draft
        and policy.
    objective : str
        "throughput" (tokens/s per GPU) or "latency" (TPOT) of the service.
    slo : SLO, optional
        Limits, in addition to the memory capacity.
    choices : sequence of (draft, policy), optional
        By default `draft_choices(scenario)`.
    tps : sequence of int, optional
        TP degrees; by default that of the scenario.
    draft_tps : sequence of int
        TP degrees of a standalone draft; those that exceed the target's or do not split the
        draft are skipped.
    budgets : sequence of int
        KV budgets; those that exceed the context are skipped. [tokens]
    batches : sequence of int, optional
        Concurrent requests to choose from; by default the scenario's.
    measured_budget : int, optional
        KV budget at which the scenario's acceptance was measured; at other budgets it follows the
        shape of the draft's acceptance curve. [tokens]
    runs_on : EngineVersion, optional
        What must run the plan; by default the version that the engine profile names.
    """
    version = runs_on or profile_version(scenario.engine.name)
    if objective not in OBJECTIVES:
        raise ConfigError(f"unknown objective {objective!r}; use {either(OBJECTIVES)}")
    degrees, limits = tps or [scenario.tp], slo or SLO()
    for tp in degrees:
        scenario.target.check_tp(tp)
    chosen = choices if choices is not None else draft_choices(scenario)
    batch = np.asarray(batches or [scenario.workload.batch], float)[:, None]
    alone = {tp: replace(without_speculation(scenario), tp=tp) for tp in degrees}
    plain = {tp: service(one, batch=batch, gamma=np.zeros(1)) for tp, one in alone.items()}
    measured: list[Candidate] = []
    not_runnable: list[Candidate] = []
    for tp, without in alone.items():
        reason = without.obstacle_on(version)
        [best] = _best([without], plain[tp], plain[tp], objective, limits)
        (not_runnable if reason else measured).extend(best)
    if not measured and reason:
        raise ConfigError(reason)
    unmeasured: list[tuple[float, Candidate]] = []
    for every in variants(scenario, chosen, degrees, draft_tps, budgets, measured_budget):
        is_measured = every[0].acceptance is not None or every[0].curve is not None
        runnable = [variant.obstacle_on(version) is None for variant in every]
        if not (is_measured or any(runnable)):
            continue
        result = _service(every, batch)
        found = _best(every, result, plain[every[0].tp], objective, limits)
        alphas = np.broadcast_to(result.decode.break_even_alpha, _shape(every, result))
        for index, (is_runnable, best) in enumerate(zip(runnable, found, strict=True)):
            if is_measured:
                (measured if is_runnable else not_runnable).extend(best)
            elif is_runnable:
                least = float(np.min(alphas[index]))
                unmeasured.extend((least, candidate) for candidate in best if candidate.fits)
    return Search(
        objective=objective,
        slo=limits,
        candidates=tuple(measured),
        unmeasured=tuple(_least_alpha(unmeasured, objective)),
        not_runnable=tuple(not_runnable),
        drafts=tuple(dict.fromkeys(draft for draft, _ in chosen)),
        version=version,
    )


def joined(searches: Sequence[Search]) -> Search:
    """The candidates of several searches with the same drafts and limits."""
    unmeasured: dict[tuple[str, str], Unmeasured] = {}
    for one in (one for each in searches for one in each.unmeasured):
        plan = one.candidate.scenario.plan
        best = unmeasured.setdefault((plan.draft, plan.policy), one)
        if one.alpha_to_break_even < best.alpha_to_break_even:
            unmeasured[plan.draft, plan.policy] = one
    return replace(
        searches[0],
        candidates=tuple(one for each in searches for one in each.candidates),
        unmeasured=tuple(unmeasured.values()),
        not_runnable=tuple(one for each in searches for one in each.not_runnable),
    )


def _service(every: Sequence[Scenario], batch: Floats) -> ServiceEstimate:
    """The service over KV budget, batch and γ; scenarios without a budget are alone."""
    budgets = [scenario.plan.kv_budget_tokens for scenario in every]
    known = np.asarray([budget for budget in budgets if budget is not None], float)
    axis = known[:, None, None] if known.size else None
    return service(every[0], batch=batch, gamma=GAMMAS, kv_budget_tokens=axis)


def _shape(every: Sequence[Scenario], result: ServiceEstimate) -> tuple[int, int, int]:
    """The sizes of KV budget, batch and γ."""
    return len(every), result.batch.size, result.decode.gamma.size


def _best(
    every: Sequence[Scenario],
    result: ServiceEstimate,
    plain: ServiceEstimate,
    objective: str,
    limits: SLO,
) -> Iterator[list[Candidate]]:
    """For each scenario, the best (batch, γ) within all limits, within memory, without limits."""
    value = cost_s(result, objective)
    shape = _shape(every, result)
    gain = np.broadcast_to(cost_s(plain, objective) / value, shape)
    unknown = np.all(np.isnan(value))
    cost = np.broadcast_to(result.decode.break_even_alpha if unknown else value, shape)
    in_memory = within(result, SLO(memory_fraction=limits.memory_fraction))
    masks = [
        np.broadcast_to(mask, shape)
        for mask in (within(result, limits, plain), in_memory, np.ones((), bool))
    ]
    for index, scenario in enumerate(every):
        allowed = (mask[index] for mask in masks if np.any(mask[index]))
        places = [_place(np.where(mask, cost[index], np.inf)) for mask in allowed]
        yield [
            _candidate(scenario, result, plain, gain, (index, *place))
            for place in dict.fromkeys(places)
        ]


def evaluated(scenario: Scenario, objective: str) -> Candidate:
    """The scenario's own plan as a candidate."""
    result, plain = service(scenario), service(without_speculation(scenario))
    gain = cost_s(plain, objective) / cost_s(result, objective)
    return _candidate(scenario, result, plain, gain, ())


def _place(cost: Floats) -> tuple[int, int]:
    """The smallest batch, then the smallest γ, on the plateau of the lowest cost."""
    row = int(plateau(np.min(cost, axis=-1)))
    return row, int(plateau(cost[row]))


def _candidate(
    scenario: Scenario,
    result: ServiceEstimate,
    plain: ServiceEstimate,
    gain: Floats,
    place: tuple[int, ...],
) -> Candidate:
    decode, shape = result.decode, np.shape(gain)
    is_slower = result.requests_per_s < plain.requests_per_s

    def at(values: Floats | Bools) -> float:
        return float(np.broadcast_to(values, shape)[place])

    plan = replace(scenario.plan, gamma=int(at(decode.gamma)))
    work = replace(scenario.workload, batch=int(at(result.batch)))
    return Candidate(
        scenario=replace(scenario, plan=plan, workload=work),
        gain=at(gain),
        tpot_s=at(result.tpot_s),
        ttft_s=at(result.ttft_s),
        least_tpot_s=at(np.where(is_slower, plain.tpot_s, 0.0)),
        least_ttft_s=at(np.where(is_slower, plain.ttft_s, 0.0)),
        requests_per_s=at(result.requests_per_s),
        prefill_share=at(result.prefill_share),
        decode_speedup=at(decode.speedup),
        decode_tpot_s=at(decode.tpot_s),
        tokens_per_round=at(decode.tokens_per_round),
        memory_fraction=at(decode.memory.fraction),
        fits=bool(at(result.feasible)),
    )


def _least_alpha(candidates: list[tuple[float, Candidate]], objective: str) -> Iterator[Unmeasured]:
    """For each draft choice, the plan that would break even at the lowest α if it only decoded."""
    best: dict[tuple[str, str], tuple[float, Candidate]] = {}
    for least, candidate in candidates:
        plan = candidate.scenario.plan
        key = (plan.draft, plan.policy)
        if key not in best or least < best[key][0]:
            best[key] = (least, candidate)
    for _, candidate in best.values():
        alpha = break_even_alpha(candidate.scenario, objective=objective)
        yield Unmeasured(candidate=candidate, alpha_to_break_even=alpha)
