"""From flat scenario values to a recommendation, searching over values that are not given.

The keys are those of `ScenarioInput`; those in `SEVERAL` may have several values. A
draft may include a policy, as in `self:snapkv`; otherwise all its policies are compared. By default
the search tries self-speculation, every smaller model with the target's tokenizer, and all built-in
drafts, at every power of two of TP that splits the target on one node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from perfmodel.acceptance import Acceptance, tokens_per_round
from perfmodel.errors import ConfigError, either, shown
from perfmodel.planning.capacity import BATCH_STEP, at_capacity
from perfmodel.planning.recommend import recommend
from perfmodel.planning.recommendation import Recommendation
from perfmodel.planning.search import BUDGETS, joined, search
from perfmodel.planning.variants import Choice, draft_choices, of_engine, stated_choices
from perfmodel.scenario import Scenario
from perfmodel.scenario_input import ACCEPTANCE_KEYS, OBSERVED_KEYS, ScenarioInput, parse_scenario
from perfmodel.specs.draft import DraftPolicy
from perfmodel.specs.draft_methods import METHODS
from perfmodel.specs.engine_support import (
    MOST_MEMORY_SHARE,
    EngineVersion,
    cut_block,
    named_version,
    profile_version,
)
from perfmodel.specs.workload import SLO, check_decodes, parse_slo

SEARCHED = ("tp", "draft", "draft_policy", "draft_tp", "kv_budget", "gamma")
# Concurrent requests that are compared if only a rate is given, in steps of a quarter or less.
CONCURRENCIES = sorted({round(BATCH_STEP**k) for k in range(31)})
_NOT_PLAIN = (*SEARCHED, "ep", "dp", "draft_dtype", "draft_kv_dtype", *ACCEPTANCE_KEYS)
SEVERAL = ("tp", "ep", "draft", "kv_budget")  # keys that may have several values


def find_plan(
    values: Mapping[str, Any],
    *,
    objective: str = "throughput",
    rate: float | None = None,
    price_per_hour: float | None = None,
    acceptance_budget: int | str | None = None,
    runs_on: str = "",
) -> Recommendation:
    """The best draft, TP, KV budget and γ for a scenario.

    Raises `ConfigError` if the values are not valid for a search. Raises `NoFeasiblePlan` if no
    plan meets the limits.

    Parameters
    ----------
    values : mapping
        Flat scenario values; those in `SEVERAL` may be lists or comma-separated text.
        An acceptance may only be given for a single draft choice.
    objective : str
        "throughput" or "latency", see `search`.
    rate : float, optional
        Requests per second to serve, up to 1e6. A batch is the most requests at once of a replica;
        without one, it is searched too. [1/s]
    price_per_hour : float, optional
        Price of a GPU hour, in any currency.
    acceptance_budget : int or str, optional
        KV budget at which a given acceptance was measured: tokens, or a share such as "5%" of the
        context.
    runs_on : str
        A serving engine or its version, such as "vllm" or "vllm-0.23", that must run the plan;
        by default the one that the engine profile names, if any. Times are those of its profile
        if no other engine is given.
    """
    version = None if runs_on in ("", None) else named_version(runs_on)
    given = _given(values, version)
    if "gamma" in given and not any(key in given for key in OBSERVED_KEYS):
        raise ConfigError("recommend chooses gamma; use predict or sweep for a given gamma")
    plain = parse_scenario({key: v for key, v in given.items() if key not in _NOT_PLAIN})
    check_decodes(plain.output_tokens)
    named = _choices(given)
    choices = draft_choices(plain.scenario()) if named is None else named
    if any(
        key in given for key in ACCEPTANCE_KEYS
    ):  # for one choice, so not for plans in principle
        choices = of_engine(choices, version or profile_version(plain.scenario().engine.name))
    _check_single_choice(given, choices)
    _check_curves(plain.scenario(), choices)
    for name, value, most in (("rate", rate, 1e6), ("price_per_hour", price_per_hour, 1e300)):
        number = isinstance(value, Real) and not isinstance(value, bool)
        if value is not None and not (number and 0.0 < value <= most):
            raise ConfigError(f"{name}={shown(value)} must be a positive number up to {most:g}")
    _check_draft_tp(given, plain, choices)
    budgets = _budgets(given, plain.prompt_tokens, choices)
    measured = _measured_budget(acceptance_budget, plain.prompt_tokens)
    _check_acceptance_budget(given, plain, choices, budgets, measured)
    draft_tp = parse_scenario({"draft_tp": given.get("draft_tp")}).draft_tp
    batches = CONCURRENCIES if rate is not None and "batch" not in given else None
    searches = [
        search(
            _base(given | {"ep": ep}, choices, degrees[-1]),
            objective=objective,
            slo=_limits(plain, version),
            choices=choices,
            tps=degrees,
            batches=batches,
            measured_budget=measured,
            runs_on=version,
            **({} if draft_tp is None else {"draft_tps": [draft_tp]}),
            **budgets,
        )
        for ep, degrees in _layouts(given, plain)
    ]
    result = joined(searches)
    if batches:
        result = at_capacity(result)
    elif rate is not None:
        result = replace(result, most_requests=plain.batch)
    return recommend(result, rate=rate, price_per_hour=price_per_hour)


def plain_scenarios(values: Mapping[str, Any], *, runs_on: str = "") -> list[Scenario]:
    """Plain decoding at each TP and EP that `find_plan` searches, fewest GPUs first."""
    given = _given(values, None if runs_on == "" else named_version(runs_on))
    plain = parse_scenario({key: v for key, v in given.items() if key not in _NOT_PLAIN})
    layouts = sorted((tp, ep) for ep, degrees in _layouts(given, plain) for tp in degrees)
    return [replace(plain.scenario(), tp=tp, ep=ep) for tp, ep in layouts]


def _given(values: Mapping[str, Any], version: EngineVersion | None) -> dict[str, Any]:
    """The values that are given, with the profile of the version if no engine is."""
    given = {key: value for key, value in values.items() if value is not None and value != ""}
    return given if version is None else {"engine": version.profile} | given


def _limits(plain: ScenarioInput, version: EngineVersion | None) -> SLO:
    """The limits, including the memory of an engine whose profile is not the scenario's."""
    limits = parse_slo(plain.slo)
    if version is None or plain.scenario().memory_share < 1.0:
        return limits
    return replace(limits, memory_fraction=min(limits.memory_fraction or 1.0, MOST_MEMORY_SHARE))


