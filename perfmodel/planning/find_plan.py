"""From flat scenario values to a recommendation: what the values leave open is searched.

The vocabulary is `ScenarioInput`'s, in which `tp`, `draft` and `kv_budget` may hold several values.
A draft choice is one word, `draft:policy`, such as `self:snapkv`; without a policy all policies of
that draft are compared. Without a draft: self-speculation and every smaller model of the target's
tokenizer. Without a TP: every power of two that splits the target on one node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from perfmodel.errors import ConfigError
from perfmodel.planning.recommend import Recommendation, recommend
from perfmodel.planning.search import draft_choices, search
from perfmodel.scenario import Scenario
from perfmodel.scenario_input import ACCEPTANCE_KEYS, OBSERVED_KEYS, ScenarioInput, parse_scenario
from perfmodel.specs.workload import parse_slo

POLICIES_OF_SELF = ("streamingllm", "snapkv")
POLICIES_OF_MODEL = ("streamingllm", "full")
SEARCHED = ("tp", "draft", "draft_policy", "draft_tp", "kv_budget", "gamma")
SEVERAL = ("tp", "draft", "kv_budget")  # these may hold more than one value

Choice = tuple[str, str]  # draft, policy


def find_plan(values: Mapping[str, Any], *, objective: str = "throughput") -> Recommendation:
    """The best plan for a scenario whose draft, TP, KV budget and γ are open.

    Parameters
    ----------
    values : mapping
        Flat scenario values; `tp`, `draft` and `kv_budget` also as lists or as comma-separated
        text. A given acceptance holds for one draft choice, which must then be named.
    objective : str
        "throughput" or "latency", as `recommend` has it.

    Raises
    ------
    ConfigError, NoFeasiblePlan
        For values that a search cannot honour; if nothing meets the limits.
    """
    given = {key: value for key, value in values.items() if value is not None and value != ""}
    if "gamma" in given and not any(key in given for key in OBSERVED_KEYS):
        raise ConfigError("recommend chooses gamma itself; use predict or sweep for a given one")
    plain = parse_scenario(
        {key: v for key, v in given.items() if key not in SEARCHED + ACCEPTANCE_KEYS}
    )
    named = _choices(given)
    choices = draft_choices(plain.scenario()) if named is None else named
    _check_single_choice(given, choices)
    degrees = _tps(given, plain)
    candidates = search(
        _base(given, choices, degrees[-1]),
        objective=objective,
        slo=parse_slo(plain.slo),
        choices=choices,
        tps=degrees,
        **_draft_tps(given),
        **_budgets(given, plain.prompt_tokens, choices),
    )
    return recommend(candidates)


def _several(values: Mapping[str, Any], key: str) -> list[Any]:
    """The values under a key as a list, each once, in their order."""
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
    """(draft, policy) pairs from `self`, `self:snapkv` or a model; None where none was given."""
    policy = values.get("draft_policy")
    if "draft" not in values:
        if policy is not None:
            raise ConfigError("draft_policy needs a draft here, such as --draft self")
        return None
    choices: list[Choice] = []
    for term in _several(values, "draft"):
        draft, _, in_term = str(term).partition(":")
        if draft == "none":
            raise ConfigError("recommend always compares with plain decoding; leave out draft none")
        defaults = POLICIES_OF_SELF if draft == "self" else POLICIES_OF_MODEL
        stated = in_term or policy
        choices += [(draft, stated)] if stated else [(draft, p) for p in defaults]
    return list(dict.fromkeys(choices))


def _check_single_choice(values: Mapping[str, Any], choices: list[Choice]) -> None:
    """An acceptance, or a draft's TP, belongs to one draft choice."""
    if len(choices) == 1:
        return
    named = ", ".join(f"{draft}:{policy}" for draft, policy in choices)
    for key in ACCEPTANCE_KEYS:
        if key in values:
            raise ConfigError(
                f"{key} holds for one draft choice, and {len(choices)} are compared ({named}); "
                f"name one with --draft and --draft-policy"
            )
    if "draft_tp" in values and len({draft for draft, _ in choices}) > 1:
        raise ConfigError(f"draft_tp holds for one draft, and several are compared ({named})")


def _base(values: Mapping[str, Any], choices: list[Choice], tp: int) -> Scenario:
    """The scenario that the search varies; with one choice also its draft and acceptance."""
    fixed = {key: value for key, value in values.items() if key not in SEARCHED}
    if len({draft for draft, _ in choices}) == 1:
        draft, policy = choices[0]
        fixed |= {"draft": draft, "draft_policy": policy, "kv_budget": 1}
        fixed["draft_tp"] = None if draft == "self" else values.get("draft_tp")
    observed = [key for key in OBSERVED_KEYS if key in values]
    if observed:
        if "gamma" not in values:
            raise ConfigError(f"{observed[0]} needs the gamma it was measured at; add --gamma")
        fixed["gamma"] = values["gamma"]
    return parse_scenario(fixed | {"tp": tp}).scenario()


def _tps(values: Mapping[str, Any], plain: ScenarioInput) -> list[int]:
    """TP degrees as given, else every power of two that splits the target on one node."""
    scenario = plain.scenario()
    if "tp" in values:
        stated = _counts(values, "tp")
        for tp in stated:
            scenario.target.check_tp(tp)
            scenario.machine.check_tp(tp)
        return sorted(stated)
    least = parse_scenario({"draft_tp": values.get("draft_tp")}).draft_tp or 1
    most = scenario.machine.gpus_per_node
    degrees = [n for n in (1, 2, 4, 8, 16) if least <= n <= most and scenario.target.splits_over(n)]
    if not degrees:
        raise ConfigError(f"draft_tp={least} exceeds the {most} GPUs of {scenario.machine.name}")
    return degrees


def _draft_tps(values: Mapping[str, Any]) -> dict[str, list[int]]:
    """The given draft TP alone; empty where none was given, and the search tries them all."""
    stated = parse_scenario({"draft_tp": values.get("draft_tp")}).draft_tp
    return {} if stated is None else {"draft_tps": [stated]}


def _budgets(
    values: Mapping[str, Any], prompt_tokens: int, choices: list[Choice]
) -> dict[str, list[int]]:
    """The budgets to search, where they were given."""
    if "kv_budget" not in values:
        return {}
    if all(policy == "full" for _, policy in choices):
        raise ConfigError("kv_budget has no meaning for draft policy full; leave it out")
    budgets = _counts(values, "kv_budget")
    if max(budgets) > prompt_tokens:
        raise ConfigError(
            f"kv_budget={max(budgets)} is outside 1 to the context of {prompt_tokens} tokens"
        )
    return {"budgets": budgets}
