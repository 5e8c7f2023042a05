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
from app.cli.output import console, print_json, write_text
from app.cli.recorded_requests import (
    drawn_rate,
    for_traffic,
    searched_values,
    service_line,
    simulation_of,
    trace_values,
)
from app.cli.simulation_options import check_trace, has_arrivals

if TYPE_CHECKING:
    from perfmodel import NoFeasiblePlan, Recommendation

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
    from perfmodel import NoFeasiblePlan, recommendation_dict
    from perfmodel.reports import skipped_notes
    from perfmodel.serving import LEAST_GOOD, assumed_unit, trace_rows
    from perfmodel.specs import parse_slo

    flags: dict[str, str] = context.obj
    own: dict[str, str] = {}
    count = requests or MOST_REQUESTS
    if traffic is None:
        refuse_flags({"requests": requests}, ["requests"], "without --traffic")
    else:
        next(trace_rows(traffic), None)  # a file that cannot be read is refused before the search
        check_trace(traffic, {}, drawn="" if rate is None else "--rate")
        own, own_notes = trace_values(traffic, count, scenario, flags, runs_on)
        flags = flags | own
    options = {
        "objective": objective,
        "rate": rate,
        "price_per_hour": price,
        "acceptance_budget": acceptance_budget,
        "runs_on": runs_on,
    }
    try:
        answer, notes = find_recommendation(flags, scenario, **options)
        slo = parse_slo(str(parse_overrides(scenario, flags).get("slo", "")))
        shown, share = "", None
        if traffic is not None and answer.fleet is not None and slo.limits_times:
            answer, shown, share = _enough(answer, traffic, count, flags, scenario, options)
        result = recommendation_dict(answer)
        if shown and answer.fleet is not None:
            first = answer.fleet.sentence
            for key in ("answer", "sentence"):
                result[key] = result[key].replace(first, f"{first} {shown}")
        if traffic is not None:
            result["traffic"] = for_traffic(answer, traffic, count, slo)
        if share is not None:
            result["traffic"]["meets_limits"] = share >= LEAST_GOOD
    except NoFeasiblePlan as missed:
        if traffic is None or rate is not None or not has_arrivals(traffic):
            raise
        answer, result, notes = _at_own_rate(missed, traffic, count, flags, scenario, options)
    if traffic is not None:
        arrivals = assumed_unit(traffic) if has_arrivals(traffic) else drawn_rate(answer, traffic)
        notes = [*notes, *[arrivals] * bool(arrivals), *skipped_notes(result["traffic"]["skipped"])]
        notes = [*own_notes, *notes]
    result["notes"] = [*result["notes"], *notes]
    with_draft = ""  # named if the recommended fleet has none
    if traffic is not None and rate is not None and not result["speculate"]:
        with_draft = f" with {result['traffic']['plan'].split(', γ')[0]}"
    if html is not None:
        from app.render.html_report import report_html

        page_notes = [*result["notes"]]
        if traffic is not None:
            page_notes.append(f"on this traffic{with_draft}: {result['traffic']['sentence']}")
        write_text(html, report_html(answer, result | {"notes": page_notes}))
    if as_json:
        print_json(result)
    else:
        from app.render.recommendation_tables import print_recommendation

        print_recommendation(result, console())
        if traffic is not None:
            from app.render.simulation_tables import print_choice

            console().print(f"\n{service_line(answer, result['traffic'], own)}")
            print_choice(result["traffic"], console(), with_draft)


def _enough(
    answer: Recommendation,
    path: str,
    requests: int,
    flags: dict[str, str],
    scenario: str | None,
    options: dict[str, Any],
) -> tuple[Recommendation, str, float]:
    """The answer with fleets that meet the limits in simulation, how other ones do not, and the
    share of the requests that meet them.

    If those of the answer's TP do not, larger ones are tried. Raises `NoFeasiblePlan` if none does.
    """
    from perfmodel import NoFeasiblePlan
    from perfmodel.planning import plain_scenarios
    from perfmodel.serving import enough_in_simulation

    assert answer.fleet is not None
    values, tp = searched_values(flags, scenario), answer.fleet.capacity.scenario.tp
    larger = dict.fromkeys(plain.tp for plain in plain_scenarios(values) if plain.tp > tp)
    slo, failure = answer.rule.limits, None
    for degree in (tp, *larger):
        try:
            if degree != tp:
                answer, _ = find_recommendation(flags | {"tp": str(degree)}, scenario, **options)
            return enough_in_simulation(
                answer, lambda plan, rate: simulation_of(plan, path, requests, slo, rate)
            )
        except NoFeasiblePlan as missed:
            failure = failure or missed
    assert failure is not None
    raise failure


def _at_own_rate(
    missed: NoFeasiblePlan,
    path: str,
    requests: int,
    flags: dict[str, str],
    scenario: str | None,
    options: dict[str, Any],
) -> tuple[Recommendation, dict[str, Any], list[str]]:
    """The answer on the fewest GPUs with which recorded requests meet limits at their own rate.

    `missed` says that a saturated service does not meet them, and is raised if the trace does not.
    """
    from perfmodel import NoFeasiblePlan, recommendation_dict
    from perfmodel.planning import Verdict, plain_scenarios
    from perfmodel.specs import parse_slo

    values = searched_values(flags, scenario)
    slo = parse_slo(str(values.get("slo", "")))
    if not slo.limits_times:
        raise missed
    memory = "" if slo.memory_fraction is None else f"memory<{100 * slo.memory_fraction:g}%"
    for tp in dict.fromkeys(plain.tp for plain in plain_scenarios(values)):
        try:
            answer, notes = find_recommendation(
                flags | {"slo": memory, "tp": str(tp)}, scenario, **options
            )
        except NoFeasiblePlan:
            continue
        result = recommendation_dict(answer)
        choice = for_traffic(answer, path, requests, slo)
        if not choice["meets_limits"]:
            continue
        work, drafts = answer.best.scenario.workload, choice["verdict"] == Verdict.SPECULATE
        plan = f"{choice['plan'].rsplit(', γ', 1)[0]}, TP {tp}" if drafts else f"TP {tp}"
        text = (
            f"{path} meets the limits at its own rate with {plan}. {choice['sentence']} A service "
            f"that always has {work.batch:,} such requests misses them; figures below are its, "
            f"without the limits on times."
        )
        result |= {
            "answer": text,
            "sentence": answer.sentence.replace(answer.answer, text),
            "verdict": choice["verdict"],
            "speculate": drafts,
            "traffic": choice | {"saturated_miss": str(missed)},
        }
        return answer, result, [*notes, f"a saturated service: {missed}"]
    raise missed


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
    from perfmodel import find_plan
    from perfmodel.scenario_input import OBSERVED_KEYS

    values = searched_values(flags, scenario)
    notes = []
    if "gamma" in values and "gamma" not in flags and not any(k in values for k in OBSERVED_KEYS):
        gamma = values.pop("gamma")
        notes = [f"the scenario's gamma={gamma} is ignored: gamma is searched from 1 to 16"]
    if "ring_hop_us" in flags and [str(tp) for tp in values.get("tp", ())] == ["1"]:
        notes.append("the ring has no effect at tp=1, which has no all-reduce")
    return find_plan(values, **options), notes
