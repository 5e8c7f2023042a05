"""What `specroof calibrate engine` measures: points, and one record per point, start or failure.

A point is one workload under one way to decode. Its record holds the seconds of one engine step: of
a plain decoding step at γ = 0, else of a round of γ drafts and their verification.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from calibration.records.jsonl import Line, RecordError, read_lines
from calibration.records.kernels import GPU_NAMES

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What one engine process serves: a target, and how it drafts.

    `method` is "plain", "draft" (the model `draft`) or a built-in method such as "eagle3".
    """

    target: str
    method: str
    gamma: Annotated[int, Field(ge=0)]
    draft: str = ""
    tp: Count = 1

    @property
    def label(self) -> str:
        """The setup in words."""
        how = "plain" if self.method == "plain" else f"{self.method} γ={self.gamma}"
        ranks = f", TP {self.tp}" if self.tp > 1 else ""
        return f"{self.target}, {how}{ranks}"

    @property
    def key(self) -> str:
        """Identifier of the setup."""
        return f"{self.target}/{self.method}-{self.draft or 'none'}-{self.gamma}/tp{self.tp}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One workload to time under one setup; a `held_back` one validates and is never fitted."""

    setup: Setup
    batch: Count
    prompt_tokens: Count
    held_back: bool = False

    @property
    def id(self) -> str:
        """Identifier of the point in a file."""
        return f"{self.setup.key}/{self.batch}x{self.prompt_tokens}"

    @property
    def workload(self) -> tuple[str, int, int, int]:
        """Target, TP, batch and prompt, which points of different methods share."""
        return self.setup.target, self.setup.tp, self.batch, self.prompt_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class PointRecord:
    """One timed point.

    `seconds` is the median of `all_seconds`, each the difference of two runs of different output
    lengths over the `rounds` that they differ by, so that prefill and ramps cancel.
    `context_tokens` is the mean length of a sequence over these rounds. `latency_s` is the engine's
    own mean inter-token latency over the same rounds, 0 where it reports none: a check.
    """

    op: Literal["engine-point"] = "engine-point"
    point: Point
    seconds: Positive
    all_seconds: tuple[float, ...]
    rounds: Positive
    context_tokens: Positive
    tokens_per_round: Positive
    latency_s: NonNegative = 0.0
    prefill_s: NonNegative = 0.0
    wall_s: NonNegative = 0.0

    @property
    def spread(self) -> float:
        """Largest minus smallest repeat, over the median."""
        return (max(self.all_seconds) - min(self.all_seconds)) / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedPoint:
    """A point that could not be timed, and why."""

    op: Literal["failed"] = "failed"
    point: Point
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRecord:
    """One start of an engine: how long it took, and the settings that it chose.

    `facts` may hold `async_scheduling`, `graph_tokens` (the largest captured batch of tokens),
    `kv_cache_blocks`, `block_tokens` and other settings that the engine chose.
    """

    op: Literal["start"] = "start"
    setup: Setup
    seconds: NonNegative
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecords:
    """Every record of one engine, version and GPU."""

    engine: str
    version: str
    gpu: str  # catalog name
    headers: tuple[Mapping[str, Any], ...]
    points: tuple[PointRecord, ...]
    starts: tuple[StartRecord, ...] = ()
    failed: tuple[FailedPoint, ...] = ()

    @property
    def name(self) -> str:
        """The profile's name: engine, major and minor version."""
        return f"{self.engine}-{'.'.join(self.version.split('.')[:2])}"

    @property
    def source(self) -> str:
        """Engine, machine, versions and date in a line, from the first header."""
        head = dict(self.headers[0])
        head["date"] = str(head.get("time", ""))[:10]
        names = ("driver", "cuda", "torch", "date", "commit")
        rest = [f"{name} {head[name]}" for name in names if head.get(name)]
        how = f"{self.engine} {self.version} on {head.get('gpu')}"
        return ", ".join([f"{len(self.points)} points measured with {how}", *rest])

    @property
    def fitted(self) -> list[PointRecord]:
        """Records that a fit may see."""
        return [r for r in self.points if not r.point.held_back]

    @property
    def held_back(self) -> list[PointRecord]:
        """Records kept for validation."""
        return [r for r in self.points if r.point.held_back]

    def facts(self, method: str) -> dict[str, Any]:
        """What the engine reported at the first start of a method that has a record."""
        return next((dict(s.facts) for s in self.starts if s.setup.method == method), {})