def _several(values: Mapping[str, Any], key: str) -> list[Any]:
    """The distinct values of a key, in their order."""
    value = values[key]
    if isinstance(value, str):
        value = [term.strip() for term in value.split(",") if term.strip()]
    listed = list(dict.fromkeys(value)) if isinstance(value, Sequence | range) else [value]
    if not listed:
        raise ConfigError(f"{key} is empty; give a value or leave it out")
    return listed


def _counts(values: Mapping[str, Any], key: str) -> list[int]:
    return [getattr(parse_scenario({key: value}), key) for value in _several(values, key)]


def _choices(values: Mapping[str, Any]) -> list[Choice] | None:
    """(draft, policy) pairs from `self`, `self:snapkv` or a model; None if no draft was given."""
    policy = values.get("draft_policy")
    if "draft" not in values:
        if policy is not None:
            raise ConfigError("draft_policy needs a draft; add --draft self, for example")
        return None
    is_quantised = "draft_dtype" in values or "draft_kv_dtype" in values
    return stated_choices(map(str, _several(values, "draft")), policy, is_quantised=is_quantised)


def _check_single_choice(values: Mapping[str, Any], choices: list[Choice]) -> None:
    """Refuse an acceptance, or a draft's TP, if several draft choices are compared."""
    if len(choices) == 1:
        return
    first = [f"{draft}:{policy}" for draft, policy in choices[:3]]
    more = f" and {len(choices) - 3} more" if len(choices) > 3 else ""
    named = ", ".join(first) + more
    for key in ACCEPTANCE_KEYS:
        if key in values:
            raise ConfigError(
                f"{key} applies to one draft choice, but {len(choices)} are compared ({named}); "
                f"select one with --draft and --draft-policy"
            )
    if "draft_tp" in values and len({draft for draft, _ in choices}) > 1:
        raise ConfigError(
            f"draft_tp applies to one draft, but several are compared ({named}); select one"
        )


