"""Records of requests that an engine served: `specroof calibrate traffic` writes them.

A run is one scenario, of which the engine ran the exported plan, and the requests that it served.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from calibration.records.jsonl import Count, NonNegative, Positive, RecordError, read_lines
from calibration.records.kernels import check_header
from perfmodel.errors import shown

NEEDED = ("target", "gpu", "engine", "batch")  # keys of a scenario, whose defaults would be wrong


class Request(NamedTuple):
    """One served request; times are in seconds from the first arrival."""

    arrival_s: NonNegative
    prompt_tokens: Count
    output_tokens: Count
    first_token_s: Positive
    finish_s: Positive

    @property
    def ttft_s(self) -> float:
        """Seconds from the arrival to the first token."""
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Seconds per output token after the first; 0 for one token."""
        return (self.finish_s - self.first_token_s) / max(1, self.output_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run: the scenario in the keys of the command line, and what the engine reported.

    `rates` is the injected acceptance per draft position, conditional as in `Acceptance`. `drafts`
    and `accepted` are the engine's counts of rounds of a sequence and of accepted drafts.
    `requests` are in order of arrival.
    """

    op: Literal["traffic-run"] = "traffic-run"
    run: str
    scenario: Mapping[str, Any]
    rates: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    token_budget: Count
    seed: int = 0
    drafts: NonNegative = 0.0
    accepted: NonNegative = 0.0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedRun(RunRecord):
    """A run that was read; `place` is "FILE, line N"."""

    place: str = field(compare=False)


def read_traffic_records(paths: Iterable[Path]) -> list[PlacedRun]:
    """The runs of some files.

    Raises `RecordError`, with the line number, for a line that is not such a record, for a run
    without requests, from another GPU than its scenario's, or that appears twice, and if the files
    have no run.
    """
    runs: list[PlacedRun] = []
    for path in paths:
        header: Mapping[str, Any] = {}
        for line in read_lines(path):
            if line.header is not None:
                header = line.header
                continue
            if line.value.get("op") != "traffic-run":
                raise RecordError(f"{line.place}: unknown operation {shown(line.value.get('op'))}")
            run = _checked(line.decode(RunRecord), line.place)
            check_header(header, run.scenario["gpu"], line.place)
            for other in runs:
                if (other.run, other.requests) == (run.run, run.requests):
                    raise RecordError(
                        f"{line.place}: the run {shown(run.run)} is already in {other.place}; give "
                        f"it once"
                    )
            values = {one.name: getattr(run, one.name) for one in fields(RunRecord)}
            runs.append(PlacedRun(**values, place=line.place))
    if not runs:
        raise RecordError("the records have no run; record one with specroof calibrate traffic")
    return runs


def _checked(run: RunRecord, place: str) -> RunRecord:
    if not run.requests:
        raise RecordError(f"{place}: the run {shown(run.run)} has no requests")
    if missing := [name for name in NEEDED if run.scenario.get(name) in (None, "")]:
        raise RecordError(
            f"{place}: the scenario of {shown(run.run)} does not state {', '.join(missing)}; add "
            f"what the engine served"
        )
    arrivals = [request.arrival_s for request in run.requests]
    if arrivals != sorted(arrivals):
        raise RecordError(f"{place}: the arrivals of {shown(run.run)} are not in order")
    for number, request in enumerate(run.requests, start=1):
        if not request.arrival_s < request.first_token_s <= request.finish_s:
            raise RecordError(
                f"{place}: request {number} of {shown(run.run)} has a first token at "
                f"{request.first_token_s} s, which is not between its arrival and its end"
            )
    return run
