"""Read and check TOML tables: unknown keys are refused, and figures need a unit and a source.

A figure is an inline table, so that its unit and its source cannot be left out:

    hbm_bandwidth = { value = 2.039, unit = "TB/s", source = "NVIDIA A100 80GB datasheet, 2021" }

A table that fills a dataclass takes its schema from that dataclass (`build`).
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args, get_type_hints

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    StringConstraints,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from perfmodel._typing import Floats
from perfmodel.errors import ConfigError, fault_reason, printable, shown, unknown_name
from perfmodel.specs.labels import Origin
from perfmodel.units import GB, GIB, MB, MIB, TB, TFLOP, US

_Schema = TypeVar("_Schema", bound=BaseModel)
_Row = TypeVar("_Row")


# ---- types of entries -------------------------------------------------------------------------


def _numbers(value: Any) -> Floats:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError("must contain numbers in rows of equal length") from error


def _knots(value: Any) -> Floats:
    knots = _numbers(value)
    if knots.ndim != 1 or not knots.size or knots[0] <= 0 or np.any(np.diff(knots) <= 0):
        raise ValueError("must be a list of increasing positive numbers")
    return knots


Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Whole = Annotated[int, Strict()]
Text = Annotated[str, Strict(), StringConstraints(pattern=r"\S")]
Numbers = Annotated[Any, PlainValidator(_numbers)]
Knots = Annotated[Any, PlainValidator(_knots)]
# What a dataclass field accepts in a file, by its type; other types hold values already built.
_KINDS: dict[Any, Any] = {
    float: Number,
    int: Whole,
    str: Text,
    bool: Annotated[bool, Strict()],
    Origin: Origin,
    float | None: Number | None,
    tuple[float, float]: tuple[Number, Number],
    tuple[int, ...]: tuple[Annotated[int, Strict(), Field(ge=1)], ...],
    tuple[str, ...]: tuple[Text, ...],
    Mapping[str, str]: dict[str, Text],
    Floats: Numbers,
}


class Table(BaseModel):
    """A table of a catalog file; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Figure(Table):
    """A positive number with its unit and its source document; `si` is its value in SI units.

    A value above `most` is that of another unit, since it is far beyond any device.
    """

    units: ClassVar[dict[str, float]] = {}
    most: ClassVar[float] = math.inf

    value: Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
    unit: str
    source: Text

    @model_validator(mode="before")
    @classmethod
    def _is_table(cls, stated: Any) -> Any:
        if not isinstance(stated, dict):
            unit = next(iter(cls.units))
            example = f'{{ value = ..., unit = "{unit}", source = "..." }}'
            raise ValueError(f"needs a unit and a source; write {example}")
        return stated

    @field_validator("unit")
    @classmethod
    def _of_dimension(cls, unit: str) -> str:
        if unit not in cls.units:
            raise ValueError(f"must be one of {', '.join(cls.units)}")
        return unit

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.si > self.most:
            unit = list(self.units)[-1]
            most = self.most / self.units[unit]
            raise ValueError(f"must be at most {most:,.0f} {unit}; check its unit")
        return self

    @property
    def si(self) -> float:
        """The value in SI units."""
        return self.value * self.units[self.unit]


class Size(Figure):
    units, most = {"MB": MB, "MiB": MIB, "GiB": GIB, "GB": GB}, 1e5 * GB


class Bandwidth(Figure):
    units, most = {"GB/s": GB, "TB/s": TB}, 100.0 * TB


class Duration(Figure):
    units, most = {"us": US}, 1e6 * US


class Compute(Figure):
    units, most = {"TFLOP/s": TFLOP}, 1e5 * TFLOP


class Count(Figure):
    units = {"1": 1.0}

    @field_validator("value")
    @classmethod
    def _is_whole(cls, value: float) -> float:
        if not value.is_integer():
            raise ValueError("must be a whole number")
        return value


# ---- reading ----------------------------------------------------------------------------------


