"""`specroof recommend`: what the flags leave open is searched; the answer comes first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import perfmodel
from app.cli.axes import parse_axis
from app.cli.output import atomic_text, console, print_json
from app.cli.overrides import stated_values
from app.cli.simulation_options import progress_bar
from perfmodel import (
    ACCEPTANCE_KEYS,
    OBSERVED_KEYS,
    ConfigError,
    Recommendation,
    Scenario,
    ScenarioInput,
    Serving,
    Traffic,
    choice_dict,
    choose_for_traffic,
    draft_choices,
    parse_slo,
    recommendation_dict,
    scenario_acceptance,
    search,
)

POLICIES_OF_SELF = ("streamingllm", "snapkv")
POLICIES_OF_MODEL = ("streamingllm", "full")
SEARCHED = ("tp", "draft", "draft_policy", "draft_tp", "kv_budget", "gamma")


def run_recommend(
    flags: dict[str, str],
    scenario: str | None,
    *,
    objective: str,
    html: Path | None,
    traffic: str | None,
    requests: int,
    as_json: bool,
) -> int:
    """Print the recommendation and write its report; the search's errors pass through."""
    answer, notes = find_recommendation(flags, scenario, objective=objective)
    result = recommendation_dict(answer)
    if traffic is not None:
        slo = str(stated_values(scenario, flags).get("slo", ""))
        result["traffic"] = _for_traffic(answer, traffic, requests, slo)
        notes = [*notes, f"on this traffic: {result['traffic']['sentence']}"]
    result["notes"] = [*result["notes"], *notes]
    if html is not None:
        from app.render.html_report import report_html

        text = report_html(answer, result)
        with atomic_text(html) as file:
            file.write(text)
    if as_json:
        print_json(result)
    else:
        from app.render.recommendation_tables import print_recommendation

        print_recommendation(result, console())
        if traffic is not None:
            from app.render.simulation_tables import print_choice

            print_choice(result["traffic"], console())
    return 0


def _for_traffic(answer: Recommendation, path: str, requests: int, slo: str) -> dict[str, Any]:
    """γ for a recorded traffic, for the draft choice that the recommendation speaks of."""
    if answer.studied is None:
        raise ConfigError(
            "no draft choice of known acceptance meets the limits; name one with --draft and "
            "state its --acceptance"
        )
    studied = answer.studied.scenario
    with progress_bar(None, "requests") as progress:
        choice = choose_for_traffic(
            studied,
            Traffic(requests=requests, path=path),
            Serving(max_batch=studied.workload.batch),
            scenario_acceptance(studied),
            slo=parse_slo(slo),
            progress=progress,
        )
    return {"plan": answer.studied.label, **choice_dict(choice)}


def find_recommendation(
    flags: dict[str, str], scenario: str | None, *, objective: str = "throughput"
) -> tuple[Recommendation, list[str]]:
    """The recommendation, and notes on what was stated but is searched.

    Raises
    ------
    ConfigError
        For flags that a search cannot honour.
    NoFeasiblePlan
        If nothing meets the limits.
    """
    values = stated_values(scenario, flags)
    notes = _gamma_notes(values, flags)
    plain = perfmodel.parse_scenario(
        {k: v for k, v in values.items() if k not in SEARCHED + ACCEPTANCE_KEYS}
    )
    named = _choices(values)
    choices = draft_choices(plain.scenario()) if named is None else named
    _check_single_choice(values, choices)
    degrees = _tps(values, plain)
    found = search(
        _base(values, choices, degrees[-1]),
        objective=objective,
        slo=parse_slo(plain.slo),
        choices=choices,
        tps=degrees,
        **_draft_tps(values),
        **_budgets(values, plain.prompt_tokens, choices),
    )
    return perfmodel.recommend(found), notes


def _draft_tps(values: dict[str, Any]) -> dict[str, Any]:
    """The stated draft TP alone; nothing where none was stated, and the search tries them all."""
    stated = perfmodel.parse_scenario({"draft_tp": values.get("draft_tp")}).draft_tp
    return {} if stated is None else {"draft_tps": [stated]}


