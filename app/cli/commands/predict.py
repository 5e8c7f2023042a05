"""`specroof predict`: one scenario as a table or JSON, or one JSON object per CSV row."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from app.cli.options import AsJson, ScenarioFile, parse_overrides
from app.cli.output import console, json_line, print_json


def predict(
    context: typer.Context,
    scenario: ScenarioFile = None,
    rows: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="CSV|-",
            help="One scenario per row, one JSON object per line; flags apply to every row.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Predict one scenario: step times, round, speedup and memory."""
    from perfmodel import NoFeasiblePlan

    values = parse_overrides(scenario, context.obj)
    if rows is not None:
        _predict_rows(values, rows)
        return
    prediction = _prediction(values, origin=scenario or "")
    if as_json:
        print_json(prediction)
    else:
        from app.render.prediction_tables import print_prediction

        print_prediction(prediction, console())
    if not prediction["feasible"]:
        raise NoFeasiblePlan(prediction["reason"])


def _predict_rows(base: dict[str, Any], source: str) -> None:
    """Print one JSON object per row, in order; a bad row becomes its error, and the end is 2."""
    from app.cli.csv_rows import csv_rows
    from perfmodel import ConfigError
    from perfmodel.flat_values import override

    bad = 0
    for number, cells in csv_rows(source):
        try:
            if isinstance(cells, ConfigError):
                raise cells
            result = _prediction(override(base, cells))
        except ConfigError as error:
            bad += 1
            result = {"error": str(error), "feasible": False}
        print(json_line({"row": number, **result}))
    if bad:
        name = "stdin" if source == "-" else source
        raise ConfigError(f"{bad} bad {'row' if bad == 1 else 'rows'} in {name}")


def _prediction(values: dict[str, Any], *, origin: str = "") -> dict[str, Any]:
    import perfmodel

    scenario = perfmodel.parse_scenario(values, origin=origin).scenario()
    return perfmodel.prediction_dict(perfmodel.estimate(scenario))