MAX_DOTS = 200


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The entries of a TOML document.

    Raises `ConfigError` if `text` is malformed or nested too deeply; `where` is the file named in
    the message.
    """
    # A dotted key takes time that is quadratic in its parts, and no file has such keys.
    lines = (line for line in text.split("\n") if line.count(".") > MAX_DOTS)
    parts = (part for line in lines for part in re.split(r"[=,{}\[\]]", line))
    if any(part.count(".") > MAX_DOTS for part in parts):
        raise ConfigError(f"{where}: not valid TOML: a key has more than {MAX_DOTS} parts")
    try:
        return tomllib.loads(text)
    except ValueError as error:  # malformed, or a number with thousands of digits
        if "set_int_max_str_digits" in str(error):
            raise ConfigError(f"{where}: a number has too many digits") from error
        raise ConfigError(f"{where}: not valid TOML: {printable(str(error))}") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply") from error


def read(schema: type[_Schema], entries: Mapping[str, Any], where: str) -> _Schema:
    """The entries as an instance of their schema; a `ConfigError` says what does not match."""
    try:
        return schema.model_validate(entries)
    except ValidationError as error:
        raise ConfigError(fault_line(error, schema, where)) from error


def build(
    row: Callable[..., _Row],
    entries: Mapping[str, Any],
    where: str,
    scaled: Mapping[str, tuple[str, float]] | None = None,
) -> _Row:
    """An instance of a dataclass, from a table whose keys are its fields.

    `scaled` leads from the suffix of a field in SI units to that of its key and the key's unit.
    Raises `ConfigError` if the table does not match the dataclass, or the dataclass refuses its
    values.
    """
    keys = {field.name: file_key(field.name, scaled or {}) for field in fields(row)}  # type: ignore[arg-type]
    checked = read(_schema_of(row, tuple(key for key, _ in keys.values())), entries, where)
    values = {
        name: getattr(checked, key) if unit is None else getattr(checked, key) * unit
        for name, (key, unit) in keys.items()
        if key in checked.model_fields_set
    }
    try:
        return row(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def build_rows(
    row: Callable[..., _Row],
    entries: Any,
    where: str,
    scaled: Mapping[str, tuple[str, float]] | None = None,
) -> tuple[_Row, ...]:
    """`build` for each table of a list."""
    if not isinstance(entries, list | tuple) or not all(isinstance(e, dict) for e in entries):
        raise ConfigError(f"{where} must be a list of tables")
    return tuple(build(row, each, f"{where}[{i}]", scaled) for i, each in enumerate(entries))


def file_key(field: str, scaled: Mapping[str, tuple[str, float]]) -> tuple[str, float | None]:
    """The key of a field in a file, and the key's unit; None for fields that are not scaled."""
    for ending, (unit_name, unit) in scaled.items():
        if field.endswith(ending):
            return field.removesuffix(ending) + unit_name, unit
    return field, None


@cache
def _schema_of(row: Any, keys: tuple[str, ...]) -> type[BaseModel]:
    hints, columns = get_type_hints(row), {}
    for field, key in zip(fields(row), keys, strict=True):
        kind = _KINDS.get(hints[field.name], Any)
        if kind is Numbers and (key.endswith("_knots") or key == "row_tiles"):
            kind = Knots
        needed = field.default is MISSING and field.default_factory is MISSING
        columns[key] = (kind, ... if needed else None)
    made: type[BaseModel] = create_model(row.__name__, __base__=Table, **columns)  # type: ignore[call-overload]
    return made


# ---- messages ---------------------------------------------------------------------------------

# Keys of earlier versions, by the type that a table fills, and what to do about them.
RETIRED = {
    ("HostCosts", "speedup_error"): (
        "is now host_error of the whole profile; delete the line, or fit the records again"
    ),
}


def fault_line(error: ValidationError, schema: type[BaseModel], where: str) -> str:
    """One fault as one line: the file, the key, its value and the reason; unknown keys first."""
    faults = error.errors()
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    *parents, key = first["loc"] or ("",)
    path = _path(first["loc"])
    prefix = f"{where}: " if where else ""
    if first["type"] == "extra_forbidden":
        inside = f"{_path(tuple(parents))}: " if parents else ""
        if hint := RETIRED.get((schema.__name__, str(key))):
            return f"{prefix}{inside}key {key!r} {hint}"
        return (
            f"{prefix}{inside}{unknown_name('key', printable(str(key)), _known(schema, parents))}"
        )
    if first["type"] == "missing":
        return f"{prefix}{path} is missing; add it"
    value = f"{path}={_stated(first['input'])} is not valid: it " if path else ""
    return f"{prefix}{value}{fault_reason(first)}"


def _stated(value: object) -> str:
    """A value as a message shows it; that of a figure with its unit."""
    if isinstance(value, Mapping) and {"value", "unit"} <= value.keys():
        return f"{shown(value['value'])} {printable(str(value['unit']))}"
    return shown(value)


def _path(loc: tuple[int | str, ...]) -> str:
    """`link.bandwidth`, `points[2].alpha`."""
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in loc).removeprefix(".")


def _known(schema: type[BaseModel], parents: list[int | str]) -> list[str]:
    """The valid keys of the table at this place of a schema."""
    for parent in parents:
        if isinstance(parent, str):
            kind = schema.model_fields[parent].annotation
            inner = [k for k in (kind, *get_args(kind)) if isinstance(k, type)]
            schema = next(k for k in inner if issubclass(k, BaseModel))
    return list(schema.model_fields)
