"""`specroof recommend`: what the flags leave open is searched; the answer comes first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.cli.axes import parse_axis
from app.cli.output import atomic_text, console, print_json
from app.cli.overrides import stated_values
from app.cli.simulation_options import progress_bar
from perfmodel import (
    OBSERVED_KEYS,
    SEVERAL,
    ConfigError,
    Recommendation,
    Serving,
    Simulation,
    Traffic,
    choice_dict,
    choose_for_traffic,
    find_plan,
    parse_slo,
    recommendation_dict,
    scenario_acceptance,
)


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
        from app.render.tables import print_recommendation

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
            Simulation(
                traffic=Traffic(requests=requests, path=path),
                serving=Serving(max_batch=studied.workload.batch),
                process=scenario_acceptance(studied),
                slo=parse_slo(slo),
            ),
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
    values |= {k: parse_axis(k, str(values[k])) for k in SEVERAL if k in values}
    notes = []
    if "gamma" in values and "gamma" not in flags and not any(k in values for k in OBSERVED_KEYS):
        gamma = values.pop("gamma")
        notes = [f"the scenario's gamma={gamma} was set aside: gamma is searched from 1 to 16"]
    return find_plan(values, objective=objective), notes
