"""Types of the fields of `ScenarioInput`: values as flags, TOML and CSV write them."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from perfmodel.specs.draft import MAX_GAMMA
from perfmodel.units import parse_number

MAX_COUNT = 1 << 40


def whole_number(value: Any) -> Any:
    """A whole number, also in the forms of CSV and TOML ("64", 64.0, "32_000")."""
    if isinstance(value, bool):
        raise ValueError("must be a whole number, not true or false")
    if isinstance(value, str):
        try:
            value = parse_number(value)
        except ValueError:
            raise ValueError("must be a whole number such as 32000") from None
    if isinstance(value, float):
        if not math.isfinite(value) or value % 1:
            raise ValueError("must be a whole number")
        return int(value)
    return value


def number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    if isinstance(value, str):
        try:
            return parse_number(value)
        except ValueError:
            raise ValueError("must be a finite number such as 0.8") from None
    return value


def rates(value: Any) -> Any:
    """Rates of the draft positions; text is a list such as "0.8,0.7"."""
    rates = value
    if isinstance(value, str):
        try:
            rates = tuple(parse_number(part) for part in value.split(","))
        except ValueError:
            raise ValueError("must be a list of numbers such as 0.8,0.7") from None
    if isinstance(rates, list | tuple) and len(rates) > MAX_GAMMA:
        raise ValueError(f"has {len(rates):,} positions; give at most {MAX_GAMMA}")
    return rates


def budget(value: Any) -> Any:
    """A number of tokens, or a share of the context such as "5%"."""
    if not (isinstance(value, str) and value.strip().endswith("%")):
        tokens = whole_number(value)
        if not isinstance(tokens, int):
            raise ValueError("must be a whole number such as 512, or a share such as 5%")
        if not 1 <= tokens <= MAX_COUNT:
            raise ValueError(f"must be from 1 to {MAX_COUNT:,}")
        return tokens
    try:
        share = parse_number(value.strip().removesuffix("%"))
    except ValueError:
        share = 0.0
    if not 0 < share <= 100:
        raise ValueError("must be a number of tokens, or a share of the context such as 5%")
    return f"{share:.10g}%"


Count = Annotated[int, BeforeValidator(whole_number), Field(ge=1, le=MAX_COUNT)]
Budget = Annotated[int | str, BeforeValidator(budget)]
Name = Annotated[str, Field(min_length=1, max_length=512)]


def scenario_field(
    panel: str, metavar: str, description: str, default: Any = None, *, otherwise: str = ""
) -> Any:
    """A field with its text for `--help` and the docs; `otherwise` describes what None means."""
    return Field(
        default,
        description=description,
        json_schema_extra={"panel": panel, "metavar": metavar, "otherwise": otherwise},
    )
