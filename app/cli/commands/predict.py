"""`specroof predict`: one scenario as a table or JSON, or one JSON object per CSV row."""

from __future__ import annotations

from typing import Any

import perfmodel
from app.cli.csv_rows import csv_rows
from app.cli.output import console, json_line, print_json
from app.cli.overrides import override, stated_values
from perfmodel import (
    ConfigError,
    NoFeasiblePlan,
    estimate,
    prediction_dict,
)


def predict_one(flags: dict[str, str], scenario: str | None, *, as_json: bool) -> int:
    """Print one prediction; 3 if the GPUs cannot hold it."""
    prediction = _prediction(stated_values(scenario, flags), origin=scenario or "")
    if as_json:
        print_json(prediction)
    else:
        from app.render.prediction_tables import print_prediction

        print_prediction(prediction, console())
    if not prediction["feasible"]:
        raise NoFeasiblePlan(prediction["reason"])
    return 0


def predict_rows(flags: dict[str, str], scenario: str | None, source: str) -> int:
    """One JSON object per row, in order; a bad row says so on its line, and the end is then 2."""
    base = stated_values(scenario, flags)
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
        raise ConfigError(f"{bad} bad {'row' if bad == 1 else 'rows'} in {_shown(source)}")
    return 0


def _prediction(values: dict[str, Any], *, origin: str = "") -> dict[str, Any]:
    return prediction_dict(estimate(perfmodel.parse_scenario(values, origin=origin).scenario()))


def _shown(source: str) -> str:
    return "stdin" if source == "-" else source
