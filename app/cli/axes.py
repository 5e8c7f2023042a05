"""Lists and ranges in a flag's value: `1,8,64`, `1:16`, `4000:32000:4000`, `64:4096:x2`."""

from __future__ import annotations

import math
from typing import Any

from perfmodel import ConfigError
from perfmodel.units import ambiguous, parse_number

NUMBER_AXES = ("batch", "prompt_tokens", "gamma", "kv_budget", "tp", "ep", "dp", "draft_tp")
MAX_VALUES = 10_000


def parse_axis(name: str, text: str) -> list[Any]:
    """The distinct values of an axis, in the order given: numbers on `NUMBER_AXES`, else text.

    KV budgets may also be shares of the context, such as `5%`, which stay text.

    Raises
    ------
    ConfigError
        As for `parse_numbers`.
    """
    if name == "kv_budget" and "%" in text:
        return [
            value
            for term in _terms(name, text)
            for value in ([term] if term.endswith("%") else parse_numbers(name, term))
        ]
    return parse_numbers(name, text) if name in NUMBER_AXES else _terms(name, text)


def parse_numbers(name: str, text: str) -> list[int]:
    """The distinct whole numbers of a list of numbers and ranges, in the order given.

    A range `a:b` includes both ends; `a:b:step` adds the step, `a:b:xN` multiplies by N.

    Raises
    ------
    ConfigError
        For an empty list, a term that is neither a number nor a range, or too many values.
    """
    values: list[int] = []
    for term in _terms(name, text):
        values += _range(name, term) if ":" in term else [_integer(name, term, term)]
        if len(values) > MAX_VALUES:
            raise ConfigError(
                f"{name}={_shown(text)} has more than {MAX_VALUES:,} values; give fewer"
            )
    return list(dict.fromkeys(values))


def _terms(name: str, text: str) -> list[str]:
    terms = [term.strip() for term in text.split(",")]
    if not all(terms):
        raise ConfigError(f"{name}={_shown(text)} has an empty value; remove the extra comma")
    return list(dict.fromkeys(terms))


def _range(name: str, term: str) -> list[int]:
    parts = term.split(":")
    if len(parts) > 3:
        raise ConfigError(
            f"{name}: {_shown(term)} is not a valid range; write a:b, a:b:step or a:b:xN"
        )
    first, last = (_integer(name, part, term) for part in parts[:2])
    if last < first:
        raise ConfigError(
            f"{name}: {_shown(term)} is empty because {last:,} is below {first:,}; swap the ends"
        )
    if len(parts) == 3 and parts[2].startswith("x"):
        return _geometric(name, term, first, last, parts[2][1:])
    step = _integer(name, parts[2], term) if len(parts) == 3 else 1
    if step < 1:
        raise ConfigError(f"{name}: the step of {_shown(term)} must be at least 1")
    if (last - first) / step > MAX_VALUES:
        raise ConfigError(
            f"{name}: {_shown(term)} has more than {MAX_VALUES:,} values; use a larger step"
        )
    return list(range(first, last + 1, step))


def _geometric(name: str, term: str, first: int, last: int, text: str) -> list[int]:
    factor = _number(name, text, term)
    if factor < 1.01 or first < 1:
        raise ConfigError(
            f"{name}: {_shown(term)} does not grow; start at 1 or more, with a factor of at least "
            f"1.01"
        )
    values, value = [], float(first)
    while round(value) <= last:
        values.append(round(value))
        value *= factor
    return values


def _integer(name: str, text: str, term: str) -> int:
    if doubt := ambiguous(text):
        raise ConfigError(f"{name}: {_shown(text)} {doubt}")
    value = _number(name, text, term)
    if value % 1 or abs(value) > 2**53:
        raise ConfigError(f"{name}: {_shown(term)} is not valid; use whole numbers")
    return int(value)


def _number(name: str, text: str, term: str) -> float:
    try:
        value = parse_number(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(
            f"{name}: {_shown(term)} is neither a number nor a range a:b, a:b:step or a:b:xN"
        )
    return value


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")
