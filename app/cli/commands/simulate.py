"""`specroof simulate`: simulate a fixed batch, or requests that arrive over time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson, HtmlFile, ScenarioFile, field_flags, option, parse_overrides
from app.cli.output import console, print_json, progress, write_csv, write_text
from app.cli.simulation_options import SimulationOptions

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

    if csv == "-" and as_json:
        raise perfmodel.ConfigError(
            "--csv - and --json both write to stdout; write the CSV to a file"
        )
    options.check()
    values = parse_overrides(scenario, context.obj)
    stated = perfmodel.parse_scenario(values, origin=scenario or "")
    base = stated.scenario()
    workload = None
    if options.plays_requests:
        runs, workload = _play_requests(base, stated.slo, options)
    else:
        runs = _play_batch(base, options)
    result = _result(base, options, runs, workload)
    if html is not None:
        from app.render.pages import simulation_html

        write_text(html, simulation_html(result))
    if csv is not None:
        runs = result["runs"]
        write_csv(csv, ({"label": run["label"], **row} for run in runs for row in run["timeline"]))
    if as_json:
        print_json(result)
    elif csv != "-":
        from app.render.simulation_tables import print_simulation

        print_simulation(result, console())


def _play_requests(
    base: Scenario, slo: str, options: SimulationOptions
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Simulate the same requests without speculation, at the scenario's gamma, and by schedule.

    Returns the runs, and what the requests ask for.
    """
    import perfmodel
    from perfmodel.reports import serving_dict, workload_dict
    from perfmodel.serving import SCHEDULE_GAMMAS, RoundTimes
    from perfmodel.specs import parse_slo

    simulation = perfmodel.Simulation(
        traffic=options.stream(base),
        serving=options.serving(base),
        process=options.process(base),
        slo=parse_slo(slo),
        seed=options.seed,
        exact=options.exact,
    )
    choices: list[tuple[int, ...]] = [(0,)]
    if base.plan.speculates:
        choices.append((base.plan.gamma,))
    if options.schedule:
        if base.plan.draft == "none":
            raise perfmodel.ConfigError("--schedule needs a draft; add one, such as --draft self")
        choices.append(SCHEDULE_GAMMAS)
    times = RoundTimes(base, max_batch=simulation.serving.max_batch)
    runs = []
    for gammas in choices:
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


def _result(
    base: Scenario,
    options: SimulationOptions,
    runs: list[dict[str, Any]],
    workload: dict[str, Any] | None,
) -> dict[str, Any]:
    from perfmodel import estimate, scenario_dict

    if workload is not None:
        saturated, closed = _saturated(base, workload, options.token_budget)
    else:
        speedup = float(estimate(base).speedup)
        known = base.plan.speculates and math.isfinite(speedup)
        saturated, closed = None, speedup if known else None
    return {
        "level": "requests" if options.plays_requests else "rounds",
        "workload": workload,
        "runs": runs,
        "gains": [_gain(runs[0], run) for run in runs[1:]],
        "saturated_rps": saturated,
        "closed_form_speedup": closed,
        "seed": options.seed,
        "exact": options.exact or not options.plays_requests,
        "scenario": scenario_dict(base),
        "notes": list(base.notes),
    }


def _saturated(
    base: Scenario, workload: dict[str, Any], token_budget: int
) -> tuple[list[float], float | None]:
    """The closed form for requests with the mean lengths and hits of these.

    Returns the requests per second that a saturated service finishes without speculation and with
    the scenario's plan, and their ratio, which is None without a plan or a known acceptance.
    """
    from perfmodel import speculation, without_speculation

    prompt, output = (
        max(1, round(workload[name]["mean"])) for name in ("prompt_tokens", "output_tokens")
    )
    budget = base.plan.kv_budget_tokens
    scenario = replace(
        base,
        workload=replace(
            base.workload,
            prompt_tokens=prompt,
            output_tokens=output,
            prefix_hit_rate=workload["prefix_hit_share"],
        ),
        plan=replace(base.plan, kv_budget_tokens=None if budget is None else min(budget, prompt)),
        engine=base.engine.changed(prefill_chunk_tokens=token_budget),
    )
    rates = [float(speculation.service(without_speculation(scenario)).requests_per_s)]
    if base.plan.speculates:
        rates.append(float(speculation.service(scenario).requests_per_s))
    known = [rate for rate in rates if math.isfinite(rate)]
    return known, known[1] / known[0] if len(known) > 1 else None


def _gain(plain: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Ratios of plain decoding to this run: above 1 where this run is faster."""

    def ratio(before: float | None, after: float | None) -> float | None:
        return before / after if before and after else None

    latency = None
    if "latency" in run:
        latency = ratio(plain["latency"]["mean_s"], run["latency"]["mean_s"])
    return {
        "label": run["label"],
        "tpot": ratio(plain["tpot"]["mean_s"], run["tpot"]["mean_s"]),
        "latency": latency,
        "makespan": ratio(plain["makespan_s"], run["makespan_s"]),
    }
