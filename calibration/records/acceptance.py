"""Records of measured acceptance: one per text window and draft view.

The header states what was measured (weights, texts, temperature, dtypes). Torch is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Required

from pydantic import AliasChoices, ConfigDict, Field
from typing_extensions import TypedDict

from calibration.records.jsonl import Line, RecordError, RecordLog, decode, read_lines

SCHEMA = 1
LAGS = (1, 2, 4, 8, 16)
# Header keys that may differ between runs that write into the same file.
CIRCUMSTANCES = ("command", "time", "commit", "versions", "device", "parts")
RENEWAL_GAMMAS = (2, 4, 8, 16)
# Older files call it prefix_tokens.
ContextTokens = Annotated[
    int, Field(ge=1, le=1 << 40, validation_alias=AliasChoices("context_tokens", "prefix_tokens"))
]
Policy = Literal["full", "streamingllm", "snapkv"]
Tokens = Annotated[int, Field(ge=0, le=1 << 40)]
Rounds = Annotated[int, Field(ge=1, le=10**9)]
Sum = Annotated[float, Field(ge=0, le=1e9)]  # over rounds
Temperature = Annotated[float, Field(ge=0, le=100)]
Moment = Annotated[float, Field(ge=-1, le=1)]
Size = Annotated[float, Field(ge=0, le=1e12)]


class Header(TypedDict, total=False):
    """What every header of acceptance records states; it may state more."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    schema: Required[Literal[1]]
    model: Required[str]
    draft: Required[str]
    gamma: Required[Rounds]
    temperature: Required[Temperature]
    scored_tokens: Required[Rounds]
    dtype: Required[str]
    device: Required[str]
    texts: dict[str, Any]


class Renewal(NamedTuple):
    """Consecutive rounds of γ drafts along a window, each starting where the previous one ended.

    `begun` and `made` are the expected numbers of rounds and of their tokens, for rounds that start
    at least γ tokens before the end of the window. `even` is the mean number of tokens of a round
    if all these starts are equally likely. Real rounds start more often where drafts are rejected,
    so they yield fewer tokens.
    """

    gamma: Rounds
    begun: Sum
    made: Size
    even: Size


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class DraftView:
    """What a draft reads: the draft policy, its KV budget and its other settings.

    Settings that a policy does not have are None; "full" has no budget. `positions` is "absolute",
    or "relative" if a StreamingLLM draft counts positions inside its cache.
    """

    policy: Policy
    kv_budget: Tokens | None = None
    sink: Tokens | None = None
    snapkv_window: Tokens | None = None
    snapkv_pool: Tokens | None = None
    positions: Literal["absolute", "relative"] = "absolute"
    page_tokens: Rounds = 16

    @property
    def label(self) -> str:
        """A short description of the view."""
        extra = {
            "streamingllm": f" sink {self.sink} {self.positions}",
            "snapkv": f" window {self.snapkv_window} pool {self.snapkv_pool}",
        }.get(self.policy, "")
        budget = "" if self.kv_budget is None else f" {self.kv_budget:,}"
        return f"{self.policy}{budget}{extra}"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Window:
    """Part of a text: `context_tokens` tokens from `start` on, followed by the scored tokens."""

    text: str
    context_tokens: ContextTokens
    index: Tokens
    start: Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Sums over the rounds of one window; tuples have one value per draft position.

    Let p and q be the distributions of target and draft at a position, and x the token of the text.
    `overlap` sums Σ min(p, q), the probability that a draft drawn from q is accepted. `reached` and
    `passed` weight each position by Π min(1, q(x) / p(x)), the probability that the round reaches
    it along the text. Their ratio is the acceptance given that all previous drafts were accepted,
    which is exact on average for text drawn from p. `chain` sums the products of the overlaps up to
    each position, `agree` counts equal argmaxes, and `agree_chain` unbroken runs of them.

    `variance` and `lags` are mean squares and mean products (`LAGS` tokens apart) of the overlap
    about the mean of the window. `renewal` describes consecutive rounds for several γ; older
    records lack it. `read_tokens` is the mean number of tokens that the draft read before a round,
    and `nll` the target's mean negative log-likelihood of the scored text in nats.
    """

    window: Window
    view: DraftView
    rounds: Rounds
    overlap: tuple[Sum, ...]
    reached: tuple[Sum, ...]
    passed: tuple[Sum, ...]
    chain: tuple[Sum, ...]
    agree: tuple[Tokens, ...]
    agree_chain: tuple[Tokens, ...]
    variance: Moment
    lags: tuple[Moment, ...]
    read_tokens: Size
    nll: Size
    renewal: tuple[Renewal, ...] = ()


@dataclass(frozen=True, slots=True)
class RecordSet:
    """A file's header and records."""

    header: Mapping[str, Any]
    records: tuple[Record, ...]


