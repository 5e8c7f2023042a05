"""Records of measured acceptance: one JSON line per window and draft view, behind one header line.

A file says once what was measured (weights, texts, temperature, types) and is then only appended
to: a killed run loses at most the line it was writing, and the next one goes on after it. A file
whose header speaks of something else is refused. Nothing here needs torch or the performance model.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TextIO

from runtime import InputError

SCHEMA = 1
LAGS = (1, 2, 4, 8, 16)
# What may differ between two runs into one file: who ran it, when and how.
CIRCUMSTANCES = ("command", "time", "commit", "versions", "device", "parts")


RENEWAL_GAMMAS = (2, 4, 8, 16)


class Renewal(NamedTuple):
    """Rounds of γ drafts one after another along a window, each beginning where the last ended.

    `begun` and `made` are the expected number of rounds and of their tokens, over the rounds that
    begin at least γ tokens before the window's end. `even` is the mean tokens of a round over all
    those places alike: real rounds begin more often where drafts fail, and make fewer.
    """

    gamma: int
    begun: float
    made: float
    even: float


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class DraftView:
    """What a draft reads: policy, its budget, and what the policy asks beside it.

    A key that a policy does not have is None; "full" has no budget. `positions` is "absolute", or
    "relative" where a StreamingLLM draft counts positions inside its cache.
    """

    policy: str
    kv_budget: int | None = None
    sink: int | None = None
    snapkv_window: int | None = None
    snapkv_pool: int | None = None
    positions: str = "absolute"
    page_tokens: int = 16

    @property
    def label(self) -> str:
        """The view in a few words."""
        extra = {
            "streamingllm": f" sink {self.sink} {self.positions}",
            "snapkv": f" window {self.snapkv_window} pool {self.snapkv_pool}",
        }.get(self.policy, "")
        budget = "" if self.kv_budget is None else f" {self.kv_budget:,}"
        return f"{self.policy}{budget}{extra}"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Window:
    """A piece of a text: `prefix_tokens` from token `start` on, and the scored ones after them."""

    text: str
    prefix_tokens: int
    index: int
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Sums over the rounds of one window; lists hold one value per draft position.

    With p the target's and q the draft's distribution at a position and x the token that the text
    has there: `overlap` sums Σ min(p, q), the chance that a draft drawn from q is accepted.
    `reached` and `passed` weigh each position by the chance that the round gets there along the
    text, Π min(1, q(x) / p(x)): their ratio is acceptance given that all before it were accepted
    (exact in the mean for a text drawn from p). `chain` sums the products of the overlaps up to a
    position, `agree` counts equal argmaxes and `agree_chain` unbroken runs of them.

    `variance` and `lags` are mean squares and mean products, `LAGS` tokens apart, of the overlap
    about the window's own mean. `renewal` is of consecutive rounds along the window, per γ; records
    of an older study have none. `read_tokens` is what the draft read before its round, in the mean;
    `nll` the target's mean negative log-likelihood of the scored text. [nats]
    """

    window: Window
    view: DraftView
    rounds: int
    overlap: tuple[float, ...]
    reached: tuple[float, ...]
    passed: tuple[float, ...]
    chain: tuple[float, ...]
    agree: tuple[int, ...]
    agree_chain: tuple[int, ...]
    variance: float
    lags: tuple[float, ...]
    read_tokens: float
    nll: float
    renewal: tuple[Renewal, ...] = ()

    @property
    def mean_overlap(self) -> float:
        """Mean Σ min(p, q) over all positions."""
        return sum(self.overlap) / (self.rounds * len(self.overlap))

    def to_dict(self) -> dict[str, Any]:
        """Plain data; keys that a policy does not have are left out."""
        plain = asdict(self)
        plain["view"] = {key: value for key, value in plain["view"].items() if value is not None}
        plain["renewal"] = [list(values) for values in self.renewal]
        if not self.renewal:
            del plain["renewal"]
        return plain


@dataclass(frozen=True, slots=True)
class RecordSet:
    """A file's header and records."""

    header: Mapping[str, Any]
    records: tuple[Record, ...]


