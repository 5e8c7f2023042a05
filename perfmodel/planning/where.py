"""`Where`: conditions on the columns of a sweep, such as "speedup>1.2, tpot_s<0.03"."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel._typing import Bools
from perfmodel.errors import ConfigError, printable, unknown_name
from perfmodel.units import parse_number

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "=": operator.eq,
}
_CONDITION = re.compile(r"\s*([a-z_]+)\s*(<=|>=|!=|<|>|=)\s*(.*?)\s*")


@dataclass(frozen=True, slots=True)
class Where:
    """Conditions that all must hold; unknown values match none."""

    conditions: tuple[tuple[str, str, str], ...] = ()  # column, operator, value

    @classmethod
    def parse(cls, text: str) -> Where:
        """The conditions of a text; a `ConfigError` if one is malformed."""
        conditions = []
        for part in text.split(","):
            match = _CONDITION.fullmatch(part)
            if match is None or not match[3]:
                raise ConfigError(
                    f"where={printable(part.strip())!r} is not a condition; write COLUMN, one of "
                    f"{' '.join(_OPERATORS)}, and a value, such as speedup>1.2"
                )
            conditions.append((match[1], match[2], match[3]))
        return cls(tuple(conditions))

    def chosen(self, columns: Mapping[str, NDArray[Any]], shape: tuple[int, ...]) -> Bools:
        """Where all conditions hold, of this shape.

        Raises `ConfigError` if a column is unknown, or a number is compared with a text.
        """
        chosen: Bools = np.ones(shape, bool)
        for name, symbol, value in self.conditions:
            if name not in columns:
                raise ConfigError(f"where: {unknown_name('column', name, list(columns))}")
            chosen = chosen & _holds(columns[name], name, symbol, value)
        return chosen


def _holds(values: NDArray[Any], name: str, symbol: str, text: str) -> Bools:
    compare = _OPERATORS[symbol]
    if values.dtype == object or values.dtype == bool:
        if symbol not in ("=", "!="):
            raise ConfigError(f"where: {name} is a text; compare it with = or !=")
        if values.dtype == bool and text.lower() not in ("true", "false"):
            raise ConfigError(f"where: {name} is true or false, not {printable(text)!r}")
        words = np.vectorize(lambda value: str(value).lower(), otypes=[object])(values)
        return np.asarray(compare(words, text.lower()), bool)
    try:
        number = parse_number(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise ConfigError(f"where: {name} is a number, not {printable(text)!r}")
    return np.asarray(compare(values, number) & ~np.isnan(values), bool)
