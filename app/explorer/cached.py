"""Results shared by views, cached in memory by scenario values."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app.explorer.state import Values
from calibration.records import (
    PublishedRow,
    RowError,
    h200_rows,
    magicdec_rows,
    predict_row,
    row_error,
)
from perfmodel import (
    ConfigError,
    Interval,
    ModelSpec,
    Recommendation,
    RoundEstimate,
    Scenario,
    estimate,
    find_plan,
    parse_scenario,
    prediction_dict,
    speedup_interval,
)
from perfmodel.passes import largest_batch
from perfmodel.scenario_input import OBSERVED_KEYS

BAND_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BAND_GAMMAS = tuple(range(1, 13))


def scenario_of(values: Values) -> Scenario:
    """The scenario of flat values; raises `ConfigError` if they contradict each other."""
    return parse_scenario(dict(values)).scenario()


def at_gamma(values: Values, gamma: int) -> Values:
    """The same scenario and α at another γ: a share of γ accepted drafts becomes its α."""
    stated = dict(values)
    observed = [key for key in OBSERVED_KEYS if key in stated]
    if observed and gamma != stated["gamma"]:
        acceptance = scenario_of(values).acceptance
        assert acceptance is not None
        stated["acceptance"] = acceptance.per_position[0]
        del stated[observed[0]]
    return tuple((stated | {"gamma": gamma}).items())


def most_ranks(model: ModelSpec, limit: int) -> int:
    """The most ranks, up to a limit, over which a model splits."""
    return next(n for n in range(limit, 0, -1) if model.splits_over(n))


def point_of(values: Values) -> RoundEstimate:
    """The prediction of flat values."""
    return estimate(scenario_of(values))


@st.cache_data(max_entries=256, show_spinner=False)
def prediction(values: Values) -> dict[str, Any]:
    """The output of `specroof predict --json`."""
    return prediction_dict(point_of(values))


@st.cache_data(max_entries=64, show_spinner=False)
def recommendation(
    flags: Values, objective: str, price: float | None = None, runs_on: str = ""
) -> Recommendation:
    """The recommendation for flags of `specroof recommend`."""
    return find_plan(dict(flags), objective=objective, price_per_hour=price, runs_on=runs_on)


@st.cache_data(max_entries=32, show_spinner=False)
def bands(values: Values) -> dict[str, tuple[tuple[float, ...], tuple[Interval, ...]]]:
    """90 % intervals of the speedup over batch and over γ, where it fits and α is known."""
    most = largest_batch(scenario_of(values))
    batches = [b for b in BAND_BATCHES if b < most] + [most] * (most > 0)
    axes = {"batch": batches, "gamma": BAND_GAMMAS}
    result = {}
    for key, points in axes.items():
        pairs = [(v, speedup_interval(_at(values, key, v))) for v in points]
        known = [(float(v), i) for v, i in pairs if i is not None]
        result[key] = (tuple(v for v, _ in known), tuple(i for _, i in known))
    return result


def _at(values: Values, key: str, value: int) -> Scenario:
    return scenario_of(tuple((dict(values) | {key: value}).items()))


@st.cache_data(show_spinner=False)
def bundled_rows() -> list[PublishedRow]:
    """All bundled measurements."""
    return [*magicdec_rows(), *h200_rows()]


@st.cache_data(max_entries=16, show_spinner=False)
def row_errors(rows: tuple[PublishedRow, ...]) -> list[RowError]:
    """Errors of rows with their engine's profile.

    Raises `ConfigError` if a row is not a valid scenario; the message gives its number.
    """
    errors = []
    for number, row in enumerate(rows, start=1):
        try:
            errors.append(row_error(row, predict_row(row)))
        except ConfigError as error:
            raise ConfigError(f"row {number}: {error}") from error
    return errors
