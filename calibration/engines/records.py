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

    `seconds` is the median of `all_seconds`; of a point that was timed several times, for example
    in several processes, it is their mean, which is what a long run takes. Each of these is the
    difference in time between two runs of different output lengths, divided by their difference in
    `rounds`, so that prefill and ramps cancel. `context_tokens` is the mean length of a sequence
    over these rounds. `latency_s` is the mean inter-token latency that the engine reports for them,
    or 0; it serves as a check.
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
    """All records of one engine, version and GPU."""

    engine: str
    version: str
    gpu: str  # catalog name
    headers: tuple[Mapping[str, Any], ...]
    points: tuple[PointRecord, ...]
    starts: tuple[StartRecord, ...] = ()
    failed: tuple[FailedPoint, ...] = ()

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

    def facts(self, method: str) -> dict[str, Any]:
        """Settings that the engine reported at its first start with a method; {} if unknown."""
        return next((dict(s.facts) for s in self.starts if s.setup.method == method), {})


def read_engine_records(paths: Iterable[Path], *, held_back: bool = False) -> EngineRecords:
    """Read the records of one engine, version and GPU.

    Raises `RecordError`, with the line number, for a line that is not a record or contradicts
    itself, for an engine, version or GPU that differs from the first file, or if no point was
    timed.

    Parameters
    ----------
    held_back : bool
        Hold back every point from the fit.
    """
    headers: list[Mapping[str, Any]] = []
    records: dict[str, list[Any]] = {"engine-point": [], "start": [], "failed": []}
    for path in paths:
        first, *lines = read_lines(path)
        header = first.header or {}
        check_header(header, header.get("gpu_name"), first.place)
        headers.append(_same(header, headers[0] if headers else header, first.place))
        for line in lines:
            if line.header is None:
                record = _record(line)
                records[record.op].append(record)
    if not headers or not records["engine-point"]:
        raise RecordError(
            "the records have no timed point; measure some with specroof calibrate engine --out"
        )
    points = _merged(records["engine-point"])
    if held_back:
        points = [_hold_back(record) for record in points]
    head = headers[0]
    return EngineRecords(
        engine=str(head["engine"]),
        version=str(head["version"]),
        gpu=str(head.get("gpu_name") or catalog_gpu(str(head["gpu"])) or head["gpu"]),
        headers=tuple(headers),
        points=tuple(points),
        starts=tuple(records["start"]),
        failed=tuple(records["failed"]),
    )


def catalog_gpu(device: str) -> str:
    """The catalog name of a device as named by nvidia-smi; "" if the catalog has none."""
    return GPU_NAMES.get(device, "")


def joined(fitted: EngineRecords, check: EngineRecords) -> EngineRecords:
    """Both sets of records in one, with those of `check` held back.

    Raises `RecordError` if they are from different engines, versions or GPUs.
    """
    for name in ("engine", "version", "gpu"):
        if getattr(fitted, name) != getattr(check, name):
            raise RecordError(
                f"records of {name} {getattr(check, name)} cannot validate a profile of "
                f"{getattr(fitted, name)}; give records of the same {name}"
            )
    return EngineRecords(
        engine=fitted.engine,
        version=fitted.version,
        gpu=fitted.gpu,
        headers=fitted.headers,
        points=(*fitted.points, *(_hold_back(r) for r in check.points)),
        starts=(*fitted.starts, *check.starts),
        failed=(*fitted.failed, *check.failed),
    )


def _hold_back(record: PointRecord) -> PointRecord:
    return replace(record, point=replace(record.point, held_back=True))


def _merged(records: Sequence[PointRecord]) -> list[PointRecord]:
    """One record per point; the mean of all repeats if it was timed several times."""
    by_point: dict[str, list[PointRecord]] = {}
    for record in records:
        by_point.setdefault(record.point.id, []).append(record)
    return [_mean(rows) if len(rows) > 1 else rows[0] for rows in by_point.values()]


def _mean(rows: Sequence[PointRecord]) -> PointRecord:
    every = tuple(seconds for row in rows for seconds in row.all_seconds)
    return replace(rows[-1], seconds=sum(every) / len(every), all_seconds=every)


def check_names(header: Mapping[str, Any], place: str) -> None:
    """Raise `RecordError` for an engine or version that cannot be a part of a file's name."""
    for key in ("engine", "version"):
        name = header.get(key)
        if name and not (isinstance(name, str) and PLAIN_NAME.fullmatch(name)):
            raise RecordError(
                f"{place}: {key} {shown(name)} is not a plain name; use letters, digits, and ._+-"
            )


def _same(header: Mapping[str, Any], first: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    check_names(header, place)
    for key in ("engine", "version", "gpu"):
        if not header.get(key):
            raise RecordError(f"{place}: the header does not state {key!r}")
        if header[key] != first[key]:
            raise RecordError(
                f"{place}: {key} {header[key]!r} differs from {first[key]!r} in the first file; "
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
