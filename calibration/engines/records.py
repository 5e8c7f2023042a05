"""Measurements of `specroof calibrate engine`: one record per point, engine start or failure.

A point is one workload under one setup of the engine. Its record has the seconds of a plain
decoding step (γ = 0), or of a round of γ drafts and their verification.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from calibration.engines.undisturbed import DISTURBED, slowdowns
from calibration.records.jsonl import MOST, Count, NonNegative, Positive

MOST_BATCH = 1 << 16  # sequences that an engine decodes together


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

    `seconds` is the median of `all_seconds`, those of the repeats; if a point was timed several
    times, for example in several processes, these are all repeats. `windows_s` has the seconds per
    round of windows of consecutive rounds, by repeat; the time of a repeat is the mean of those
    that nothing disturbed, and `disturbed` has the means of repeats without any (`undisturbed`).
    Without windows, a repeat is the difference in time between two runs of different output
    lengths, divided by their difference in `rounds`, so that prefill and ramps cancel; `disturbed`
    are then repeats that differ from others that agree. `loop_s` has the seconds of a fixed loop
    before and after each repeat, which tell how fast the host was. `context_tokens` is the mean
    length of a sequence over the timed rounds, of which a repeat has `rounds` on average.
    `latency_s`, a check, is the mean inter-token latency that the engine reports.
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
    windows_s: tuple[Annotated[tuple[Positive, ...], Field(min_length=1)], ...] = ()
    loop_s: tuple[Positive, ...] = ()

    @property
    def disturbed_share(self) -> float:
        """Share of the windows that were disturbed, and left out; 0 without windows."""
        every = slowdowns(self.windows_s) if self.windows_s else [1.0]
        return sum(each > DISTURBED for each in every) / len(every)

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

    `notes` name points that are used otherwise than their file states. `hosts` has the number of
    the file that a point is from, by its id, since each file may be of another host; by default,
    all are of one.
    """

    engine: str
    version: str
    gpu: str  # catalog name
    headers: tuple[Mapping[str, Any], ...]
    points: tuple[PointRecord, ...]
    starts: tuple[StartRecord, ...] = ()
    failed: tuple[FailedPoint, ...] = ()
    notes: tuple[str, ...] = ()
    hosts: Mapping[str, int] = field(default_factory=dict)

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