def read_engine_records(paths: Iterable[Path], *, held_back: bool = False) -> EngineRecords:
    """Records of one engine, version and GPU.

    Parameters
    ----------
    held_back : bool
        Keep every point back from the fit, whatever its record says.

    Raises
    ------
    RecordError
        With the line number: a line that is not a record, another engine, version or GPU than in
        the first file, or files without a timed point.
    """
    headers: list[Mapping[str, Any]] = []
    found: dict[str, list[Any]] = {"engine-point": [], "start": [], "failed": []}
    for path in paths:
        first, *lines = read_lines(path)
        header = first.header or {}
        headers.append(_same(header, headers[0] if headers else header, first.place))
        for line in lines:
            if line.header is None:
                record = _record(line)
                found[record.op].append(record)
    if not headers or not found["engine-point"]:
        raise RecordError("no timed point in what was given; run specroof calibrate engine first")
    points = _latest(found["engine-point"])
    if held_back:
        points = [_kept_back(record) for record in points]
    head = headers[0]
    return EngineRecords(
        engine=str(head["engine"]),
        version=str(head["version"]),
        gpu=str(head.get("gpu_name") or catalog_gpu(str(head["gpu"])) or head["gpu"]),
        headers=tuple(headers),
        points=tuple(points),
        starts=tuple(found["start"]),
        failed=tuple(found["failed"]),
    )


def catalog_gpu(device: str) -> str:
    """The catalog name of a device as nvidia-smi names it; "" where the catalog has none."""
    return GPU_NAMES.get(device, "")


def joined(fitted: EngineRecords, check: EngineRecords) -> EngineRecords:
    """Both sets of records as one; those of `check` are held back.

    Raises
    ------
    RecordError
        If they are of different engines, versions or GPUs.
    """
    for name in ("engine", "version", "gpu"):
        if getattr(fitted, name) != getattr(check, name):
            raise RecordError(
                f"records of {name} {getattr(check, name)} cannot check a profile of "
                f"{getattr(fitted, name)}"
            )
    return EngineRecords(
        engine=fitted.engine,
        version=fitted.version,
        gpu=fitted.gpu,
        headers=fitted.headers,
        points=(*fitted.points, *(_kept_back(r) for r in check.points)),
        starts=(*fitted.starts, *check.starts),
        failed=(*fitted.failed, *check.failed),
    )


def _kept_back(record: PointRecord) -> PointRecord:
    return replace(record, point=replace(record.point, held_back=True))


def _latest(records: Sequence[PointRecord]) -> list[PointRecord]:
    """One record per point: the last one where a point was timed again."""
    return list({record.point.id: record for record in records}.values())


def _same(header: Mapping[str, Any], first: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    for key in ("engine", "version", "gpu"):
        if not header.get(key):
            raise RecordError(f"{place}: the header lacks {key!r}")
        if header[key] != first[key]:
            raise RecordError(
                f"{place}: {key} {header[key]!r} after {first[key]!r}; fit one at a time"
            )
    return header


def _record(line: Line) -> PointRecord | StartRecord | FailedPoint:
    match line.value.get("op"):
        case "engine-point":
            return line.decode(PointRecord)
        case "start":
            return line.decode(StartRecord)
        case "failed":
            return line.decode(FailedPoint)
        case other:
            raise RecordError(f"{line.place}: unknown operation {other!r}")