def _gamma_notes(values: dict[str, Any], flags: dict[str, str]) -> list[str]:
    """γ is searched: a flag that fixes it is refused, a scenario's is set aside and said so."""
    if "gamma" not in values or any(key in values for key in OBSERVED_KEYS):
        return []
    if "gamma" in flags:
        raise ConfigError("recommend chooses gamma itself; use predict or sweep for a given one")
    return [f"the scenario's gamma={values['gamma']} was set aside: gamma is searched from 1 to 16"]


def _choices(values: dict[str, Any]) -> list[tuple[str, str]] | None:
    """(draft, policy) pairs from `--draft self,self:snapkv,MODEL`; None where none was stated."""
    policy = values.get("draft_policy")
    if "draft" not in values:
        if policy is not None:
            raise ConfigError("draft_policy needs a draft here, such as --draft self")
        return None
    choices: list[tuple[str, str]] = []
    for term in parse_axis("draft", str(values["draft"])):
        draft, _, own = str(term).partition(":")
        if draft == "none":
            raise ConfigError("recommend always compares with plain decoding; leave out draft none")
        defaults = POLICIES_OF_SELF if draft == "self" else POLICIES_OF_MODEL
        stated = own or policy
        choices += [(draft, stated)] if stated else [(draft, p) for p in defaults]
    return list(dict.fromkeys(choices))


def _check_single_choice(values: dict[str, Any], choices: list[tuple[str, str]]) -> None:
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


def _base(values: dict[str, Any], choices: list[tuple[str, str]], tp: int) -> Scenario:
    """The scenario that the search varies; with one choice also its draft and acceptance."""
    kept = {key: value for key, value in values.items() if key not in SEARCHED}
    if len({draft for draft, _ in choices}) == 1:
        draft, policy = choices[0]
        kept |= {"draft": draft, "draft_policy": policy, "kv_budget": 1}
        kept["draft_tp"] = None if draft == "self" else values.get("draft_tp")
    observed = [key for key in OBSERVED_KEYS if key in values]
    if observed:
        if "gamma" not in values:
            raise ConfigError(f"{observed[0]} needs the gamma it was measured at; add --gamma")
        kept["gamma"] = values["gamma"]
    return perfmodel.parse_scenario(kept | {"tp": tp}).scenario()


def _tps(values: dict[str, Any], plain: ScenarioInput) -> list[int]:
    """TP degrees as stated, else every power of two that splits the target on one node."""
    scenario = plain.scenario()
    if "tp" in values:
        stated = [int(tp) for tp in parse_axis("tp", str(values["tp"]))]
        for tp in stated:
            scenario.target.check_tp(tp)
            scenario.machine.check_tp(tp)
        return sorted(stated)
    least = perfmodel.parse_scenario({"draft_tp": values.get("draft_tp")}).draft_tp or 1
    most = scenario.machine.gpus_per_node
    found = [n for n in (1, 2, 4, 8, 16) if least <= n <= most and scenario.target.splits_over(n)]
    if not found:
        raise ConfigError(f"draft_tp={least} exceeds the {most} GPUs of {scenario.machine.name}")
    return found


def _budgets(
    values: dict[str, Any], context: int, choices: list[tuple[str, str]]
) -> dict[str, list[int]]:
    """The budgets to search, where they were stated."""
    if "kv_budget" not in values:
        return {}
    if all(policy == "full" for _, policy in choices):
        raise ConfigError("kv_budget has no meaning for draft policy full; leave it out")
    budgets = [int(b) for b in parse_axis("kv_budget", str(values["kv_budget"]))]
    over = [b for b in budgets if b > context]
    if over or min(budgets) < 1:
        wrong = over[0] if over else min(budgets)
        raise ConfigError(f"kv_budget={wrong} is outside 1 to the context of {context} tokens")
    return {"budgets": budgets}
