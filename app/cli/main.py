"""`specroof`: the command line. Results go to stdout, all else to stderr.

Only typer is imported here; a handler imports what it needs when it runs, so `--help` is instant
and `predict` works where torch is absent. Exit codes: 0 fine, 1 internal error, 2 usage or bad
input, 3 infeasible, 4 outside tolerance, 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from app.cli.commands.run import run_app
from app.cli.declare_acceptance import calibrate
from app.cli.declare_validate import validate
from app.cli.options import ScenarioFile, with_scenario_flags

app = typer.Typer(
    name="specroof",
    help="Will speculative decoding pay for your long-context LLM?",
    add_completion=False,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON (docs/json.md).")]


class Kind(StrEnum):
    """What `list` can list."""

    gpus = "gpus"
    machines = "machines"
    models = "models"
    engines = "engines"
    scenarios = "scenarios"
    acceptance = "acceptance"


@app.command()
@with_scenario_flags
def predict(
    flags: dict[str, str],
    scenario: ScenarioFile = None,
    rows: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="CSV|-",
            help="One scenario a row, one JSON object a line; flags hold for all rows.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict one scenario: step times, round, speedup and memory."""
    from app.cli.commands import predict as command

    if rows is not None:
        raise typer.Exit(command.predict_rows(flags, scenario, rows))
    raise typer.Exit(command.predict_one(flags, scenario, as_json=as_json))


@app.command()
@with_scenario_flags
def sweep(
    flags: dict[str, str],
    scenario: ScenarioFile = None,
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv", metavar="FILE|-", help="Write every point as CSV.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict a grid: flags take lists 1,8,64 and ranges 1:16, 4000:32000:4000, 64:4096:x2."""
    from app.cli.commands import sweep as command

    raise typer.Exit(command.run_sweep(flags, scenario, csv=csv, as_json=as_json))


@app.command()
@with_scenario_flags
def simulate(
    flags: dict[str, str],
    scenario: ScenarioFile = None,
    traffic: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Recorded requests: CSV or JSON lines (docs/commands.md).",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="RPS", help="Draw arrivals at this mean rate.", show_default=False),
    ] = None,
    arrivals: Annotated[
        str, typer.Option(metavar="KIND", help="poisson, bursty, regular or at-once.")
    ] = "poisson",
    burst_factor: Annotated[
        float, typer.Option(metavar="X", help="Bursty: the high rate over the low one.")
    ] = 8.0,
    burst_s: Annotated[
        float, typer.Option("--burst-s", metavar="S", help="Bursty: mean spell at either rate.")
    ] = 30.0,
    requests: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many; 10,000 drawn ones, or the whole trace, by default.",
            show_default=False,
        ),
    ] = None,
    prompt_cv: Annotated[
        float, typer.Option(metavar="X", help="Spread of prompts over their mean (lognormal).")
    ] = 0.0,
    output_cv: Annotated[
        float, typer.Option(metavar="X", help="Spread of outputs over their mean (lognormal).")
    ] = 0.0,
    eos: Annotated[
        float, typer.Option(metavar="P", help="Chance that a token ends its sequence early.")
    ] = 0.0,
    acceptance_spread: Annotated[
        float, typer.Option(metavar="X", help="Standard deviation of acceptance over sequences.")
    ] = 0.0,
    acceptance_trace: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Accepted drafts a round, one a line.", show_default=False
        ),
    ] = None,
    token_budget: Annotated[
        int, typer.Option(metavar="TOKENS", help="Most tokens in one pass, prompts included.")
    ] = 8192,
    finished: Annotated[
        str,
        typer.Option(
            metavar="compaction|padding|graphs", help="A fixed batch's finished sequences."
        ),
    ] = "compaction",
    schedule: Annotated[
        bool, typer.Option("--schedule", help="Also let gamma follow batch and context.")
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Draw every round of every request; slower.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of all that is drawn.")] = 0,
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv", metavar="FILE|-", help="Write the timeline as CSV.", show_default=False
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a page with charts.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Play a batch to its end, or requests as they arrive, with and without speculation."""
    from app.cli.commands import simulate as command
    from app.cli.simulation_options import SimulationOptions

    options = SimulationOptions(
        traffic=traffic,
        rate=rate,
        arrivals=arrivals,
        burst_factor=burst_factor,
        burst_s=burst_s,
        requests=requests,
        prompt_cv=prompt_cv,
        output_cv=output_cv,
        eos=eos,
        acceptance_spread=acceptance_spread,
        acceptance_trace=acceptance_trace,
        token_budget=token_budget,
        finished=finished,
        schedule=schedule,
        exact=exact,
        seed=seed,
    )
    raise typer.Exit(
        command.run_simulate(flags, scenario, options, csv=csv, html=html, as_json=as_json)
    )


@app.command()
@with_scenario_flags
def recommend(
    flags: dict[str, str],
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
        int, typer.Option(metavar="N", min=1, help="With --traffic: at most so many of them.")
    ] = 20_000,
    as_json: AsJson = False,
) -> None:
    """Choose draft, gamma, KV budget and TP for a workload, and say why."""
    from app.cli.commands import recommend as command

    raise typer.Exit(
        command.run_recommend(
            flags,
            scenario,
            objective=objective,
            html=html,
            traffic=traffic,
            requests=requests,
            as_json=as_json,
        )
    )


