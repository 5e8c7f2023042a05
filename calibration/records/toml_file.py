"""Write catalog files with tomlkit: a comment header, tables, and one array row per line."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import tomlkit
from tomlkit.items import Item, Table


def toml_text(values: Mapping[str, Any], *, header: str) -> str:
    """A TOML document: `header` as comment lines, then the values in order.

    These are scalars, strings, arrays (nested or numpy), and after them mappings (tables) and lists
    of mappings (arrays of tables).
    """
    document = tomlkit.document()
    for line in header.strip().splitlines():
        document.add(tomlkit.comment(line))
    document.add(tomlkit.nl())
    for key, value in values.items():
        document.add(key, _item(value))
    return tomlkit.dumps(document)


def with_table(text: str, parent: str, name: str, values: Mapping[str, Any], *, note: str) -> str:
    """The document with `[parent.name]` added or replaced; the rest is unchanged."""
    document = tomlkit.parse(text)
    if parent not in document:
        document.add(parent, tomlkit.table(is_super_table=True))
    table = tomlkit.table()
    table.add(tomlkit.comment(note))
    for key, value in values.items():
        table.add(key, _item(value))
    table.add(tomlkit.nl())
    document[parent][name] = table  # type: ignore[index]
    return tomlkit.dumps(document).rstrip("\n") + "\n"


def significant(value: float, digits: int) -> float:
    """The value rounded to `digits` significant digits."""
    return float(f"{value:.{digits}g}")


def fields_of(table: Any) -> dict[str, Any]:
    """Fields of a dataclass of numbers and arrays, rounded to six significant digits."""
    return {name: compact(getattr(table, name)) for name in table.__dataclass_fields__}


def compact(value: Any, digits: int = 6) -> Any:
    """A number or array with whole numbers as int and others rounded to `digits`."""
    if isinstance(value, np.ndarray | list | tuple):
        return [compact(one, digits) for one in value]
    if isinstance(value, str):
        return value
    rounded = value if float(value).is_integer() else significant(value, digits)
    return int(rounded) if float(rounded).is_integer() else rounded


def _item(value: Any) -> Item:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, Mapping) and not isinstance(value, Item):
        return _table(value)
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        tables = tomlkit.aot()
        for one in value:
            tables.append(_table(one))
        return tables
    if isinstance(value, list | tuple):
        array = tomlkit.array()
        for one in value:
            array.append(_item(one))
        array.multiline(any(isinstance(one, list | tuple) for one in value))
        return array
    item: Item = tomlkit.item(value)
    return item


def _table(values: Mapping[str, Any]) -> Table:
    only_tables = all(isinstance(v, Mapping) and not isinstance(v, Item) for v in values.values())
    table = tomlkit.table(is_super_table=bool(values) and only_tables)
    for key, value in values.items():
        table.add(key, _item(value))
    return table
