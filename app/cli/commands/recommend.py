"""`specroof recommend`: search what the flags leave open, and print the answer first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson, ScenarioFile, parse_overrides
from app.cli.output import atomic_text, console, print_json, progress

if TYPE_CHECKING:
    from perfmodel import Recommendation


def recommend(
    context: typer.Context,
    scenario: ScenarioFile = None,
    objective: Annotated[
        str, typer.Option(metavar="throughput|latency", help="Tokens/s per GPU, or TPOT.")
    ] = "throughput",
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a report with charts.", show_default=False),
    ] = None,
    traffic: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Recorded requests: also choose gamma for them, by simulation.",
            show_default=False,
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option(metavar="N", min=1, help="With --traffic: play at most this many.")
    ] = 20_000,
    as_json: AsJson = False,
) -> None:
    """Choose draft, gamma, KV budget and TP for a workload, and say why."""
    from perfmodel import recommendation_dict

    flags = context.obj
    answer, notes = find_recommendation(flags, scenario, objective=objective)
    result = recommendation_dict(answer)
    if traffic is not None:
        slo = str(parse_overrides(scenario, flags).get("slo", ""))
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


def _for_traffic(answer: Recommendation, path: str, requests: int, slo: str) -> dict[str, Any]:
    """The best gamma for recorded requests, with the draft of the recommendation."""
    import perfmodel
    from perfmodel.reports import choice_dict
    from perfmodel.serving import Serving, choose_for_traffic, scenario_acceptance
    from perfmodel.specs import parse_slo

    if answer.studied is None:
        raise perfmodel.ConfigError(
            "no draft choice of known acceptance meets the limits; name one with --draft and "
            "give its --acceptance"
        )
    studied = answer.studied.scenario
    with progress("requests") as update:
        choice = choose_for_traffic(
            studied,
            perfmodel.Simulation(
                traffic=perfmodel.Traffic(requests=requests, path=path),
                serving=Serving(max_batch=studied.workload.batch),
                process=scenario_acceptance(studied),
                slo=parse_slo(slo),
            ),
            progress=update,
        )
    return {"plan": answer.studied.label, **choice_dict(choice)}


def find_recommendation(
    flags: dict[str, str], scenario: str | None, *, objective: str = "throughput"
) -> tuple[Recommendation, list[str]]:
    """The recommendation, and notes on values that were given but are searched.

    Raises
    ------
    ConfigError
        For flags that a search cannot honour.
    NoFeasiblePlan
        If nothing meets the limits.
    """
    from app.cli.axes import parse_axis
    from perfmodel import find_plan
    from perfmodel.planning import SEVERAL
    from perfmodel.scenario_input import OBSERVED_KEYS

    values = parse_overrides(scenario, flags)
    values |= {k: parse_axis(k, str(values[k])) for k in SEVERAL if k in values}
    notes = []
    if "gamma" in values and "gamma" not in flags and not any(k in values for k in OBSERVED_KEYS):
        gamma = values.pop("gamma")
        notes = [f"the scenario's gamma={gamma} was set aside: gamma is searched from 1 to 16"]
    return find_plan(values, objective=objective), notes
