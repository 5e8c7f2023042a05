"""`specroof simulate`: simulate a fixed batch, or requests that arrive over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson, HtmlFile, ScenarioFile, field_flags, option, parse_overrides
from app.cli.output import console, print_json, progress, write_csv, write_text
from app.cli.simulation_options import DEFAULT_RATE, DRAWN, SimulationOptions, has_arrivals

if TYPE_CHECKING:
    from perfmodel import Scenario


@field_flags
def simulate(
    context: typer.Context,
    *,
    scenario: ScenarioFile = None,
    options: SimulationOptions,
    csv: Annotated[
        str | None, option("FILE|-", "Write the timeline as CSV (- for stdout).", "--csv")
    ] = None,
    html: HtmlFile = None,
    as_json: AsJson = False,
) -> None:
    """Simulate a batch, or requests that arrive over time, with and without speculation."""
    import perfmodel
    from perfmodel.reports import simulation_dict, timeline_rows

    if csv == "-" and as_json:
        raise perfmodel.ConfigError(
            "--csv - and --json both write to stdout; write the CSV to a file"
        )
    values = parse_overrides(scenario, context.obj)
    stated = perfmodel.parse_scenario(values, origin=scenario or "")
    base = stated.scenario()
    options.check(context.obj, base)
    workload = None
    if options.plays_requests:
        runs, workload = _play_requests(base, stated.slo, options)
    else:
        runs = _play_batch(base, options)
    base = options.observed(base)
    result = simulation_dict(
        base,
        runs,
        workload,
        seed=options.seed,
        exact=options.exact or not options.plays_requests,
        token_budget=options.budget(base),
    )
    result["notes"] += [*stated.unused(base).values(), *_trace_notes(context.obj, options)]
    if html is not None:
        from app.render.pages import simulation_html

        write_text(html, simulation_html(result))
    if csv is not None:
        write_csv(csv, timeline_rows(base, result))
    if as_json:
        print_json(result)
    elif csv != "-":
        from app.render.simulation_tables import print_simulation

        print_simulation(result, console())


def _trace_notes(flags: Mapping[str, str], options: SimulationOptions) -> list[str]:
    """What a trace replaces, and the unit of its arrivals if the trace does not state it."""
    from perfmodel.serving import assumed_unit

    if options.traffic is None:
        return []
    names = [name for name in ("prompt_tokens", "output_tokens") if name in flags]
    lengths = f"the lengths of requests are those of --traffic, not {' and '.join(names)}"
    arrivals = assumed_unit(options.traffic)
    if options.rate is None and options.arrivals != "at-once" and not has_arrivals(options.traffic):
        drawn = DRAWN.format(options.traffic, DEFAULT_RATE)
        arrivals = f"{drawn}; state --rate, or --arrivals at-once"
    return [lengths] * bool(names) + [arrivals] * bool(arrivals)


def _play_requests(
    base: Scenario, slo: str, options: SimulationOptions
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Simulate the same requests without speculation, at the scenario's gamma, and by schedule.

    Returns the runs, and what the requests ask for.
    """
    import perfmodel
    from perfmodel.reports import serving_dict, workload_dict
    from perfmodel.serving import RoundTimes, compared_gammas
    from perfmodel.specs import parse_slo

    simulation = perfmodel.Simulation(
        traffic=options.stream(base),
        serving=options.serving(base),
        process=options.process(base),
        slo=parse_slo(slo),
        seed=options.seed,
        exact=options.exact,
    )
    if options.schedule and base.plan.draft == "none":
        raise perfmodel.ConfigError("--schedule needs a draft; add one, such as --draft self")
    times = RoundTimes(base, max_batch=simulation.serving.max_batch)
    runs = []
    for gammas in compared_gammas(base, schedule=options.schedule):
        with progress("requests", simulation.traffic.requests) as update:
            run = perfmodel.simulate_requests(
                base, simulation, gammas=gammas, progress=update, times=times
            )
        runs.append(run)
    return [serving_dict(run) for run in runs], workload_dict(runs[0].stats)


def _play_batch(base: Scenario, options: SimulationOptions) -> list[dict[str, Any]]:
    """Simulate a batch of cached prompts, without speculation and at the scenario's gamma."""
    import numpy as np

    import perfmodel
    from perfmodel.reports import batch_dict, check_fits
    from perfmodel.serving import lengths, simulate_batch

    if options.schedule or options.exact or options.requests is not None:
        raise perfmodel.ConfigError(
            "--schedule, --exact and --requests need requests that arrive over time; add --rate or "
            "--traffic"
        )
    check_fits(perfmodel.estimate(base))
    work = base.workload
    rng = np.random.default_rng([options.seed, 0])
    prompt = lengths(rng, work.prompt_tokens, options.prompt_cv, work.batch)
    output = lengths(rng, work.output_tokens, options.output_cv, work.batch)
    options.stream(base)  # checks the spreads and the probability
    if options.eos:
        output = np.minimum(output, rng.geometric(options.eos, work.batch))
    runs = []
    for gamma in dict.fromkeys((0, base.plan.gamma)):
        scenario = base if gamma else perfmodel.without_speculation(base)
        run = simulate_batch(
            scenario,
            options.process(scenario),
            prompt_tokens=prompt,
            output_tokens=output,
            gamma=gamma,
            finished=options.finished,
            seed=options.seed,
        )
        runs.append(batch_dict(run))
    return runs
