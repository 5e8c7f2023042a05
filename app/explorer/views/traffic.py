"""Frontier, traffic over time: percentiles and goodput of simulated or recorded requests."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import streamlit as st

from app.charts.simulation import percentiles
from app.explorer.cached import scenario_of
from app.explorer.inputs import widgets
from app.explorer.inputs.files import kept_files
from app.explorer.inputs.session_files import session_folder, shown_paths
from app.explorer.packing import unpack_files
from app.explorer.scenario_text import command_text
from app.explorer.show import plain, show_chart, show_error, show_metrics, show_table, text_rows
from app.explorer.state import RANGES, Values
from app.explorer.views.drawing import charts
from app.render.simulation_tables import closed_form_line, gain_line, run_rows, workload_line
from perfmodel import (
    ConfigError,
    Scenario,
    Simulation,
    Traffic,
    speculation,
    without_speculation,
)
from perfmodel.reports import serving_dict, simulation_dict, workload_dict
from perfmodel.serving import (
    RoundTimes,
    Serving,
    TrafficShape,
    compared_gammas,
    scenario_acceptance,
    simulate_requests,
)
from perfmodel.specs import parse_slo

LOAD = 0.8  # of a service without speculation, if no rate is given
SPREADS = ("prompt_cv", "output_cv")


def show() -> None:
    """Draw this part of Frontier."""
    values = st.session_state["values"]
    scenario = scenario_of(values)
    flags = _inputs(scenario)
    try:
        result = simulated(values, tuple(flags.items()), st.session_state["trace"])
    except ConfigError as error:
        message = str(error)
        for name, _ in unpack_files(st.session_state["trace"]):
            message = message.replace(str(_stored(st.session_state["trace"])), name[:80])
        show_error(message)
        return
    if scenario.plan.speculates and len(result["runs"]) == 1:
        st.info("The draft's acceptance is unknown, so only plain decoding is simulated.")
    st.markdown(plain(workload_line(result["workload"])))
    _figures(result)
    for gain in result["gains"]:
        st.markdown(plain(gain_line(gain)))
    colour, slo = charts.plan_colour(scenario), parse_slo(st.session_state["slo"])
    show_chart(percentiles(result, slo, colour=colour), "percentiles")
    show_table(text_rows(("", *(run["label"] for run in result["runs"])), run_rows(result)))
    for line in (closed_form_line(result), result["evidence"]["sentence"], *result["notes"]):
        st.caption(plain(line))
    st.caption("The same on the command line")
    st.code(_command(values, flags), language="bash", wrap_lines=True)


def _inputs(scenario: Scenario) -> dict[str, Any]:
    """Draw the inputs; returns the flags of `specroof simulate`, without the trace."""
    state = st.session_state
    drawn: dict[str, Any] = {"disabled": bool(state["trace"])}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        shapes = {str(shape): str(shape) for shape in TrafficShape}
        widgets.select("arrivals", "Arrivals", list(shapes), **drawn)
        widgets.number("rate", "Requests/s (0: automatic)", step=0.5, **drawn)
        widgets.count("requests", "Requests, at most", step=1000)
        widgets.number("prompt_cv", "Spread of prompts", step=0.25, help=SPREAD, **drawn)
        widgets.number("output_cv", "Spread of outputs", step=0.25, help=SPREAD, **drawn)
    trace = kept_files(
        "trace",
        "trace_file",
        "or a trace of your own requests (CSV or JSON lines)",
        type=["csv", "jsonl", "json"],
        help="Columns arrival_s, prompt_tokens and output_tokens, or those of the traces of Azure, "
        "BurstGPT, Splitwise, Vidur, Mooncake, Qwen-Bailian and ShareGPT.",
    )
    if scenario.plan.draft != "none":
        st.toggle("Also choose γ in every round", key="schedule")
    flags: dict[str, Any] = {"requests": state["requests"]}
    if not trace:
        flags |= {"rate": state["rate"] or _usual_rate(scenario)}
        flags |= {} if state["arrivals"] == "poisson" else {"arrivals": str(state["arrivals"])}
        flags |= {key: state[key] for key in SPREADS if state[key]}
        if not state["rate"]:
            st.caption(
                f"{flags['rate']:.3g} requests/s is {LOAD:.0%} of what a saturated service "
                "without speculation finishes."
            )
    if state["prompt_mix"].strip():
        st.caption("Prompts have the mean length of the distribution, and the spread above.")
    return flags | ({"schedule": True} if state["schedule"] else {})


SPREAD = "Coefficient of variation of the lengths, which are lognormal; 0: all are equal."


def _usual_rate(scenario: Scenario) -> float:
    """A share of the rate at which a service without speculation is saturated. [1/s]"""
    rate = float(speculation.service(without_speculation(scenario)).requests_per_s)
    return float(f"{LOAD * rate:.3g}")


@st.cache_data(max_entries=16, show_spinner="Simulating requests")
def simulated(values: Values, flags: Values, trace: str) -> dict[str, Any]:
    """The output of `specroof simulate --json` for these flags and a packed trace.

    Raises `ConfigError` if an input is not valid, or nothing fits.
    """
    scenario, given = scenario_of(values), dict(flags)
    for key in ("rate", "requests", *SPREADS):
        low, high = RANGES[key]
        if not low <= given.get(key, low) <= high:
            raise ConfigError(f"{key}={given[key]:g} is not valid; use {low:g} to {high:g}")
    if given["requests"] != int(given["requests"]):
        raise ConfigError(f"requests={given['requests']:g} is not valid; use a whole number")
    known = scenario.acceptance is not None or scenario.curve is not None
    if not known:
        scenario = without_speculation(scenario)
    schedule = bool(given.get("schedule")) and known and scenario.plan.draft != "none"
    work = scenario.workload
    simulation = Simulation(
        traffic=Traffic(
            requests=given["requests"],
            path=_stored(trace),
            rate=given.get("rate", 1.0),
            arrivals=given.get("arrivals", "poisson"),
            prompt_tokens=work.prompt_tokens,
            output_tokens=work.output_tokens,
            prompt_cv=given.get("prompt_cv", 0.0),
            output_cv=given.get("output_cv", 0.0),
            prefix_hit_rate=work.prefix_hit_rate,
        ),
        serving=Serving(
            max_batch=work.batch,
            token_budget=scenario.engine.prefill_chunk_tokens,
            prefill=work.prefill,
        ),
        process=scenario_acceptance(scenario),
        slo=parse_slo(str(dict(values).get("slo", ""))),
    )
    times = RoundTimes(scenario, max_batch=work.batch)
    runs = [
        simulate_requests(scenario, simulation, gammas=gammas, times=times)
        for gammas in compared_gammas(scenario, schedule=schedule)
    ]
    return simulation_dict(
        scenario,
        [serving_dict(run, timeline=False) for run in runs],
        workload_dict(runs[0].stats),
        seed=0,
        exact=False,
        token_budget=scenario.engine.prefill_chunk_tokens,
    )


def _stored(trace: str) -> str | None:
    """Path of an uploaded trace in the session's folder; None if there is none."""
    for name, content in unpack_files(trace):
        path = session_folder() / f"trace{Path(name).suffix[:8]}"
        path.write_bytes(content)
        return str(path)
    return None


def _figures(result: dict[str, Any]) -> None:
    """Goodput and the slowest requests of every run."""
    limited = st.session_state["slo"].strip()
    figures: list[tuple[str, str, str | None]] = []
    for run in result["runs"]:
        label = run["label"]
        if limited:
            within = f"{run['good_share']:.1%} of the requests are within the SLO"
            figures.append((f"Goodput, {label}", f"{run['goodput_rps']:.3g}/s", within))
        slow = run["latency"]["p99_s"]
        slow_text = "unknown" if slow is None else f"{slow:.3g} s"
        help_text = "99 % of the requests take at most this long, from arrival to last token"
        figures.append((f"Whole request p99, {label}", slow_text, help_text))
    show_metrics(figures)
    if not limited:
        st.caption("With an SLO, in the sidebar, goodput counts the requests within it.")


def _command(values: Values, flags: dict[str, Any]) -> str:
    command = shown_paths(command_text(values, "simulate"))
    words = [f"--{key.replace('_', '-')} {value}" for key, value in flags.items() if value != ""]
    words = [word.replace(" True", "") for word in words]
    names = [name for name, _ in unpack_files(st.session_state["trace"])]
    return " ".join([command, *words, *(f"--traffic {shlex.quote(name)}" for name in names)])
