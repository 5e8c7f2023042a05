"""What recorded requests add to a recommendation: lengths, cache hits, how a plan serves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from app.cli.options import parse_overrides
from app.cli.output import progress
from app.cli.simulation_options import DEFAULT_RATE, DRAWN

if TYPE_CHECKING:
    from perfmodel import Recommendation, Scenario, Simulation
    from perfmodel.specs import SLO


def drawn_rate(answer: Recommendation, path: str) -> str:
    """The rate of the requests of a trace without arrival times."""
    scenario, rate = _replica(answer)
    text = DRAWN.format(path, rate)
    if answer.fleet is None:
        return text
    return f"{text}, the share of TP {scenario.tp} in the {answer.fleet.gpus} GPUs for the rate"


def _replica(answer: Recommendation) -> tuple[Scenario, float]:
    """The plan with the best draft on one replica, and its share of the rate. [1/s]

    With a rate, each GPU of the fleet serves as much of it.
    """
    from perfmodel.planning import fleet_of

    assert answer.studied is not None
    scenario, fleet = answer.studied.scenario, answer.fleet
    if fleet is None:
        return scenario, DEFAULT_RATE
    sized = fleet_of(answer.studied, answer.rule.limits, fleet.rate, fleet.most_requests)
    return sized.capacity.scenario if sized else scenario, fleet.rate * scenario.tp / fleet.gpus


def service_line(answer: Recommendation, choice: Mapping[str, Any], own: Mapping[str, str]) -> str:
    """The service to which the figures above those of a trace apply."""
    work = answer.saturated.scenario.workload
    mean = " (the mean of the trace)" if "prompt_tokens" in own else ""
    hits = f", {work.prefix_hit_rate:.0%} of them cached" if work.prefix_hit_rate else ""
    what = "answer above is" if answer.fleet is None else "plans at full load above are"
    limits = ""
    if choice["saturated_miss"] is not None:
        what, limits = "plans above are", ", without the limits on times"
    return (
        f"The {what} for a service that always has {work.batch:,} requests of "
        f"{work.prompt_tokens:,} prompt tokens{mean}{hits}{limits}."
    )


def trace_values(
    path: str, requests: int, scenario: str | None, flags: dict[str, str], runs_on: str
) -> tuple[dict[str, str], list[str]]:
    """What neither flags nor the scenario state and recorded requests do, and notes that say so.

    These are the mean lengths, and the share of the prompt tokens in the prefix cache.
    """
    from perfmodel import ConfigError
    from perfmodel.planning import plain_scenarios
    from perfmodel.serving import mean_lengths

    given = parse_overrides(scenario, flags)
    means = zip(("prompt_tokens", "output_tokens"), mean_lengths(path, requests), strict=True)
    values = {name: str(mean) for name, mean in means if name not in given}
    notes = []
    if values:
        listed = " and ".join(f"{name}={value}" for name, value in values.items())
        what = "is the mean" if len(values) == 1 else "are the means"
        notes = [f"{listed} {what} of {path}, as none was given"]
    if not _records_prefixes(path, requests):
        return values, notes
    if float(stated := given.get("prefix_hit_rate") or 0.0):
        raise ConfigError(
            f"{path} records the prefixes that requests share (hash_ids); remove "
            f"prefix_hit_rate={stated}"
        )
    plans = plain_scenarios(searched_values(flags | values, scenario), runs_on=runs_on)
    share, tp = _prefix_hits(path, requests, plans)
    if share:
        values["prefix_hit_rate"] = f"{share:.4g}"
        notes.append(
            f"prefix_hit_rate={share:.4g} is the share of the prompt tokens in {path} that are in "
            f"the prefix cache, simulated without speculation at TP {tp}"
        )
    return values, notes


def _prefix_hits(path: str, requests: int, plans: list[Scenario]) -> tuple[float, int]:
    """Share of a trace's prompt tokens that the prefix cache holds, and the TP.

    It is that of `simulate` with the first of the plans, without speculation, that fits; 0 if the
    trace has no hits, or if none fits.
    """
    import perfmodel
    from perfmodel.reports import workload_dict
    from perfmodel.specs import SLO

    for plain in plans:
        try:
            run = perfmodel.simulate_requests(
                plain, simulation_of(plain, path, requests, SLO()), gammas=[0]
            )
        except perfmodel.NoFeasiblePlan:
            continue
        if run.stats.requests:
            return float(workload_dict(run.stats)["prefix_hit_share"]), plain.tp
    return 0.0, 0


def _records_prefixes(path: str, requests: int) -> bool:
    from perfmodel.serving import first_rows

    return any(row.blocks for row in first_rows(path, requests))


def simulation_of(
    scenario: Scenario, path: str, requests: int, slo: SLO, rate: float = DEFAULT_RATE
) -> Simulation:
    """The simulation of recorded requests; those with recorded prefixes state their own hits.

    `rate` is for requests without arrival times. A pass has room for prompts at every γ.
    """
    import perfmodel
    from perfmodel.serving import SCHEDULE_GAMMAS, Serving, scenario_acceptance

    work, budget = scenario.workload, scenario.engine.prefill_chunk_tokens
    recorded = _records_prefixes(path, requests)
    return perfmodel.Simulation(
        traffic=perfmodel.Traffic(
            requests=requests,
            path=path,
            rate=rate,
            prefix_hit_rate=0.0 if recorded else work.prefix_hit_rate,
        ),
        serving=Serving(
            max_batch=min(work.batch, (budget - 1) // (max(SCHEDULE_GAMMAS) + 1)),
            token_budget=budget,
            prefill=work.prefill,
        ),
        process=scenario_acceptance(scenario),
        slo=slo,
    )


def for_traffic(answer: Recommendation, path: str, requests: int, slo: SLO) -> dict[str, Any]:
    """The best gamma for recorded requests, with the draft of the recommendation."""
    import perfmodel
    from perfmodel.reports import choice_dict
    from perfmodel.serving import choose_for_traffic

    if answer.studied is None or answer.interval is None:
        raise perfmodel.ConfigError(
            "no draft with a known acceptance meets the limits; name a draft with --draft and give "
            "its --acceptance"
        )
    (studied, rate), gain = _replica(answer), answer.interval
    with progress("requests") as update:
        choice = choose_for_traffic(
            studied,
            simulation_of(studied, path, requests, slo, rate),
            error=(gain.low / gain.value, gain.high / gain.value),
            progress=update,
        )
    return {"plan": answer.studied.label, **choice_dict(choice), "saturated_miss": None}


def searched_values(flags: dict[str, str], scenario: str | None) -> dict[str, Any]:
    """The flat values of a search, with lists for those that may have several."""
    from app.cli.axes import parse_axis
    from perfmodel.planning import SEVERAL

    values = parse_overrides(scenario, flags)
    return values | {k: parse_axis(k, str(values[k])) for k in SEVERAL if k in values}
