"""The file format of all measurements: a header line, then one JSON record per line.

The header (`{"header": {...}}`) states what was measured and how. Records are only appended, so an
interrupted run loses at most the line it was writing, and the next run continues after the last
complete line. The header of older files is a line with `"op": "provenance"`. Files with the suffix
.gz are compressed.

A record is a dataclass or a TypedDict. `encode` writes all of its fields; `decode` checks keys and
types strictly with pydantic.
"""

from __future__ import annotations

import functools
import gzip
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self, TextIO, TypeVar, cast

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from perfmodel import ConfigError
from perfmodel.errors import fault_reason, os_reason, printable, shown
from perfmodel.input_file import distinct, read_input
from perfmodel.output_file import check_writable, output_file

MAX_BYTES = 2**28  # largest uncompressed file
LEAST, MOST = 1e-9, 1e9  # of measured quantities: from a nanosecond to decades


def _zero_or_measurable(value: float) -> float:
    if 0 < value < LEAST:
        raise ValueError(f"is below {LEAST}, which nobody can measure")
    return value


# Numbers in records, in any unit.
Count = Annotated[int, Field(gt=0, le=1 << 40)]
Positive = Annotated[float, Field(ge=LEAST, le=MOST)]
NonNegative = Annotated[float, Field(ge=0, le=MOST), AfterValidator(_zero_or_measurable)]

T = TypeVar("T")


class RecordError(ConfigError):
    """A file of cases or records that cannot be used; the message names the file and line."""


@dataclass(frozen=True, slots=True)
class Line:
    """One JSON object of a file; `place` is "FILE, line N"."""

    place: str
    text: str
    value: dict[str, Any]

    @property
    def header(self) -> dict[str, Any] | None:
        """The header in this line, or None if it is a record."""
        header = self.value.get("header", self.value.get("provenance"))
        if isinstance(header, dict):
            return header
        return self.value if self.value.get("op") == "provenance" else None

    def decode(self, kind: type[T]) -> T:
        """The record in this line; see `decode`."""
        return decode(kind, self.text, self.place)


def encode(record: object) -> str:
    """A dataclass or mapping as one line of strict JSON with all fields in order."""
    plain = asdict(record) if is_dataclass(record) and not isinstance(record, type) else record
    return json.dumps(plain, allow_nan=False, separators=(",", ":")) + "\n"


def decode(kind: type[T], text: str, place: str) -> T:
    """An instance of the dataclass or TypedDict `kind` from JSON.

    Raises `RecordError` if a key is unknown, missing or of the wrong type; the message starts with
    `place`.
    """
    try:
        (record,) = _adapter(cast(Any, kind)).validate_json(f"[{text}]")
    except ValidationError as error:
        raise RecordError(f"{place}: {_fault(error)}") from error
    return cast(T, record)


_COLOUR = re.compile(r"(?:\x1b|\\u001b)\[[0-9;?]*[ -/]*[@-~]")
# What tools write before each line: mpirun --tag-output, srun --label, Kubernetes, docker compose.
_PREFIXES = (
    re.compile(r"\[\d+,\d+\](?:<std\w+>)?:[ ]?"),
    re.compile(r"[ \t]*\d+: "),
    re.compile(r"\d{4}-\d\d-\d\dT\S+ std(?:out|err) [FP] "),
    re.compile(r"[\w.-]{1,80}+ +\| "),
)


def without_colours(text: str) -> str:
    """A log without the terminal's escape sequences, which may also be escaped in JSON."""
    return _COLOUR.sub("", text)


def without_prefixes(text: str) -> str:
    """The output of a program without what a launcher or logger wrote before each of its lines."""
    lines = text.splitlines()
    for prefix in _PREFIXES:
        found = [prefix.match(line) for line in lines]
        if lines and all(found[i] or not line.strip() for i, line in enumerate(lines)):
            return "\n".join(
                line[m.end() if m else 0 :] for m, line in zip(found, lines, strict=True)
            )
    return text


def read_text(path: Path) -> str:
    """Read a text file, decompressed if it is a gzip file.

    Raises `RecordError` if it cannot be read, is not UTF-8, or is larger than `MAX_BYTES`.
    """
    try:
        raw = read_input(path, MAX_BYTES)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} cannot be read: byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {os_reason(error)}") from error
    if len(raw) > MAX_BYTES:
        raise RecordError(f"{path}: larger than {MAX_BYTES:,} bytes; split the file")
    return text


