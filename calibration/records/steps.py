"""Cases that a validation run times, and what it writes of each: `{"op": "step"}` or "failed".

A case file is one JSON object: how its cases were sampled, and the cases, one a line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from calibration.records.jsonl import RecordError, decode, read_lines, read_text

TIMES = ("target_step_s", "verify_s", "draft_step_s", "round_s", "host_s")
# A header's entry on where graphs are tried before they are captured (validate.memory).
TRIALS = {"trials": "capturing stream"}
# A header's entry on what a timed pass of the target ends at; at logits where it is missing.
PASS_END = {"pass_end": "tokens"}
Count = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]

Pair = tuple[str, str | None, int]  # target, standalone draft or None, and ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class CasePlan:
    """Who drafts and what a draft may read; satisfies the runtime's `DraftChoice`."""

    draft: str
    policy: str
    gamma: Annotated[int, Field(ge=0)]
    kv_budget_tokens: int | None
    sink_tokens: int = 16
    draft_tp: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One configuration to time.

    `scenario` names the workload that it shares with other choices of γ, draft or budget; `alpha`
    is the acceptance at which its choices are judged, assumed and not measured. `purpose` is
    "scenario" or, where the case is there for a decision only, "choice".
    """

    id: str
    scenario: str
    purpose: Literal["scenario", "choice"]
    target: str
    plan: CasePlan
    batch: Count
    context_tokens: Count
    alpha: float
    tp: Count = 1

    @property
    def pair(self) -> Pair:
        """Which models must be loaded."""
        draft = self.plan.draft
        return self.target, None if draft in ("none", "self") else draft, self.tp

    @property
    def label(self) -> str:
        """The case in words."""
        plan = self.plan
        budget = "" if plan.kv_budget_tokens is None else f" {plan.kv_budget_tokens:,}"
        return (
            f"{self.target}, {plan.draft} {plan.policy}{budget}, γ {plan.gamma}, batch "
            f"{self.batch}, {self.context_tokens:,} tokens"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One timed case: median seconds, and bytes of one rank.

    The fields are those of the runtime's `StepTimes`, where they are explained. `draft_step_s` and
    `round_s` are 0 for plain decoding; `host_s`, a difference of two timings, may be negative.
    `parts_s` holds seconds by pass and kind of kernel, `wall_s` how long the case took to time.
    """

    op: Literal["step"] = "step"
    case: Case
    unit: Literal["s"]
    target_step_s: Positive
    verify_s: Positive
    draft_step_s: NonNegative
    round_s: NonNegative
    host_s: float
    prefill_s: NonNegative = 0.0
    prefill_tokens: Annotated[int, Field(ge=0)] = 0
    spread: float = 0.0
    repeats: int = 0
    peak_memory_bytes: float = 0.0
    memory_bytes: Mapping[str, float] = field(default_factory=dict)
    parts_s: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    wall_s: float = 0.0

    @property
    def times(self) -> dict[str, float]:
        """Seconds by the names of `TIMES`."""
        return {name: getattr(self, name) for name in TIMES}


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCase:
    """A case that could not be timed, and why."""

    op: Literal["failed"] = "failed"
    case: Case
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFile:
    """Cases in the order of their worth, and how they were sampled.

    `models` is in files of older runs only: the shapes of their models, now taken from the catalog.
    """

    drawn: Mapping[str, Any]
    cases: tuple[Case, ...]
    models: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The file: one case a line, so that a difference can be read."""
        cases = ",\n".join("  " + json.dumps(asdict(case)) for case in self.cases)
        return f'{{"drawn": {json.dumps(self.drawn)},\n "cases": [\n{cases}\n]}}\n'


def read_cases(path: Path) -> CaseFile:
    """The cases of a file.

    Raises
    ------
    RecordError
        If it cannot be read, a case is incomplete, or two have the same id.
    """
    file = decode(CaseFile, read_text(path), str(path))
    if len({case.id for case in file.cases}) != len(file.cases):
        raise RecordError(f"{path}: two cases have the same id")
    return replace(file, models={})


def read_steps(path: Path) -> tuple[Mapping[str, Any], list[StepRecord]]:
    """Header and records of a validation run; cases that did not fit are left out.

    Raises
    ------
    RecordError
        With the line number: a line that is not a record, a time that is missing or not positive,
        or records of another GPU.
    """
    first, *lines = read_lines(path)
    header = first.header or {}
    records: list[StepRecord] = []
    for line in lines:
        if line.header is not None:
            if line.header.get("gpu") != header.get("gpu"):
                raise RecordError(
                    f"{line.place}: GPU {line.header.get('gpu')!r} after {header.get('gpu')!r}"
                )
        elif line.value.get("op") == "failed":
            line.decode(FailedCase)
        else:
            record = line.decode(StepRecord)
            if record.prefill_tokens and not record.prefill_s:
                raise RecordError(f"{line.place}: prefill_s=0 of {record.prefill_tokens} tokens")
            records.append(record)
    if not records:
        raise RecordError(f"{path}: holds no record of a step")
    return header, records
