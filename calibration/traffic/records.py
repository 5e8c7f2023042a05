"""Records of requests that an engine served: `specroof calibrate traffic` writes them.

A run is one scenario, of which the engine ran the exported plan, and the requests that it served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from calibration.records.jsonl import Count, NonNegative, Positive, RecordError, read_lines
from perfmodel.errors import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run: the scenario in the keys of the command line, and what the engine reported.

    `rates` is the injected acceptance per draft position, conditional as in `Acceptance`. `drafts`
    and `accepted` are the engine's counts of rounds of a sequence and of accepted drafts.
    """

    op: Literal["traffic-run"] = "traffic-run"
    run: str
    scenario: Mapping[str, Any]
    rates: tuple[float, ...] = ()
    token_budget: Count
    seed: int = 0
    drafts: NonNegative = 0.0
    accepted: NonNegative = 0.0
    arguments: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """One request of a run; times are in seconds from the first arrival."""

    op: Literal["request"] = "request"
    run: str
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
class PlayedRun:
    """A run and its requests, in order of arrival."""

    record: RunRecord
    requests: tuple[RequestRecord, ...]


def read_traffic_records(path: Path) -> tuple[Mapping[str, Any], list[PlayedRun]]:
    """The header and the runs of a file.

    Raises `RecordError`, with the line number, for a line that is not such a record, and if no run
    has requests.
    """
    header: Mapping[str, Any] = {}
    runs: dict[str, RunRecord] = {}
    requests: dict[str, list[RequestRecord]] = {}
    for line in read_lines(path):
        match line.value.get("op"):
            case _ if line.header is not None:
                header = line.header
            case "traffic-run":
                run = line.decode(RunRecord)
                runs[run.run], requests[run.run] = run, []
            case "request":
                request = line.decode(RequestRecord)
                if request.run not in runs:
                    raise RecordError(f"{line.place}: the run {shown(request.run)} is not above it")
                requests[request.run].append(request)
            case other:
                raise RecordError(f"{line.place}: unknown operation {shown(other)}")
    played = [
        PlayedRun(record=run, requests=tuple(requests[name]))
        for name, run in runs.items()
        if requests[name]
    ]
    if not played:
        raise RecordError(f"{path} has no served request; record some with calibrate traffic")
    return header, played