def read_lines(path: Path, *, drop_cut_off: bool = False) -> list[Line]:
    """Read the lines of a file that are not empty; the first one is the header.

    If `drop_cut_off`, a last line without a newline, which an interrupted run leaves, is ignored.
    Raises `RecordError` if the file cannot be read, is cut off, has a line that is not a JSON
    object, or does not start with a header; with the line number.
    """
    *ended, last = read_text(path).split("\n")
    lines = [
        json_object(text, f"{path}, line {n}") for n, text in enumerate(ended, 1) if text.strip()
    ]
    if last.strip() and not drop_cut_off:
        place = f"{path}, line {len(ended) + 1}"
        try:
            lines.append(json_object(last, place))
        except RecordError as error:
            raise RecordError(f"{place}: the file is cut off; remove this line") from error
    if not lines or lines[0].header is None:
        raise RecordError(f"{path}, line 1: there is no header, so this is not a file of records")
    return lines


def check_log(path: Path) -> None:
    """Raise the `RecordError` of `RecordLog` for a file that cannot be one, without writing."""
    _refuse_compressed(path)
    try:
        check_writable(path)
    except ConfigError as error:
        raise RecordError(str(error)) from error
    if path.is_file() and path.stat().st_size:
        read_lines(path, drop_cut_off=True)


def write_records(path: Path, header: Mapping[str, Any], records: Iterable[object]) -> None:
    """Write a complete file atomically, compressed if its suffix is .gz.

    Raises `RecordError` if the file cannot be written.
    """
    content = "".join([encode({"header": dict(header)}), *map(encode, records)]).encode()
    try:
        with output_file(path) as file:
            file.write(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    except ConfigError as error:
        raise RecordError(str(error)) from error


class RecordLog:
    """A file to append records to; `lines` are the records already in it.

    `header` is that of a new file; that of an existing one must be equal in the keys `same`. Raises
    `RecordError` if the file cannot be written, is not a file of records, or belongs to another
    measurement. An existing file is then left unchanged.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, same: Collection[str]) -> None:
        self.path = path
        self.lines: list[Line] = []
        self._file: TextIO | None = None
        _refuse_compressed(path)
        try:
            if path.exists() and not path.is_file():  # a device or FIFO, which is opened once
                self._file = path.open("w", encoding="utf-8")
                self.append({"header": dict(header)})
                return
            if path.is_file() and path.stat().st_size:
                self._resume(json.loads(json.dumps(header)), same)
            else:
                write_records(path, header, ())
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise RecordError(f"{path} cannot be written: {os_reason(error)}") from error

    def append(self, record: object) -> None:
        """Write one record and flush it to disk."""
        assert self._file is not None
        self._file.write(encode(record))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _resume(self, header: Mapping[str, Any], same: Collection[str]) -> None:
        first, *lines = read_lines(self.path, drop_cut_off=True)
        on_file = first.header or {}
        for key in same:
            if on_file.get(key) != header.get(key):
                raise RecordError(
                    f"{first.place}: measured with {key} {on_file.get(key)!r}, but this run has "
                    f"{header.get(key)!r}; choose another output file"
                )
        self.lines = [line for line in lines if line.header is None]
        os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)


def _refuse_compressed(path: Path) -> None:
    if path.suffix == ".gz":
        raise RecordError(f"{path}: a .gz file cannot be appended to; use another suffix")


def json_object(text: str, place: str) -> Line:
    """A JSON object; `RecordError` if it is none, or has a repeated key or an infinite number."""
    try:
        value = json.loads(
            text, object_pairs_hook=distinct, parse_float=_finite, parse_constant=_finite
        )
    except (ValueError, RecursionError) as error:
        why = f": {error}" if "twice" in str(error) or "finite" in str(error) else ""
        raise RecordError(f"{place}: this is not valid JSON{why}") from error
    if not isinstance(value, dict):
        raise RecordError(f"{place}: this is not a JSON object")
    return Line(place, text, value)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{printable(text[:20])} is not a finite number")
    return value


@functools.cache
def _adapter(kind: type[Any]) -> TypeAdapter[tuple[Any]]:
    """An adapter of a 1-tuple, since pydantic applies the settings only inside a container."""
    form: Any = tuple.__class_getitem__((kind,))
    return TypeAdapter(form, config=ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))


def _fault(error: ValidationError) -> str:
    """The first fault in a line: the key and what is wrong with it."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"][1:])
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key {key!r}"
    if first["type"] in ("missing", "missing_argument"):
        return f"missing key {key!r}"
    if first["type"] == "json_invalid":
        return "this is not valid JSON"
    return f"{key}={shown(first['input'])} is not valid: it {fault_reason(first)}"