def _check_draft_tp(values: Mapping[str, Any], plain: ScenarioInput, choices: list[Choice]) -> None:
    """Refuse a draft's TP that is not one of the target's, if no draft is a model."""
    stated = parse_scenario({"draft_tp": values.get("draft_tp")}).draft_tp
    if stated is None or any(draft not in ("self", *METHODS) for draft, _ in choices):
        return
    if stated not in _tps(dict(values), plain):
        raise ConfigError(
            f"draft_tp={stated} has no effect on drafts that run on the target's ranks; leave "
            f"draft_tp out"
        )


def _check_curves(scenario: Scenario, choices: list[Choice]) -> None:
    """Refuse acceptance curves that are for none of the draft choices."""
    curves = dict.fromkeys((c.draft, c.draft_policy) for c in scenario.user_curves)
    if curves and not curves.keys() & {
        ("self" if draft == scenario.target.name else draft, policy) for draft, policy in choices
    }:
        listed = either(f"{draft}:{policy}" for draft, policy in curves)
        raise ConfigError(
            f"acceptance_curve has no effect: its curves are for {listed}, which is not searched; "
            f"add --draft {listed.split(' ')[0].rstrip(',')}, or leave it out"
        )


def _measured_budget(budget: int | str | None, prompt_tokens: int) -> int | None:
    """The budget at which an acceptance was measured. [tokens]"""
    if budget is None:
        return None
    try:
        tokens = parse_scenario({"kv_budget": budget}).budget_tokens(prompt_tokens)
    except ConfigError as error:
        raise ConfigError(str(error).replace("kv_budget", "acceptance_budget")) from error
    if tokens > prompt_tokens:
        raise ConfigError(
            f"acceptance_budget={tokens} exceeds the context of {prompt_tokens} tokens; state the "
            f"budget at which the acceptance was measured"
        )
    return tokens


def _check_acceptance_budget(
    values: Mapping[str, Any],
    plain: ScenarioInput,
    choices: list[Choice],
    budgets: Mapping[str, list[int]],
    measured: int | None,
) -> None:
    """Refuse an acceptance at an unknown KV budget if several budgets are compared."""
    given = [key for key in ACCEPTANCE_KEYS if key in values]
    if measured is not None and (not given or choices[0][1] == DraftPolicy.FULL):
        raise ConfigError(
            "acceptance_budget needs a given acceptance and a draft with a KV budget; leave it out"
        )
    several = len(budgets.get("budgets", BUDGETS)) > 1 and choices[0][1] != DraftPolicy.FULL
    if given and several and measured is None:
        ep, degrees = _layouts(values, plain)[0]
        remedy = "state the budget at which it was measured (acceptance_budget), or one kv_budget"
        if _base({**values, "ep": ep}, choices, degrees[-1]).curve is None:  # to carry it along
            remedy = "state the one at which it was measured (kv_budget)"
        raise ConfigError(
            f"{given[0]} falls with the KV budget, and several budgets are compared; {remedy}"
        )


def _base(values: Mapping[str, Any], choices: list[Choice], tp: int) -> Scenario:
    """The scenario that the search varies, with draft and acceptance if there is one choice."""
    fixed = {key: value for key, value in values.items() if key not in SEARCHED}
    if len({draft for draft, _ in choices}) == 1:
        draft, policy = choices[0]
        budget = None if policy == DraftPolicy.FULL or draft in METHODS else 1
        fixed |= {"draft": draft, "draft_policy": policy, "kv_budget": budget}
        fixed["draft_tp"] = None if draft == "self" else values.get("draft_tp")
    observed = [key for key in OBSERVED_KEYS if key in values]
    if observed:
        if "gamma" not in values:
            raise ConfigError(
                f"{observed[0]} needs the gamma at which it was measured; add --gamma"
            )
        fixed["gamma"] = values["gamma"]
    scenario = parse_scenario(fixed | {"tp": tp}).scenario()
    return _for_any_gamma(scenario) if observed else scenario


