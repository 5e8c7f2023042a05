"""Measurements of `specroof calibrate engine`: one record per point, engine start or failure.

A point is one workload under one setup of the engine. Its record has the seconds of a plain
decoding step (γ = 0), or of a round of γ drafts and their verification.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import Field

from calibration.engines.drivers.vllm_offline import AGREEING
from calibration.records.jsonl import (
    MOST,
    Count,
    Line,
    NonNegative,
    Positive,
    RecordError,
    read_lines,
)
from calibration.records.kernels import GPU_NAMES, check_header
from perfmodel.errors import shown

MOST_BATCH = 1 << 16  # sequences that an engine decodes together
PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,79}", re.ASCII)
# Tokens per round are at most γ + 1, plus what the counters miss: a part of one round in 48.
ROUNDING = 0.03
APART = 1.02  # records contradict each other if all repeats of one are so many times another's


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How one engine process is started: a target, and how to draft for it.

    `method` is "plain", "draft" (the model `draft`) or a built-in method such as "eagle3".
    `exported_graphs` is whether the engine captures the CUDA graphs that `export` lists instead of
    its default ones.
    """

    target: str
    method: str
    gamma: Annotated[int, Field(ge=0)]
    draft: str = ""
    tp: Count = 1
    exported_graphs: bool = False

    @property
    def label(self) -> str:
        """The setup in words."""
        how = "plain" if self.method == "plain" else f"{self.method} γ={self.gamma}"
        ranks = f", TP {self.tp}" if self.tp > 1 else ""
        graphs = ", exported graphs" if self.exported_graphs else ""
        return f"{self.target}, {how}{ranks}{graphs}"

    @property
    def key(self) -> str:
        """Identifier of the setup."""
        graphs = "/exported" if self.exported_graphs else ""
        how = f"{self.method}-{self.draft or 'none'}-{self.gamma}"
        return f"{self.target}/{how}/tp{self.tp}{graphs}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One workload to time under one setup; if `held_back`, it is used only for validation."""

    setup: Setup
    batch: Annotated[int, Field(gt=0, le=MOST_BATCH)]
    prompt_tokens: Count
    held_back: bool = False

    @property
    def id(self) -> str:
        """Identifier of the point in a file."""
        return f"{self.setup.key}/{self.batch}x{self.prompt_tokens}"

    @property
    def workload(self) -> tuple[str, int, int, int]:
        """Target, TP, batch and prompt tokens, which points of different methods share."""
        return self.setup.target, self.setup.tp, self.batch, self.prompt_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRecord:
    """One timed point.

    `seconds` is the median of `all_seconds`; if a point was timed several times, for example in
    several processes, these are all repeats. Each is the difference in time between two runs of
    different output lengths, divided by their difference in `rounds`, so that prefill and ramps
    cancel. `disturbed` are repeats that were left out, because others agree and these differ from
    them (`drivers.vllm_offline.repeated`). `context_tokens` is the mean length of a sequence over
    these rounds. `latency_s`, a check, is the mean inter-token latency that the engine reports.
    """

    op: Literal["engine-point"] = "engine-point"
    point: Point
    seconds: Positive
    all_seconds: Annotated[
        tuple[Annotated[float, Field(ge=-MOST, le=MOST)], ...], Field(min_length=1)
    ]
    rounds: Positive
    context_tokens: Positive
    tokens_per_round: Positive
    latency_s: NonNegative = 0.0
    prefill_s: NonNegative = 0.0
    wall_s: NonNegative = 0.0
    disturbed: tuple[Annotated[float, Field(ge=-MOST, le=MOST)], ...] = ()

    @property
    def spread(self) -> float:
        """Range of the repeats, relative to the median."""
        return (max(self.all_seconds) - min(self.all_seconds)) / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedPoint:
    """A point that could not be timed, and why."""

    op: Literal["failed"] = "failed"
    point: Point
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRecord:
    """One start of an engine: its duration, and the settings that the engine chose.

    `facts` may hold `async_scheduling`, `graph_tokens` (the largest captured batch of tokens),
    `kv_cache_blocks`, `block_tokens` and other settings that the engine chose.
    """

    op: Literal["start"] = "start"
    setup: Setup
    seconds: NonNegative
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecords:
    """All records of one engine, version and GPU, with one record per point.

    `notes` name points that are used otherwise than their file states.
    """

    engine: str
    version: str
    gpu: str  # catalog name
    headers: tuple[Mapping[str, Any], ...]
    points: tuple[PointRecord, ...]
    starts: tuple[StartRecord, ...] = ()
    failed: tuple[FailedPoint, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the profile: engine, major and minor version."""
        return f"{self.engine}-{'.'.join(self.version.split('.')[:2])}"

    @property
    def source(self) -> str:
        """Number of points, engine, GPU, versions and date, from the first header."""
        head = dict(self.headers[0])
        head["date"] = str(head.get("time", ""))[:10]
        names = ("driver", "cuda", "torch", "date", "commit")
        rest = [f"{name} {head[name]}" for name in names if head.get(name)]
        engine = f"{self.engine} {self.version} on {head.get('gpu')}"
        return ", ".join([f"{len(self.points)} points measured with {engine}", *rest])

    @property
    def fitted(self) -> list[PointRecord]:
        """Records that are fitted."""
        return [r for r in self.points if not r.point.held_back]

    @property
    def held_back(self) -> list[PointRecord]:
        """Records that are used only for validation."""
        return [r for r in self.points if r.point.held_back]

    def facts(self, method: str, *, exported: bool | None = None) -> dict[str, Any]:
        """Settings that the engine reported at its first start with a method; {} if unknown.

        `exported` says with which CUDA graphs: those that `export` lists, or its own; None: either.
        """
        starts = [s for s in self.starts if exported in (None, s.setup.exported_graphs)]
        return next((dict(s.facts) for s in starts if s.setup.method == method), {})


def read_engine_records(paths: Iterable[Path], *, check: Iterable[Path] = ()) -> EngineRecords:
    """Read the records of one engine, version and GPU, with one record per point.

    The repeats of all records of a point are pooled; identical records count once. A point that one
    file holds back is held back, and so are the points of `check` that `paths` do not fit.

    Raises `RecordError`, with the line number, for a line that is not a record or contradicts
    itself, for an engine, version or GPU that differs from the first header, or if no point was
    timed.
    """
    headers: list[Mapping[str, Any]] = []
    points: list[tuple[PointRecord, bool]] = []
    others: dict[str, list[Any]] = {"start": [], "failed": []}
    for path, is_check in [*((p, False) for p in paths), *((p, True) for p in check)]:
        for line in read_lines(path):
            if (header := line.header) is not None:
                check_header(header, header.get("gpu_name"), line.place)
                headers.append(_same(header, headers[0] if headers else header, line.place))
            elif isinstance(record := _record(line), PointRecord):
                points.append((record, is_check))
            else:
                others[record.op].append(record)
    if all(is_check for _, is_check in points):
        raise RecordError(
            "the records have no timed point; measure some with specroof calibrate engine --out"
        )
    merged, notes = _merged(points)
    fits = {record.point.id for record in merged if not record.point.held_back}
    of_fits = [r for r, is_check in points if r.point.id in fits and not is_check]
    unsteady = {r.point.id: note for r in of_fits if (note := _unsteady(r))}
    head = headers[0]
    return EngineRecords(
        engine=str(head["engine"]),
        version=str(head["version"]),
        gpu=str(head.get("gpu_name") or catalog_gpu(str(head["gpu"])) or head["gpu"]),
        headers=tuple(headers),
        points=tuple(merged),
        starts=tuple(others["start"]),
        failed=tuple(others["failed"]),
        notes=(*notes, *unsteady.values()),
    )


def catalog_gpu(device: str) -> str:
    """The catalog name of a device as named by nvidia-smi; "" if the catalog has none."""
    return GPU_NAMES.get(device, "")


def check_names(header: Mapping[str, Any], place: str) -> None:
    """Raise `RecordError` for an engine or version that cannot be a part of a file's name."""
    for key in ("engine", "version"):
        name = header.get(key)
        if name and not (isinstance(name, str) and PLAIN_NAME.fullmatch(name)):
            raise RecordError(
                f"{place}: {key} {shown(name)} is not a plain name; use letters, digits, and ._+-"
            )


def _merged(records: Sequence[tuple[PointRecord, bool]]) -> tuple[list[PointRecord], list[str]]:
    """One record per point, and notes, from records and whether each is of a file to check."""
    by_point: dict[str, list[tuple[PointRecord, bool]]] = {}
    for record, is_check in records:
        by_point.setdefault(record.point.id, []).append((record, is_check))
    merged, mixed, fitted, apart = [], list[str](), list[str](), dict[str, list[float]]()
    for name, rows in by_point.items():
        own = [record for record, is_check in rows if not is_check]
        held = {record.point.held_back for record in own} or {True}
        mixed += [name] if len(held) > 1 else []
        if held == {False} and len(own) < len(rows):
            fitted.append(name)
        used = own if held == {False} else [record for record, _ in rows]
        merged.append(_pooled(used, held_back=True in held))
        if max(min(r.all_seconds) for r in used) > APART * min(max(r.all_seconds) for r in used):
            apart[name] = sorted(r.seconds for r in used)
    worst = max(apart.values(), key=lambda seconds: seconds[-1] / seconds[0], default=[0.0])
    ends = f"{1e3 * worst[0]:.3g} to {1e3 * worst[-1]:.3g} ms at worst"
    different = (
        f"timed differently by several records ({ends}), so the median of all repeats counts"
    )
    notes = {
        different: list(apart),
        "held back in some records and not in others, and are held back in all": mixed,
        "fitted, so those in --check are left out": fitted,
    }
    return merged, [f"{_named(names)} {why}" for why, names in notes.items() if names]


def _unsteady(record: PointRecord) -> str:
    """A note on a record whose repeats never agreed; "" if they did."""
    low, high = min(record.all_seconds), max(record.all_seconds)
    if high <= AGREEING * low:
        return ""
    return (
        f"{record.point.id} is fitted with less weight, because its repeats do not agree "
        f"({1e3 * low:.3g} to {1e3 * high:.3g} ms); time it again with the same flags and another "
        f"--out, and fit both files"
    )


def _named(points: Sequence[str]) -> str:
    return points[0] + (f" and {len(points) - 1} more are" if len(points) > 1 else " is")


def _pooled(records: Sequence[PointRecord], *, held_back: bool) -> PointRecord:
    """The median of the repeats of different records of a point."""
    marked = [replace(r, point=replace(r.point, held_back=held_back)) for r in records]
    *_, last = different = list(dict.fromkeys(marked))
    every = tuple(seconds for record in different for seconds in record.all_seconds)
    left_out = tuple(seconds for record in different for seconds in record.disturbed)
    return replace(last, seconds=median(every), all_seconds=every, disturbed=left_out)


def _same(header: Mapping[str, Any], first: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    check_names(header, place)
    for key in ("engine", "version", "gpu"):
        if not header.get(key):
            raise RecordError(f"{place}: the header does not state {key!r}")
        if header[key] != first[key]:
            raise RecordError(
                f"{place}: {key} {header[key]!r} differs from {first[key]!r} in the first header; "
                f"fit each of them separately"
            )
    return header


def _record(line: Line) -> PointRecord | StartRecord | FailedPoint:
    match line.value.get("op"):
        case "engine-point":
            return _checked(line.decode(PointRecord), line.place)
        case "start":
            return line.decode(StartRecord)
        case "failed":
            return line.decode(FailedPoint)
        case other:
            raise RecordError(f"{line.place}: unknown operation {shown(other)}")


def _checked(record: PointRecord, place: str) -> PointRecord:
    """The record, unless its figures contradict each other."""
    point, every = record.point, record.all_seconds
    most = point.setup.gamma + 1
    if 2 * sum(seconds > 0.0 for seconds in every) <= len(every):  # disturbed, if so
        fault = "all_seconds are not positive for the most part; time the point again"
    elif abs(record.seconds - median(every)) > 1e-6 * record.seconds:
        fault = (
            f"seconds={record.seconds:.6g} is not the median {median(every):.6g} of all_seconds; "
            f"give both in seconds"
        )
    elif record.context_tokens < point.prompt_tokens:
        fault = (
            f"context_tokens={record.context_tokens:g} is less than the prompt of "
            f"{point.prompt_tokens}; give the mean length of a sequence"
        )
    elif not 1.0 - ROUNDING <= record.tokens_per_round <= most * (1.0 + ROUNDING):
        fault = (
            f"tokens_per_round={record.tokens_per_round:g} is not from 1 to gamma + 1 = {most}; "
            f"state the gamma of the run"
        )
    else:
        return record
    raise RecordError(f"{place}: {fault}")
