"""`search`: rank every draft choice, γ, KV budget and TP of a scenario under an SLO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from perfmodel import catalog
from perfmodel._typing import Floats
from perfmodel.catalog.method_acceptance import method_acceptance
from perfmodel.display import number_range, one_line
from perfmodel.errors import ConfigError, either
from perfmodel.scenario import Scenario
from perfmodel.specs.draft import DraftPlan, DraftPolicy
from perfmodel.specs.draft_methods import METHODS
from perfmodel.specs.model import ModelSpec
from perfmodel.specs.workload import SLO
from perfmodel.speculation.break_even import GAMMAS
from perfmodel.speculation.round import RoundEstimate, estimate, without_speculation
from perfmodel.units import format_seconds

BUDGETS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
OBJECTIVES = ("throughput", "latency")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One evaluated plan; `speedup` is relative to plain decoding at the same TP."""

    scenario: Scenario
    speedup: float
    tpot_s: float
    ttft_s: float
    tokens_per_round: float
    break_even_alpha: float
    memory_fraction: float
    fits: bool

    def __repr__(self) -> str:
        values = {
            "plan": repr(self.label),
            "tp": self.scenario.tp,
            "speedup": number_range(self.speedup),
            "tpot": format_seconds(self.tpot_s),
        }
        return one_line("Candidate", values)

    @property
    def throughput_per_gpu(self) -> float:
        """Tokens per second of the whole batch, per GPU of the target."""
        return self.scenario.workload.batch / self.tpot_s / self.scenario.tp

    @property
    def label(self) -> str:
        """The plan in words: "Self-speculation, StreamingLLM 512, γ=4"."""
        return plan_label(self.scenario.plan)

    def violation(self, slo: SLO) -> dict[str, float]:
        """Value over limit, for every limit that is exceeded, including memory capacity."""
        ratios = {"memory": self.memory_fraction / min(slo.memory_fraction or 1.0, 1.0)}
        if slo.tpot_s is not None:
            ratios["tpot"] = self.tpot_s / slo.tpot_s
        if slo.ttft_s is not None:
            ratios["ttft"] = self.ttft_s / slo.ttft_s
        return {name: ratio for name, ratio in ratios.items() if ratio > 1.0}


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
    # For each draft choice, TP and budget: the best γ within the memory limit, and the best γ.
    candidates: tuple[Candidate, ...]
    unmeasured: tuple[Unmeasured, ...]

    def ranked(self) -> list[Candidate]:
        """Candidates within the limits, best first."""
        return sorted((c for c in self.candidates if not c.violation(self.slo)), key=self.cost)

    def cost(self, candidate: Candidate) -> float:
        """The quantity to minimise: GPU seconds per token, or seconds per token."""
        if self.objective == "latency":
            return candidate.tpot_s
        return 1.0 / candidate.throughput_per_gpu


def plan_label(plan: DraftPlan) -> str:
    """A draft plan in words."""
    if not plan.speculates:
        return "No speculation"
    if plan.method is not None:
        return f"{plan.method.label}, γ={plan.gamma}"
    who = "Self-speculation" if plan.is_self else f"Draft {plan.draft}"
    policy = {"full": "full cache", "streamingllm": "StreamingLLM", "snapkv": "SnapKV"}[plan.policy]
    budget = plan.budget_text and f" {plan.budget_text}"
    return f"{who}, {policy}{budget}, γ={plan.gamma}"


def search(
    scenario: Scenario,
    *,
    objective: str = "throughput",
    slo: SLO | None = None,
    choices: Sequence[tuple[str, str]] | None = None,
    tps: Sequence[int] | None = None,
    draft_tps: Sequence[int] = (1, 2, 4, 8, 16),
    budgets: Sequence[int] = BUDGETS,
) -> Search:
    """Evaluate every draft choice, budget, γ from 1 to 16, and TP of a scenario.

    Parameters
    ----------
    scenario : Scenario
        Machine, target, workload and engine; an acceptance applies only to the scenario's draft
        and policy.
    objective : str
        "throughput" (tokens/s per GPU at the given batch) or "latency" (TPOT).
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
    """
    if objective not in OBJECTIVES:
        raise ConfigError(f"unknown objective {objective!r}; use {either(OBJECTIVES)}")
    degrees, limits = tps or [scenario.tp], slo or SLO()
    for tp in degrees:
        scenario.target.check_tp(tp)
    chosen = choices if choices is not None else draft_choices(scenario)
    measured = [_plain(scenario, tp) for tp in degrees]
    unmeasured: list[Candidate] = []
    for variant in _variants(scenario, chosen, degrees, draft_tps, budgets):
        known, best = _evaluate(variant, limit=min(limits.memory_fraction or 1.0, 1.0))
        (measured if known else unmeasured).extend(best)
    return Search(
        objective=objective,
        slo=limits,
        candidates=tuple(measured),
        unmeasured=tuple(_least_alpha(unmeasured)),
    )