class RecordFile(RecordLog):
    """A file of records to append to; `done` are the windows and views already in it.

    Raises `RecordError` if the file cannot be written, is not a file of records, or belongs to
    another measurement.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        same = [key for key in header if key not in CIRCUMSTANCES]
        super().__init__(path, {"schema": SCHEMA, **header}, same=["schema", *same])
        records = (line.decode(Record) for line in self.lines)
        self.done = {(record.window, record.view) for record in records}

    def append(self, record: Record) -> None:  # type: ignore[override]
        """Write one record and flush it to disk."""
        super().append(record)
        self.done.add((record.window, record.view))


def read_acceptance(path: Path) -> RecordSet:
    """Read a file, plain or gzipped; an incomplete last line is ignored.

    Raises `RecordError` if the file cannot be read or does not hold acceptance records.
    """
    first, *lines = read_lines(path, drop_cut_off=True)
    header = first.header or {}
    if header.get("schema") != SCHEMA:
        raise RecordError(
            f"{first.place}: not the header of acceptance records (schema {SCHEMA}); write the "
            "file with `specroof calibrate acceptance`"
        )
    positions = decode(Header, json.dumps(header), f"{first.place}, header")["gamma"]
    return RecordSet(header, tuple(_record(line, positions) for line in lines))


def _record(line: Line, positions: int) -> Record:
    """The record in a line; an error if its sums exceed the number of rounds."""
    record = line.decode(Record)
    most = 1.001 * record.rounds  # sums are rounded
    for name in ("overlap", "reached", "passed", "chain", "agree", "agree_chain"):
        values = getattr(record, name)
        if not values or len(values) != positions:
            raise RecordError(
                f"{line.place}: {name} has {len(values)} positions, but the header has "
                f"gamma={positions}"
            )
        if max(values) > most:
            raise RecordError(
                f"{line.place}: {name} is {max(values):,.10g} in {record.rounds:,} rounds; a rate "
                f"is at most 1"
            )
    if len(record.lags) != len(LAGS):
        raise RecordError(
            f"{line.place}: lags has {len(record.lags)} values; it needs one for each of the "
            f"distances {', '.join(map(str, LAGS))}"
        )
    for renewal in record.renewal:
        _check_renewal(renewal, line.place)
    return record


def _check_renewal(renewal: Renewal, place: str) -> None:
    """Refuse rounds that yield fewer than one token or more than γ + 1."""
    least, most = 0.999, 1.001 * (renewal.gamma + 1)  # rounded
    tokens = {"made": renewal.made / max(renewal.begun, 1e-9), "even": renewal.even}
    for name, each in tokens.items():
        if not least <= each <= most:
            raise RecordError(
                f"{place}: renewal of gamma={renewal.gamma}: {name} is {each:.4g} tokens per "
                f"round; a round yields 1 to {renewal.gamma + 1}"
            )


def merged(sets: Iterable[RecordSet]) -> RecordSet:
    """Merge several files of one model; a record that is in two of them counts once.

    Raises `RecordError` if the weights, drafts, temperatures, positions, dtypes or texts differ.
    """
    first, *rest = sets
    records = {(record.window, record.view): record for record in first.records}
    texts = dict(first.header.get("texts", {}))
    for other in rest:
        ours = {**first.header, "texts": None}
        if difference := _differing(ours, {**other.header, "texts": None}):
            key, one, two = difference
            raise RecordError(
                f"the files are from different measurements: {key} is {one} and {two}; give files "
                "of one measurement"
            )
        records |= {(record.window, record.view): record for record in other.records}
        for name, text in other.header.get("texts", {}).items():
            if texts.setdefault(name, text) != text:
                raise RecordError(f"the files have different texts named {name}; rename one")
    return RecordSet({**first.header, "texts": texts}, tuple(records.values()))


def _differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> tuple[str, object, object] | None:
    """The first key in which two headers differ, and both values."""
    for key in sorted(set(one) | set(two)):
        if key not in CIRCUMSTANCES and one.get(key) != two.get(key):
            return key, one.get(key), two.get(key)
    return None