class RecordFile:
    """A file of records that is being written.

    Raises
    ------
    InputError
        If the file cannot be written, is no file of records, or is about something else.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self.header = path, {"schema": SCHEMA, **header}
        self._file: TextIO | None = None
        self.done: set[tuple[Window, DraftView]] = set()

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_file() and self.path.stat().st_size:
                self._resume()
            else:
                self._file = self.path.open("w", encoding="utf-8")
                self._write({"header": self.header})
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror})") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, record: Record) -> None:
        """Write one record, on disk when this returns."""
        self._write(record.to_dict())
        self.done.add((record.window, record.view))

    def _resume(self) -> None:
        """Drop a line that a kill cut short, check the header, and note what is there."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if not whole:
            raise InputError(f"{self.path}: no file of acceptance records; name another --output")
        found = parse_records(whole.decode("utf-8", "replace").splitlines(), str(self.path))
        if difference := differing(found.header, self.header):
            key, was, now = difference
            raise InputError(
                f"{self.path} holds another measurement: its {key} is {was}, not {now}; "
                f"name another --output"
            )
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        self.done = {(record.window, record.view) for record in found.records}
        self._file = self.path.open("a", encoding="utf-8")

    def _write(self, value: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(value, allow_nan=False) + "\n")
        self._file.flush()


def read_records(path: Path) -> RecordSet:
    """A whole file, plain or gzipped; a last line that a kill cut short is left out.

    Raises
    ------
    InputError
        In one line: no such file, or one that holds no acceptance records.
    """
    try:
        raw = path.read_bytes()
        if path.suffix == ".gz":
            raw = gzip.decompress(raw)
        text = raw.decode("utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (UnicodeDecodeError, EOFError) as error:
        raise InputError(f"{path}: not a text of JSON lines ({error})") from error
    whole = text[: text.rfind("\n") + 1] or text
    return parse_records(whole.splitlines(), str(path))


def parse_records(lines: Sequence[str], name: str) -> RecordSet:
    """The header and records that lines hold; `name` is the file's, for messages."""
    rows = list(_rows(lines, name))
    header = rows[0].get("header") if rows else None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise InputError(
            f"{name}: no file of acceptance records: its first line is no header of schema "
            f"{SCHEMA}; make one with `specroof calibrate acceptance`"
        )
    try:
        return RecordSet(header, tuple(_record(row) for row in rows[1:]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{name}: a line is no acceptance record ({error})") from error


def merged(sets: Iterable[RecordSet]) -> RecordSet:
    """Several files of one model as one; a record in two of them counts once.

    Raises
    ------
    InputError
        If they are of different weights, drafts, temperatures, positions, types or texts.
    """
    first, *rest = sets
    records = {(record.window, record.view): record for record in first.records}
    texts = dict(first.header.get("texts", {}))
    for other in rest:
        ours = {**first.header, "texts": None}
        if difference := differing(ours, {**other.header, "texts": None}):
            key, one, two = difference
            raise InputError(f"records of different measurements: {key} is {one} and {two}")
        records |= {(record.window, record.view): record for record in other.records}
        for name, text in other.header.get("texts", {}).items():
            if texts.setdefault(name, text) != text:
                raise InputError(f"records of different texts that are both called {name}")
    return RecordSet({**first.header, "texts": texts}, tuple(records.values()))


def differing(
    found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> tuple[str, object, object] | None:
    """The first key in which two headers speak of different things, and both values."""
    plain = json.loads(json.dumps(wanted))
    for key in sorted(set(found) | set(plain)):
        if key not in CIRCUMSTANCES and found.get(key) != plain.get(key):
            return key, found.get(key), plain.get(key)
    return None


def _rows(lines: Sequence[str], name: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{name}: line {number} is no JSON") from error
        if not isinstance(row, dict):
            raise InputError(f"{name}: line {number} is no JSON object")
        yield row


def _record(row: Mapping[str, Any]) -> Record:
    if set(row) | {"renewal"} != {field.name for field in fields(Record)}:
        raise ValueError(f"keys {', '.join(sorted(row))}")
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    plain["window"], plain["view"] = Window(**row["window"]), DraftView(**row["view"])
    plain["renewal"] = tuple(Renewal(*values) for values in row.get("renewal", ()))
    return Record(**plain)
