"""`specroof predict`: predict one scenario, or every row of a CSV file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import OF_PROMPTS, AsJson, ScenarioFile, option, parse_overrides
from app.cli.output import console, json_line, print_json

if TYPE_CHECKING:
    from perfmodel.specs import SLO


def predict(
    context: typer.Context,
    scenario: ScenarioFile = None,
    rows: Annotated[
        str | None,
        option(
            "CSV|-",
            "CSV with a scenario per row (- for stdin); prints one JSON object per row. Flags "
            "apply to every row.",
            "--from",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict one scenario: step times, the round, speedup and memory."""
    from perfmodel import NoFeasiblePlan

    values = parse_overrides(scenario, context.obj)
    if rows is not None:
        _predict_rows(values, rows)
        return
    prediction = _prediction(values, stated=context.obj, origin=scenario or "")
    if as_json:
        print_json(prediction)
    else:
        from app.render.prediction_tables import print_prediction

        print_prediction(prediction, console())
    if not prediction["feasible"]:
        raise NoFeasiblePlan(prediction["reason"])


def _predict_rows(base: dict[str, Any], source: str) -> None:
    """Print one JSON object per row, in order; a bad row prints its error and makes the exit 2."""
    from app.cli.table_files.csv_rows import csv_rows
    from perfmodel import ConfigError
    from perfmodel.flat_values import override

    bad = 0
    for number, cells in csv_rows(source):
        try:
            if isinstance(cells, ConfigError):
                raise cells
            result = _prediction(override(base, cells), stated=cells)
        except ConfigError as error:
            bad += 1
            result = {"error": str(error), "feasible": False}
        print(json_line({"row": number, **result}))
    if bad:
        name = "stdin" if source == "-" else source
        raise ConfigError(f"{bad} bad {'row' if bad == 1 else 'rows'} in {name}; see the output")


def _prediction(
    values: dict[str, Any], *, stated: Mapping[str, Any], origin: str = ""
) -> dict[str, Any]:
    """The prediction; its notes name what was stated in flags or cells without effect."""
    import perfmodel
    from perfmodel.specs import check_decodes, parse_slo

    parsed = perfmodel.parse_scenario(values, origin=origin)
    check_decodes(parsed.output_tokens)
    scenario = parsed.scenario()
    prediction = perfmodel.prediction_dict(perfmodel.estimate(scenario))
    prediction["notes"] += _missed_limits(prediction, parse_slo(parsed.slo))
    prediction["notes"] += parsed.unused(scenario).values()
    effects = {
        "prefill": "has no effect",
        "prefix_hit_rate": "has no effect but on the time to the first token",
    }
    prediction["notes"] += [
        f"{name} {effects[name]}, as predict covers decoding alone; recommend and simulate "
        f"include prompts"
        for name in OF_PROMPTS
        if stated.get(name)
    ]
    return prediction


def _missed_limits(prediction: dict[str, Any], slo: SLO) -> list[str]:
    """A note for each limit of the SLO that the prediction exceeds."""
    from perfmodel.units import format_seconds

    times = {"ttft": (prediction["ttft_s"], slo.ttft_s), "tpot": (prediction["tpot_s"], slo.tpot_s)}
    notes = [
        f"the SLO is not met: {name} is {format_seconds(value)}, above {format_seconds(limit)}"
        for name, (value, limit) in times.items()
        if limit is not None and value is not None and value > limit
    ]
    memory = prediction["memory"]
    share = memory["total_bytes"] / memory["capacity_bytes"]
    if slo.memory_fraction is not None and share > slo.memory_fraction:
        notes.append(f"the SLO is not met: memory is {share:.1%}, above {slo.memory_fraction:.1%}")
    return notes
