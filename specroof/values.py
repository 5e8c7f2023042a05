"""From what the four functions take to flat scenario values, with checks."""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterable, Mapping
from itertools import product
from typing import Any

from perfmodel import (
    ConfigError,
    Recommendation,
    RoundEstimate,
    Scenario,
    ScenarioInput,
    parse_scenario,
    scenario_dict,
)
from perfmodel.flat_values import override
from perfmodel.planning import ARRAY_AXES, LOOP_AXES, Candidate

# Accepted first arguments: the name of a target model, values by name, a scenario, or a result.
Base = str | Mapping[str, Any] | Scenario | RoundEstimate | Candidate | Recommendation


def scenario_of(base: Base, values: Mapping[str, Any]) -> Scenario:
    base = planned(base)
    if isinstance(base, Scenario) and not values:
        return base
    return parse_scenario(values_of(base, values)).scenario()


def values_of(base: Base, values: Mapping[str, Any]) -> dict[str, Any]:
    """Flat values of a base, overridden by `values`."""
    base = planned(base)
    if isinstance(base, Scenario):
        return override(scenario_dict(base), values)
    if isinstance(base, str):
        return override({"target": base}, values)
    if not isinstance(base, Mapping):
        raise ConfigError(
            f"{base!r} is not a model name, a mapping of values, a scenario or a result"
        )
    return override(base, values)


def planned(base: Base) -> str | Mapping[str, Any] | Scenario:
    """The scenario of a result; other values unchanged."""
    if isinstance(base, Recommendation):
        base = base.best
    return base.scenario if isinstance(base, RoundEstimate | Candidate) else base


def _looped(axes: Mapping[str, list[Any]]) -> tuple[str, ...]:
    """The axes that are evaluated one by one; KV budgets are if one is a share of the context."""
    shares = any("%" in str(budget) for budget in axes.get("kv_budget", ()))
    return (*LOOP_AXES, "kv_budget") if shares else LOOP_AXES


def check_some_point(fixed: Mapping[str, Any], axes: Mapping[str, list[Any]]) -> None:
    """Raise the first error if no point of the grid is valid, such as for an unknown GPU."""
    chosen = {}
    for name, several in axes.items():
        if None in several:
            raise ConfigError(f"{name} contains None; give every value, or leave the axis out")
        if name in ARRAY_AXES and several and name not in _looped(axes):
            try:
                chosen[name] = min(several) if name == "kv_budget" else max(several)
            except TypeError as error:
                raise ConfigError(
                    f"{name}={several!r} mixes numbers and text; use numbers"
                ) from error
    loops = {name: several for name, several in axes.items() if name in _looped(axes)}
    fault = None
    for values in product(*loops.values()):
        point = dict(fixed) | chosen | dict(zip(loops, values, strict=True))
        if ":" in (draft := str(point.get("draft", ""))):
            point["draft"], point["draft_policy"] = draft.split(":", 1)
        try:
            parse_scenario(point).scenario()
        except ConfigError as error:
            fault = fault or error
        else:
            return
    if fault is not None:
        raise fault


def check_numbers(values: Mapping[str, Any], *, whole: Container[str]) -> None:
    for name, value in values.items():
        kind, what = (int, "a whole number") if name in whole else ((int, float), "a number")
        if isinstance(value, bool) or not isinstance(value, kind) or value < 0:
            raise ConfigError(f"{name}={value!r} is not {what} of at least 0")


def is_several(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes)


def list_fields(function: Any, searched: tuple[str, ...] = ()) -> None:
    """Add the scenario fields to a function's signature, for completion and `help`."""
    *first, rest = inspect.signature(function).parameters.values()
    listed = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if name in searched else field.default,
        )
        for name, field in ScenarioInput.model_fields.items()
        if name != "target"
    ]
    function.__signature__ = inspect.Signature([*first, *listed, rest])