@app.command()
@with_scenario_flags
def export(
    flags: dict[str, str],
    scenario: ScenarioFile = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="ENGINE", help="vllm, sglang, tensorrt-llm or specroof.", show_default=False
        ),
    ] = None,
    recommended: Annotated[
        bool, typer.Option("--recommended", help="Export the plan that `recommend` chooses.")
    ] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Print which engine runs which draft choice.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write there, not to stdout.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a plan as an engine's configuration."""
    from app.cli.commands import export as command

    if matrix:
        raise typer.Exit(command.print_matrix(as_json=as_json))
    raise typer.Exit(
        command.run_export(
            flags, scenario, to=to, recommended=recommended, output=output, as_json=as_json
        )
    )


@app.command("list")
def list_catalog(
    kind: Annotated[Kind, typer.Argument(help="What to list.")], as_json: AsJson = False
) -> None:
    """List the catalog, with figures and their sources."""
    from app.cli.commands import listing

    raise typer.Exit(listing.run_list(kind.value, as_json=as_json))


@app.command()
def explore(
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port on localhost.")] = 8501,
    browser: Annotated[bool, typer.Option(help="Open the browser.")] = True,
) -> None:
    """Open the explorer: every input as a slider, every answer as a chart, on this machine only."""
    from app.cli.commands import explore as command

    command.run_explore(port=port, browser=browser)


app.add_typer(calibrate, name="calibrate")
app.add_typer(validate, name="validate")
app.add_typer(run_app, name="run")


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; an expected error is one line on stderr."""
    try:
        return int(app(arguments, standalone_mode=False) or 0)
    except (typer.Abort, KeyboardInterrupt):  # which of the two depends on Typer's version
        return 130
    except Exception as error:
        if hasattr(error, "format_message"):  # Typer's own usage errors
            return _fail(error.format_message(), 2)
        from perfmodel import SpecroofError

        if isinstance(error, SpecroofError):
            return _fail(str(error), error.exit_code)
        raise


def _fail(message: str, code: int) -> int:
    """Print one line, whatever the message holds."""
    line = " ".join(message.split())
    print("error: " + "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
    return code


def main() -> NoReturn:
    """Entry point of the `specroof` command."""
    # A reader that leaves, as in `specroof sweep ... | head`, ends the writer without a word.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(run(sys.argv[1:] or ["--help"]))


if __name__ == "__main__":
    main()
