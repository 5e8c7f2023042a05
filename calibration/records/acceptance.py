"""Records of measured acceptance: one per window of a text and draft view.

The header states once what was measured (weights, texts, temperature, types). Nothing here needs
torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AliasChoices, Field

from calibration.records.jsonl import RecordError, RecordLog, read_lines

SCHEMA = 1
LAGS = (1, 2, 4, 8, 16)
# Header keys that may differ between two runs into one file: when and how it was run.
CIRCUMSTANCES = ("command", "time", "commit", "versions", "device", "parts")
RENEWAL_GAMMAS = (2, 4, 8, 16)
# Files of older versions call it prefix_tokens.
ContextTokens = Annotated[
    int, Field(validation_alias=AliasChoices("context_tokens", "prefix_tokens"))
]


class Renewal(NamedTuple):
    """Rounds of γ drafts one after another along a window, each beginning where the last ended.

    `begun` and `made` are the expected number of rounds and of their tokens, over the rounds that
    begin at least γ tokens before the window's end. `even` is the mean tokens of a round with every
    such place weighted equally: real rounds begin more often where drafts fail, and make fewer.
    """

    gamma: int
    begun: float
    made: float
    even: float


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class DraftView:
    """What a draft reads: policy, its budget, and the policy's other settings.

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
    """A piece of a text: `context_tokens` from token `start` on, and the scored ones after them."""

    text: str
    context_tokens: ContextTokens
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


@dataclass(frozen=True, slots=True)
class RecordSet:
    """A file's header and records."""

    header: Mapping[str, Any]
    records: tuple[Record, ...]


class RecordFile(RecordLog):
    """A file of records that is being written; `done` is what it holds.

    Raises
    ------
    RecordError
        If the file cannot be written, is not a file of records, or is another measurement's.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        same = [key for key in header if key not in CIRCUMSTANCES]
        super().__init__(path, {"schema": SCHEMA, **header}, same=["schema", *same])
        records = (line.decode(Record) for line in self.lines)
        self.done = {(record.window, record.view) for record in records}

    def append(self, record: Record) -> None:  # type: ignore[override]
        """Write one record; it is on disk when this returns."""
        super().append(record)
        self.done.add((record.window, record.view))


def read_acceptance(path: Path) -> RecordSet:
    """A whole file, plain or gzipped; a last line that a kill cut short is left out.

    Raises
    ------
    RecordError
        In one line: no such file, or one that does not hold acceptance records.
    """
    first, *lines = read_lines(path, drop_cut_off=True)
    header = first.header or {}
    if header.get("schema") != SCHEMA:
        raise RecordError(
            f"{first.place}: not a header of acceptance records of schema {SCHEMA}; make a file "
            "with `specroof calibrate acceptance`"
        )
    return RecordSet(header, tuple(line.decode(Record) for line in lines))


def merged(sets: Iterable[RecordSet]) -> RecordSet:
    """Several files of one model as one; a record in two of them counts once.

    Raises
    ------
    RecordError
        If they are of different weights, drafts, temperatures, positions, types or texts.
    """
    first, *rest = sets
    records = {(record.window, record.view): record for record in first.records}
    texts = dict(first.header.get("texts", {}))
    for other in rest:
        ours = {**first.header, "texts": None}
        if difference := _differing(ours, {**other.header, "texts": None}):
            key, one, two = difference
            raise RecordError(f"records of different measurements: {key} is {one} and {two}")
        records |= {(record.window, record.view): record for record in other.records}
        for name, text in other.header.get("texts", {}).items():
            if texts.setdefault(name, text) != text:
                raise RecordError(f"records of different texts that are both called {name}")
    return RecordSet({**first.header, "texts": texts}, tuple(records.values()))


def _differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> tuple[str, object, object] | None:
    """The first key in which two headers are of different measurements, and both values."""
    for key in sorted(set(one) | set(two)):
        if key not in CIRCUMSTANCES and one.get(key) != two.get(key):
            return key, one.get(key), two.get(key)
    return None
