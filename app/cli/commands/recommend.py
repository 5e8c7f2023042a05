"""`specroof recommend`: search the values that the flags leave open, and print the best plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import (
    AsJson,
    HtmlFile,
    ScenarioFile,
    option,
    parse_overrides,
    refuse_flags,
)
from app.cli.output import console, print_json, progress, write_text
from app.cli.simulation_options import DEFAULT_RATE, DRAWN, has_arrivals

if TYPE_CHECKING:
    from perfmodel import Recommendation

MOST_REQUESTS = 20_000  # of a trace that is simulated by default


def recommend(
    context: typer.Context,
    scenario: ScenarioFile = None,
    objective: Annotated[
        str, option("throughput|latency", "Maximise tokens/s per GPU, or minimise TPOT.")
    ] = "throughput",
    rate: Annotated[
        float | None,
        option(
            "RPS", "Requests per second to serve: find the fewest GPUs, and the batch if not given."
        ),
    ] = None,
    price: Annotated[
        float | None, option("PRICE", "Price of a GPU hour, for the cost per million tokens.")
    ] = None,
    acceptance_budget: Annotated[
        str | None,
        option("TOKENS|P%", "KV budget at which the given acceptance was measured."),
    ] = None,
    runs_on: Annotated[
        str,
        option("ENGINE", "Only plans that this engine or version runs, such as vllm or vllm-0.23."),
    ] = "",
    html: HtmlFile = None,
    traffic: Annotated[
        str | None,
        option("FILE", "Recorded requests; gamma is also chosen for them by simulation."),
    ] = None,
    requests: Annotated[
        int | None,
        option("N", "Maximum number of --traffic requests to simulate. Default: 20,000.", min=1),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Choose draft, gamma, KV budget and TP for a workload, and explain the choice."""
    from perfmodel import recommendation_dict
    from perfmodel.reports import skipped_notes
    from perfmodel.serving import assumed_unit, trace_rows

    flags, means = context.obj, {}
    if traffic is None:
        refuse_flags({"requests": requests}, ["requests"], "without --traffic")
    else:
        next(trace_rows(traffic), None)  # a file that cannot be read is refused before the search
        means = _missing_lengths(traffic, requests or MOST_REQUESTS, scenario, flags)
        flags = flags | means
    answer, notes = find_recommendation(
        flags,
        scenario,
        objective=objective,
        rate=rate,
        price_per_hour=price,
        acceptance_budget=acceptance_budget,
        runs_on=runs_on,
    )
    result = recommendation_dict(answer)
    if traffic is not None:
        slo = str(parse_overrides(scenario, flags).get("slo", ""))
        result["traffic"] = _for_traffic(answer, traffic, requests or MOST_REQUESTS, slo)
        arrivals = assumed_unit(traffic) if has_arrivals(traffic) else DRAWN.format(traffic)
        notes = [*notes, *[arrivals] * bool(arrivals), *skipped_notes(result["traffic"]["skipped"])]
    if means:
        listed = " and ".join(f"{name}={value}" for name, value in means.items())
        what = "is the mean" if len(means) == 1 else "are the means"
        notes = [f"{listed} {what} of {traffic}, as none was given", *notes]
    result["notes"] = [*result["notes"], *notes]
    if html is not None:
        from app.render.html_report import report_html

        page_notes = [*result["notes"]]
        if traffic is not None:
            page_notes.append(f"on this traffic: {result['traffic']['sentence']}")
        write_text(html, report_html(answer, result | {"notes": page_notes}))
    if as_json:
        print_json(result)
    else:
        from app.render.recommendation_tables import print_recommendation

        print_recommendation(result, console())
        if traffic is not None:
            from app.render.simulation_tables import print_choice

            work = answer.best.scenario.workload
            mean = " (the mean of the trace)" if "prompt_tokens" in means else ""
            console().print(
                f"\nThe answer above is for a service that always has {work.batch:,} requests of "
                f"{work.prompt_tokens:,} prompt tokens{mean}."
            )
            print_choice(result["traffic"], console())


def _missing_lengths(
    path: str, requests: int, scenario: str | None, flags: dict[str, str]
) -> dict[str, str]:
    """The mean lengths of recorded requests that neither flags nor the scenario state. [tokens]"""
    from perfmodel.serving import mean_lengths

    given = parse_overrides(scenario, flags)
    means = zip(("prompt_tokens", "output_tokens"), mean_lengths(path, requests), strict=True)
    return {name: str(mean) for name, mean in means if name not in given}


def _for_traffic(answer: Recommendation, path: str, requests: int, slo: str) -> dict[str, Any]:
    """The best gamma for recorded requests, with the draft of the recommendation."""
    import perfmodel
    from perfmodel.reports import choice_dict
    from perfmodel.serving import Serving, choose_for_traffic, scenario_acceptance
    from perfmodel.specs import parse_slo

    if answer.studied is None or answer.interval is None:
        raise perfmodel.ConfigError(
            "no draft with a known acceptance meets the limits; name a draft with --draft and give "
            "its --acceptance"
        )
    studied, gain = answer.studied.scenario, answer.interval
    work = studied.workload
    with progress("requests") as update:
        choice = choose_for_traffic(
            studied,
            perfmodel.Simulation(
                traffic=perfmodel.Traffic(
                    requests=requests,
                    path=path,
                    rate=DEFAULT_RATE,
                    prefix_hit_rate=work.prefix_hit_rate,
                ),
                serving=Serving(
                    max_batch=work.batch,
                    token_budget=studied.engine.prefill_chunk_tokens,
                    prefill=work.prefill,
                ),
                process=scenario_acceptance(studied),
                slo=parse_slo(slo),
            ),
            error=(gain.low / gain.value, gain.high / gain.value),
            progress=update,
        )
    return {"plan": answer.studied.label, **choice_dict(choice)}


def find_recommendation(
    flags: dict[str, str], scenario: str | None, **options: Any
) -> tuple[Recommendation, list[str]]:
    """The recommendation, and notes on given values that the search ignores.

    `options` are those of `perfmodel.find_plan`.

    Raises
    ------
    ConfigError
        For flags that do not apply to a search.
    NoFeasiblePlan
        If no plan meets the limits.
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
        notes = [f"the scenario's gamma={gamma} is ignored: gamma is searched from 1 to 16"]
    if "ring_hop_us" in flags and [str(tp) for tp in values.get("tp", ())] == ["1"]:
        notes.append("the ring has no effect at tp=1, which has no all-reduce")
    return find_plan(values, **options), notes