def _for_any_gamma(scenario: Scenario) -> Scenario:
    """The scenario with an interval of its α, which follows from the mean at one γ."""
    given, gamma = scenario.acceptance, scenario.plan.gamma
    assert given is not None
    tokens = float(tokens_per_round(given, gamma))
    mean = Acceptance.from_mean(tokens, gamma, origin=given.origin, source=f"mean at γ={gamma}")
    return replace(scenario, acceptance=mean)


def _layouts(values: Mapping[str, Any], plain: ScenarioInput) -> list[tuple[int, list[int]]]:
    """Each EP with its TP degrees; of several, only those that fit each other."""
    dp = parse_scenario({"dp": values.get("dp")}).dp
    if dp > 1:  # all GPUs divide the experts
        tps = _tps({k: v for k, v in values.items() if k != "ep"}, plain)
        return [(tp, [tp]) for tp in tps if tp % dp == 0] or [(tps[-1], tps[-1:])]
    eps = _counts(values, "ep") if "ep" in values else [1]
    if len(eps) == 1:
        return [(eps[0], _tps(values, plain))]
    experts, layouts = plain.scenario().target.experts, []
    for ep in eps:
        tps = _tps({**values, "ep": ep}, plain)
        if fitting := [n for n in tps if experts is not None and experts.splits_over(n, ep)]:
            layouts.append((ep, fitting))
    if not layouts:  # the first combination states why
        replace(plain.scenario(), tp=_tps({**values, "ep": eps[0]}, plain)[-1], ep=eps[-1])
    return layouts


def _tps(values: Mapping[str, Any], plain: ScenarioInput) -> list[int]:
    """The given TP degrees, or every power of two that splits the target on one node."""
    scenario = plain.scenario()
    if "tp" in values:
        stated = _counts(values, "tp")
        for tp in stated:
            scenario.target.check_tp(tp)
            scenario.machine.check_tp(tp)
        return sorted(stated)
    least = parse_scenario({"draft_tp": values.get("draft_tp")}).draft_tp or 1
    most = scenario.machine.gpus_per_node
    target, types = scenario.target, scenario.target_types
    degrees = [n for n in (1, 2, 4, 8, 16) if least <= n <= most and target.splits_over(n)]
    ep = parse_scenario({"ep": values.get("ep")}).ep
    if (experts := target.experts) is not None:
        degrees = [n for n in degrees if experts.splits_over(n, ep)] or [most]
    degrees = [n for n in degrees if cut_block(target, types, tp=n, ep=ep) is None] or degrees
    if not degrees:
        raise ConfigError(
            f"draft_tp={least} exceeds the {most} GPUs of {scenario.machine.name}; "
            f"use a smaller draft_tp"
        )
    return degrees


def _budgets(
    values: Mapping[str, Any], prompt_tokens: int, choices: list[Choice]
) -> dict[str, list[int]]:
    """The given budgets; empty if none were given, so that the search uses its defaults."""
    if "kv_budget" not in values:
        return {}
    if all(policy == DraftPolicy.FULL for _, policy in choices):
        raise ConfigError("kv_budget has no effect with draft policy full; leave it out")
    stated = [parse_scenario({"kv_budget": value}) for value in _several(values, "kv_budget")]
    budgets = [one.budget_tokens(prompt_tokens) for one in stated]
    if max(budgets) > prompt_tokens:
        raise ConfigError(
            f"kv_budget={max(budgets)} exceeds the context of {prompt_tokens} tokens; "
            f"use a smaller budget"
        )
    if min(budgets) == prompt_tokens and all(draft == "self" for draft, _ in choices):
        raise ConfigError(
            f"with kv_budget={prompt_tokens} a self-draft reads the whole cache and gains nothing; "
            f"use a smaller budget"
        )
    return {"budgets": budgets}