def draft_choices(scenario: Scenario) -> list[tuple[str, str]]:
    """Draft choices as (draft, policy).

    Self-speculation, every smaller catalog model with the same tokenizer, and the built-in drafts
    whose host costs the engine profile states.
    """
    target = scenario.target
    models = [catalog.model(name) for name in catalog.model_names()]
    smaller = [
        m.name
        for m in models
        if m.tokenizer and m.tokenizer == target.tokenizer and 3 * m.parameters < target.parameters
    ]
    standalone = [(name, policy) for name in smaller for policy in ("streamingllm", "full")]
    built_in = [(c.method, "full") for c in scenario.engine.host if c.method in METHODS]
    return [("self", "streamingllm"), ("self", "snapkv"), *standalone, *built_in]


def _variants(
    scenario: Scenario,
    choices: Sequence[tuple[str, str]],
    tps: Sequence[int],
    draft_tps: Sequence[int],
    budgets: Sequence[int],
) -> Iterator[Scenario]:
    """One scenario per draft choice, TP, draft TP and budget; γ is an array in `estimate`."""
    context = scenario.workload.prompt_tokens
    for named, policy in choices:
        if named in METHODS:
            yield from _method_variants(scenario, named, policy, tps)
            continue
        spec = scenario.target if named == "self" else catalog.model(named)
        draft = "self" if spec.name == scenario.target.name else spec.name
        is_same = (draft, policy) == (scenario.plan.draft, scenario.plan.policy)
        given = scenario.acceptance if is_same else None
        fitting: list[int | None] = [b for b in budgets if b <= context]
        for tp in tps:
            for draft_tp in _draft_tps(spec, draft, tp, draft_tps):
                for budget in [None] if policy == "full" else fitting:
                    plan = DraftPlan(
                        draft=draft,
                        policy=DraftPolicy.of(policy),
                        gamma=1,
                        kv_budget_tokens=budget,
                        draft_tp=draft_tp,
                    )
                    yield replace(scenario, draft=spec, plan=plan, tp=tp, acceptance=given)


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


def _evaluate(scenario: Scenario, *, limit: float) -> tuple[bool, list[Candidate]]:
    """Whether acceptance is known, and the best γ with and without the memory limit."""
    known = scenario.acceptance is not None or scenario.curve is not None
    point = estimate(scenario, gamma=GAMMAS)
    cost = point.tpot_s if known else point.break_even_alpha
    fits = np.broadcast_to(point.memory.fraction <= limit, np.shape(cost))
    within = int(np.argmin(np.where(fits, cost, np.inf))) if np.any(fits) else None
    best = dict.fromkeys(i for i in (within, int(np.argmin(cost))) if i is not None)
    return known, [_candidate(point, index) for index in best]


def _candidate(point: RoundEstimate, index: int) -> Candidate:
    def at(values: Floats) -> float:
        return float(np.broadcast_to(values, np.shape(point.gamma))[index])

    gamma = int(point.gamma[index])
    plan = replace(point.scenario.plan, gamma=gamma)
    return Candidate(
        scenario=replace(point.scenario, plan=plan),
        speedup=at(point.speedup),
        tpot_s=at(point.tpot_s),
        ttft_s=at(point.ttft_s),
        tokens_per_round=at(point.tokens_per_round),
        break_even_alpha=at(point.break_even_alpha),
        memory_fraction=at(point.memory.fraction),
        fits=bool(np.broadcast_to(point.memory.fits, np.shape(point.gamma))[index]),
    )


def _plain(scenario: Scenario, tp: int) -> Candidate:
    plain = replace(without_speculation(scenario), tp=tp)
    return _candidate(estimate(plain, gamma=np.zeros(1)), 0)


def _least_alpha(candidates: list[Candidate]) -> list[Unmeasured]:
    """For each draft choice, the plan that breaks even at the lowest α."""
    best: dict[tuple[str, str], Candidate] = {}
    for candidate in candidates:
        plan = candidate.scenario.plan
        key, alpha = (plan.draft, plan.policy), candidate.break_even_alpha
        lowest = best[key].break_even_alpha if key in best else np.inf
        if candidate.fits and alpha < lowest:
            best[key] = candidate
    return [Unmeasured(candidate=c, alpha_to_break_even=c.break_even_alpha) for c in best.values()]
