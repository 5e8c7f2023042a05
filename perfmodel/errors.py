"""Expected errors, each printed as one line with its exit code, and the wording of such lines."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from datetime import date, time
from difflib import get_close_matches
from typing import Any

_MAX_SHOWN = 60
_MAX_LISTED = 120


class SpecroofError(Exception):
    """Base class of the errors that the command line prints as one line, without a traceback."""

    exit_code = 1


class ConfigError(SpecroofError):
    """Invalid input; the message names the value, what is wrong with it, and how to fix it."""

    exit_code = 2


class DoesNotFit(SpecroofError):
    """The scenario needs more memory than the GPUs have; the message itemises the need."""

    exit_code = 3


class NoFeasiblePlan(SpecroofError):
    """No candidate meets the SLO; the message names the plan that comes closest."""

    exit_code = 3


class OutsideTolerance(SpecroofError):
    """A validation exceeded its tolerance."""

    exit_code = 4


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that does not exist, with the closest names that do."""
    names = sorted(known)
    wanted = name.lower()
    longer = [one for one in names if one.startswith(wanted)] if len(wanted) > 1 else []
    near = get_close_matches(wanted, longer, n=4, cutoff=0.0)
    near += [one for one in get_close_matches(wanted, names, n=3, cutoff=0.4) if one not in near]
    if near:
        hint = f"did you mean {either(near[:4])}?"
    else:
        hint = f"use one of {textwrap.shorten(', '.join(names), _MAX_LISTED, placeholder=' ...')}"
    return ConfigError(f"unknown {kind} {name!r}; {hint}")


def either(words: Iterable[str]) -> str:
    """Alternatives as text: "a, b or c"."""
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def os_reason(error: OSError) -> str:
    """Why a file cannot be used, as the end of a sentence: "no such file or directory"."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def shown(value: object) -> str:
    """A value as it appears in a message: short, printable and on one line."""
    if isinstance(value, list | tuple | Mapping):
        kind = "an object" if isinstance(value, Mapping) else "a list"
        return f"{kind} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, date | time):  # of TOML
        return value.isoformat()
    text = repr(value[: 2 * _MAX_SHOWN] if isinstance(value, str) else value)
    return printable(text, limit=_MAX_SHOWN)


def printable(text: str, *, limit: int = 2 * _MAX_SHOWN) -> str:
    """The text cut to `limit` characters, with each unprintable one replaced by "?"."""
    clean = "".join(c if c.isprintable() else "?" for c in text[: 2 * limit])
    return clean if len(clean) <= limit else clean[:limit] + "..."


_REASONS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be finite",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must not be empty",
    "too_short": "must not be empty",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "none_required": "must be null",
}
_LIMITS = {"ge": "at least", "gt": "greater than", "le": "at most", "lt": "less than"}


def fault_reason(fault: Mapping[str, Any]) -> str:
    """The rule that one of pydantic's `ValidationError.errors()` states: "must be at least 1"."""
    kind, context = fault["type"], fault.get("ctx", {})
    if kind in _REASONS:
        return _REASONS[kind]
    for key, words in _LIMITS.items():
        if key in context:
            limit = context[key]
            return f"must be {words} {f'{limit:,}' if isinstance(limit, int) else f'{limit:g}'}"
    text = str(fault["msg"]).removeprefix("Value error, ")
    return re.sub("^[A-Z][a-z]+ should ", "must ", text)
