"""Which plans a search tries: draft choices, TP, draft TP and KV budgets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from perfmodel import catalog
from perfmodel.acceptance.tokens import Acceptance
from perfmodel.catalog.method_acceptance import method_acceptance
from perfmodel.errors import ConfigError
from perfmodel.scenario import Scenario
from perfmodel.specs.draft import DraftPlan, DraftPolicy
from perfmodel.specs.draft_methods import METHODS
from perfmodel.specs.engine_support import EngineVersion
from perfmodel.specs.labels import Origin
from perfmodel.specs.model import ModelSpec

POLICIES_OF_SELF = (DraftPolicy.STREAMINGLLM, DraftPolicy.SNAPKV)
POLICIES_OF_QUANTISED_SELF = (DraftPolicy.FULL, *POLICIES_OF_SELF)
POLICIES_OF_MODEL = (DraftPolicy.STREAMINGLLM, DraftPolicy.FULL)
POLICIES_OF_METHOD = (DraftPolicy.FULL,)
RUN_NOISE = 0.03  # by which α differs between runs, in the tables to which curves are fitted

Choice = tuple[str, str]  # draft, policy


def draft_choices(scenario: Scenario) -> list[Choice]:
    """Draft choices as (draft, policy).

    Self-speculation, every smaller catalog model with the same tokenizer, and all built-in drafts;
    MTP only if the checkpoint of the target has such a head.
    """
    target = scenario.target
    smaller = catalog.draft_models(target)
    standalone = [(m.name, policy) for m in smaller for policy in POLICIES_OF_MODEL]
    built_in = [(name, "full") for name in METHODS if name != "mtp" or target.mtp_layers]
    return [*(("self", policy) for policy in POLICIES_OF_SELF), *standalone, *built_in]


def stated_choices(terms: Iterable[str], policy: str | None, *, is_quantised: bool) -> list[Choice]:
    """The choices of `self`, `self:snapkv` or a model; without a policy, all that a draft may have.

    Raises `ConfigError` if a term contradicts `policy`, or if a draft is the target itself.
    """
    choices: list[Choice] = []
    of_self = POLICIES_OF_QUANTISED_SELF if is_quantised else POLICIES_OF_SELF
    for term in terms:
        draft, _, in_term = term.partition(":")
        if in_term and policy and in_term != policy:
            raise ConfigError(f"draft={term} and draft_policy={policy} differ; give one of them")
        if draft == "none":
            raise ConfigError("recommend always considers plain decoding; leave out draft none")
        if draft in METHODS:
            defaults: tuple[str, ...] = POLICIES_OF_METHOD
        else:
            defaults = of_self if draft == "self" else POLICIES_OF_MODEL
        stated = in_term or policy
        if draft == "self" and stated == DraftPolicy.FULL and not is_quantised:
            raise ConfigError(
                "a self-draft that reads the whole cache is the target itself and gains nothing; "
                "use policy streamingllm or snapkv, or quantise the draft (draft_dtype)"
            )
        choices += [(draft, stated)] if stated else [(draft, p) for p in defaults]
    return list(dict.fromkeys(choices))


def of_engine(choices: list[Choice], version: EngineVersion | None) -> list[Choice]:
    """Without policies of a draft model that a serving engine does not run, if it runs another."""
    if version is None:
        return choices
    whole = {draft for draft, policy in choices if policy == DraftPolicy.FULL}
    return [
        (draft, policy)
        for draft, policy in choices
        if draft == "self" or draft not in whole or policy == DraftPolicy.FULL
    ]


def variants(
    scenario: Scenario,
    choices: Sequence[Choice],
    tps: Sequence[int],
    draft_tps: Sequence[int],
    budgets: Sequence[int],
    measured_budget: int | None,
) -> Iterator[list[Scenario]]:
    """For each draft choice, TP and draft TP, scenarios that differ only in their KV budget."""
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
                plan = DraftPlan(
                    draft=draft,
                    policy=DraftPolicy.of(policy),
                    gamma=1,
                    kv_budget_tokens=1,
                    draft_tp=draft_tp,
                )
                given = scenario.acceptance if is_same else None
                varied = replace(scenario, draft=spec, plan=plan, tp=tp, acceptance=given)
                yield from _over_budgets(varied, allowed, measured_budget)


def _over_budgets(
    scenario: Scenario, budgets: Sequence[int | None], measured_budget: int | None
) -> Iterator[list[Scenario]]:
    """The scenario at each budget, in one list if all have the same acceptance."""
    plans = (replace(scenario.plan, kv_budget_tokens=budget) for budget in budgets)
    every = [replace(scenario, plan=plan) for plan in plans]
    if scenario.acceptance is None or measured_budget is None or None in budgets:
        yield from [every] if every else []
        return
    scaled = [replace(one, acceptance=scaled_acceptance(one, measured_budget)) for one in every]
    accepting = [one for one in scaled if one.acceptance and one.acceptance.high > 0.0]
    if scaled and not accepting:
        raise ConfigError(
            f"the acceptance of {scenario.acceptance.alpha:g} at budget {measured_budget:,} is "
            f"carried to 0 at every budget that is compared; state it at one of these (kv_budget)"
        )
    yield from ([one] for one in accepting)


def scaled_acceptance(scenario: Scenario, measured_budget: int) -> Acceptance:
    """The given acceptance at the scenario's KV budget, if it was measured at another one.

    The loss 1 - α scales as that of the draft's acceptance curve. Its 90 % interval widens with the
    distance of the budgets as the curve's does, and its origin is "extrapolated". Raises
    `ConfigError` if there is no curve, or if its loss at the measured budget is within `RUN_NOISE`,
    so that the given α does not determine the loss at others.
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
    if losses[1] < RUN_NOISE:
        raise ConfigError(
            f"at acceptance_budget={measured_budget} of {context} tokens, the loss on the curve of "
            f"{plan.draft}:{plan.policy} is {losses[1]:.2g}, less than the {RUN_NOISE:g} by which "
            f"runs differ, so {given.alpha:g} there does not determine the acceptance at other "
            f"budgets; state one measured at a smaller budget"
        )
    factor = losses[0] / losses[1]
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
) -> Iterator[list[Scenario]]:
    """A list of one scenario per TP of a built-in draft."""
    method = METHODS[name]
    plan = DraftPlan(draft=name, policy=DraftPolicy.of(policy), gamma=1)
    given = scenario.acceptance if scenario.plan.draft == name else None
    acceptance = given or method_acceptance(scenario.target.name, name, scenario.target.variant)
    spec = method.spec(scenario.target) if method.spec else None
    for tp in tps:
        yield [replace(scenario, draft=spec, plan=plan, tp=tp, acceptance=acceptance)]


def _draft_tps(spec: ModelSpec, draft: str, tp: int, draft_tps: Sequence[int]) -> list[int | None]:
    if draft == "self":
        return [None]
    return [n for n in draft_tps if n <= tp and spec.splits_over(n)]
