"""`search`: rank every draft choice, γ, KV budget and TP of a service under an SLO."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from perfmodel import catalog
from perfmodel._typing import Bools, Floats
from perfmodel.acceptance.tokens import Acceptance
from perfmodel.catalog.method_acceptance import method_acceptance
from perfmodel.errors import ConfigError, either
from perfmodel.planning.candidate import Candidate
from perfmodel.scenario import Scenario
from perfmodel.specs.draft import DraftPlan, DraftPolicy
from perfmodel.specs.draft_methods import METHODS
from perfmodel.specs.engine_support import EngineVersion, profile_version
from perfmodel.specs.labels import Origin
from perfmodel.specs.model import ModelSpec
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
    plain = {tp: _plain_service(scenario, tp, batch) for tp in degrees}
    measured: list[Candidate] = []
    not_runnable: list[Candidate] = []
    for tp in degrees:
        reason = replace(without_speculation(scenario), tp=tp).obstacle_on(version)
        best = _best(plain[tp], plain[tp], objective, limits)
        (not_runnable if reason else measured).extend(best)
    if not measured and reason:
        raise ConfigError(reason)
    unmeasured: list[tuple[float, Candidate]] = []
    for variant in _variants(scenario, chosen, degrees, draft_tps, budgets, measured_budget):
        is_measured = variant.acceptance is not None or variant.curve is not None
        is_runnable = variant.obstacle_on(version) is None
        if not (is_measured or is_runnable):
            continue
        result = service(variant, batch=batch, gamma=GAMMAS)
        best = _best(result, plain[variant.tp], objective, limits)
        if is_measured:
            (measured if is_runnable else not_runnable).extend(best)
        else:
            least = float(np.min(result.decode.break_even_alpha))
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


def draft_choices(scenario: Scenario) -> list[tuple[str, str]]:
    """Draft choices as (draft, policy).

    Self-speculation, every smaller catalog model with the same tokenizer, and all built-in drafts;
    MTP only if the checkpoint of the target has such a head.
    """
    target = scenario.target
    models = [catalog.model(name) for name in catalog.model_names()]
    smaller = [
        m.name
        for m in models
        if m.tokenizer and m.tokenizer == target.tokenizer and 3 * m.parameters < target.parameters
    ]
    standalone = [(name, policy) for name in smaller for policy in ("streamingllm", "full")]
    built_in = [(name, "full") for name in METHODS if name != "mtp" or target.mtp_layers]
    return [("self", "streamingllm"), ("self", "snapkv"), *standalone, *built_in]


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


def _variants(
    scenario: Scenario,
    choices: Sequence[tuple[str, str]],
    tps: Sequence[int],
    draft_tps: Sequence[int],
    budgets: Sequence[int],
    measured_budget: int | None,
) -> Iterator[Scenario]:
    """One scenario per draft choice, TP, draft TP and budget; γ is an array in `service`."""
    context = scenario.workload.prompt_tokens
    for named, policy in choices:
        if named in METHODS:
            yield from _method_variants(scenario, named, policy, tps)
            continue
        spec = scenario.target if named == "self" else catalog.model(named)
        draft = "self" if spec.name == scenario.target.name else spec.name
        # A self-draft that reads its target's whole cache in the same types is the target.
        is_target = draft == "self" and scenario.draft_types == scenario.target_types
        most = context - 1 if is_target else context
        allowed: list[int | None] = [b for b in budgets if b <= most]
        if policy == DraftPolicy.FULL:
            allowed = [] if is_target else [None]
        is_same = (draft, policy) == (scenario.plan.draft, scenario.plan.policy)
        for tp in tps:
            for draft_tp in _draft_tps(spec, draft, tp, draft_tps):
                for budget in allowed:
                    plan = DraftPlan(
                        draft=draft,
                        policy=DraftPolicy.of(policy),
                        gamma=1,
                        kv_budget_tokens=budget,
                        draft_tp=draft_tp,
                    )
                    given = scenario.acceptance if is_same else None
                    varied = replace(scenario, draft=spec, plan=plan, tp=tp, acceptance=given)
                    if given is not None and budget is not None and measured_budget is not None:
                        at_budget = scaled_acceptance(varied, measured_budget)
                        varied = replace(varied, acceptance=at_budget)
                    yield varied


def scaled_acceptance(scenario: Scenario, measured_budget: int) -> Acceptance:
    """The given acceptance at the scenario's KV budget, if it was measured at another one.

    The loss 1 - α scales as that of the draft's acceptance curve. Its 90 % interval widens with the
    distance of the budgets as the curve's does, and its origin is "extrapolated". Raises
    `ConfigError` if there is no curve.
    """
    given, curve, plan = scenario.acceptance, scenario.curve, scenario.plan
    assert given is not None and plan.kv_budget_tokens is not None
    if plan.kv_budget_tokens == measured_budget:
        return given
    if curve is None:
        raise ConfigError(
            f"the acceptance of {plan.draft} with {plan.policy} was not measured over the KV "
            f"budget; search only the measured budget with --kv-budget {measured_budget}"
        )
    context = scenario.workload.prompt_tokens
    losses = [
        1.0 - float(curve.alpha(kv_budget_tokens=min(b, context), context_tokens=context))
        for b in (plan.kv_budget_tokens, measured_budget)
    ]
    factor = losses[0] / losses[1] if losses[1] > 0.0 else 1.0
    distance = abs(math.log(plan.kv_budget_tokens / measured_budget))
    spread = math.exp(1.645 * curve.sigma_budget * distance)
    alpha, low, high = (
        max(0.0, 1.0 - (1.0 - value) * factor * wider)
        for value, wider in ((given.alpha, 1.0), (given.low, spread), (given.high, 1.0 / spread))
    )
    source = curve.source.split(",")[0]
    lender = "" if curve.origin == Origin.FITTED else f" {source}"
    if lender and not source.startswith("borrowed"):
        lender = f" of {source}"
    return Acceptance.from_alpha(
        alpha,
        low=low,
        high=high,
        origin=Origin.EXTRAPOLATED,
        source=f"{given.alpha:g} given for budget {measured_budget:,}, carried to "
        f"{plan.kv_budget_tokens:,} along the curve{lender}",
    )


def _method_variants(
    scenario: Scenario, name: str, policy: str, tps: Sequence[int]
) -> Iterator[Scenario]:
    """One scenario per TP of a built-in draft."""
    method = METHODS[name]
    plan = DraftPlan(draft=name, policy=DraftPolicy.of(policy), gamma=1)
    given = scenario.acceptance if scenario.plan.draft == name else None
    acceptance = given or method_acceptance(scenario.target.name, name)
    spec = method.spec(scenario.target) if method.spec else None
    for tp in tps:
        yield replace(scenario, draft=spec, plan=plan, tp=tp, acceptance=acceptance)


def _draft_tps(spec: ModelSpec, draft: str, tp: int, draft_tps: Sequence[int]) -> list[int | None]:
    if draft == "self":
        return [None]
    return [n for n in draft_tps if n <= tp and spec.splits_over(n)]


def _plain_service(scenario: Scenario, tp: int, batch: Floats) -> ServiceEstimate:
    plain = replace(without_speculation(scenario), tp=tp)
    return service(plain, batch=batch, gamma=np.zeros(1))


def _best(
    result: ServiceEstimate, plain: ServiceEstimate, objective: str, limits: SLO
) -> list[Candidate]:
    """The best (batch, γ) within all limits, within memory, and without limits."""
    cost = cost_s(result, objective)
    gain = cost_s(plain, objective) / cost
    if np.all(np.isnan(cost)):
        cost = np.asarray(result.decode.break_even_alpha)
    in_memory = within(result, SLO(memory_fraction=limits.memory_fraction))
    masks = (within(result, limits), in_memory, np.ones(cost.shape, bool))
    places = [_place(np.where(mask, cost, np.inf)) for mask in masks if np.any(mask)]
    return [_candidate(result, gain, place) for place in dict.fromkeys(places)]


def evaluated(scenario: Scenario, objective: str) -> Candidate:
    """The scenario's own plan as a candidate."""
    result, plain = service(scenario), service(without_speculation(scenario))
    return _candidate(result, cost_s(plain, objective) / cost_s(result, objective), ())


def _place(cost: Floats) -> tuple[int, int]:
    """The smallest batch, then the smallest γ, on the plateau of the lowest cost."""
    row = int(plateau(np.min(cost, axis=-1)))
    return row, int(plateau(cost[row]))


def _candidate(result: ServiceEstimate, gain: Floats, place: tuple[int, ...]) -> Candidate:
    decode, shape = result.decode, np.shape(gain)

    def at(values: Floats | Bools) -> float:
        return float(np.broadcast_to(values, shape)[place])

    plan = replace(decode.scenario.plan, gamma=int(at(decode.gamma)))
    work = replace(decode.scenario.workload, batch=int(at(result.batch)))
    return Candidate(
        scenario=replace(decode.scenario, plan=plan, workload=work),
        gain=at(gain),
        tpot_s=at(result.tpot_s),
        ttft_s=at(result.ttft_s),
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
