"""Cases of a validation run, and its records: `{"op": "step"}` or `{"op": "failed"}`.

A case file is one JSON object with the sampling parameters and the cases, one per line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from calibration.records.jsonl import (
    MOST,
    Count,
    NonNegative,
    Positive,
    RecordError,
    decode,
    json_object,
    read_lines,
    read_text,
)
from calibration.records.kernels import gpu_of
from perfmodel import Scenario, StepTime, parse_scenario
from perfmodel.passes import prefill_pass
from perfmodel.speculation import target_rank

TIMES = ("target_step_s", "verify_s", "draft_step_s", "round_s", "host_s")
# Header entry: the stream on which a graph is tried before its capture (validate/memory.py).
TRIALS = {"trials": "capturing stream"}
# Header entry: where a timed pass of the target ends. Without it, passes end at the logits.
PASS_END = {"pass_end": "tokens"}
# Commits whose host launched the next draft only after it had read the verdict. Rounds timed with
# them are no longer those of the engine; its passes are still comparable.
OLDER_ROUNDS = frozenset({"872802a", "b2cc5ff", "230e9e0", "82430ba7e128"})

# A pass is replayed for WARM_S, then REPEATS times (runtime.bench.steps). The power limit lowers
# the clock after about FULL_CLOCK_S, which the median replay of a short pass does not reach.
WARM_S, WARM_ROUNDS, REPEATS, FULL_CLOCK_S = 0.05, 3, 15, 0.1

CHUNK_TOKENS = 2048  # of `EngineSetup`: room for a prompt in a standalone draft's ring
TIMED_ROUNDS = 23  # rounds that a timed batch has KV cache for; affects memory, not time

Bytes = Annotated[float, Field(ge=0, le=1e15)]
Pair = tuple[str, str | None, int]  # target, standalone draft or None, and ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class CasePlan:
    """The draft of a case; implements the runtime's `DraftChoice` protocol."""

    draft: str
    policy: str
    gamma: Annotated[int, Field(ge=0)]
    kv_budget_tokens: int | None
    sink_tokens: int = 16
    draft_tp: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One configuration to time.

    Cases with the same `scenario` are different choices of γ, draft or budget for one workload.
    `alpha` is the assumed acceptance at which these choices are compared. `purpose` is "scenario",
    or "choice" for a case that only serves such a comparison.
    """

    id: str
    scenario: str
    purpose: Literal["scenario", "choice"]
    target: str
    plan: CasePlan
    batch: Count
    context_tokens: Count
    alpha: Annotated[float, Field(ge=0, le=1)]
    tp: Count = 1

    @property
    def pair(self) -> Pair:
        """The models to load, and the number of ranks."""
        draft = self.plan.draft
        return self.target, None if draft in ("none", "self") else draft, self.tp

    @property
    def label(self) -> str:
        """The case in one line of text."""
        plan = self.plan
        budget = "" if plan.kv_budget_tokens is None else f" {plan.kv_budget_tokens:,}"
        return (
            f"{self.target}, {plan.draft} {plan.policy}{budget}, γ {plan.gamma}, batch "
            f"{self.batch}, {self.context_tokens:,} tokens"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One timed case: median seconds, and memory of one rank in bytes.

    The runtime's `StepTimes` documents the fields. `draft_step_s` and `round_s` are 0 for plain
    decoding. `host_s` is a difference of two timings and may be negative. `parts_s` holds seconds
    by pass and kind of kernel, `wall_s` the time spent on the case.
    """

    op: Literal["step"] = "step"
    case: Case
    unit: Literal["s"]
    target_step_s: Positive
    verify_s: Positive
    draft_step_s: NonNegative
    round_s: NonNegative
    host_s: Annotated[float, Field(ge=-MOST, le=MOST)]
    prefill_s: NonNegative = 0.0
    prefill_tokens: Annotated[int, Field(ge=0)] = 0
    spread: float = 0.0
    repeats: Annotated[int, Field(ge=0)] = 0
    peak_memory_bytes: Bytes = 0.0
    memory_bytes: Mapping[str, Bytes] = field(default_factory=dict)
    parts_s: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    wall_s: float = 0.0

    @property
    def times(self) -> dict[str, float]:
        """Seconds by the names in `TIMES`."""
        return {name: getattr(self, name) for name in TIMES}


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCase:
    """A case that could not be timed, and the reason."""

    op: Literal["failed"] = "failed"
    case: Case
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFile:
    """Cases in the order of timing, and how they were drawn.

    `models` (the models' shapes) only exists in older files; they now come from the catalog.
    """

    drawn: Mapping[str, Any]
    cases: tuple[Case, ...]
    models: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The text of the file, with one case per line so that diffs are readable."""
        cases = ",\n".join("  " + json.dumps(asdict(case)) for case in self.cases)
        return f'{{"drawn": {json.dumps(self.drawn)},\n "cases": [\n{cases}\n]}}\n'


def at_full_clock(pass_s: float, *, is_round: bool = False) -> bool:
    """Whether a pass of a benchmark, or a round, ends before the power limit lowers the clock."""
    warm_s = WARM_ROUNDS * pass_s if is_round else WARM_S
    return warm_s + REPEATS / 2 * pass_s < FULL_CLOCK_S


def has_older_rounds(header: Mapping[str, object]) -> bool:
    """Whether the rounds of a run with this header are those of an older engine."""
    return header.get("commit") in OLDER_ROUNDS


def read_cases(path: Path) -> CaseFile:
    """Read a case file.

    Raises `RecordError` if it cannot be read, has no cases, a case is invalid, or two cases
    have the same id.
    """
    file = json_object(read_text(path), str(path)).decode(CaseFile)
    if not file.cases:
        raise RecordError(f"{path}: it has no cases; draw some with `specroof validate draw`")
    if len({case.id for case in file.cases}) != len(file.cases):
        raise RecordError(f"{path}: two cases have the same id")
    return replace(file, models={})


def read_steps(path: Path) -> tuple[Mapping[str, Any], list[StepRecord]]:
    """Read the header and the records of a validation run, without the failed cases.

    Raises `RecordError` if the catalog does not have the GPU, a line is not a record, a time is
    missing or not positive, a case is recorded twice, or records are of several GPUs; with the line
    number.
    """
    first, *lines = read_lines(path)
    header = first.header or {}
    gpu_of(header, first.place)
    records: dict[str, StepRecord] = {}
    for line in lines:
        if line.header is not None:
            if line.header.get("gpu") != header.get("gpu"):
                raise RecordError(
                    f"{line.place}: GPU {line.header.get('gpu')!r} after {header.get('gpu')!r}; "
                    f"keep one file per GPU"
                )
        elif line.value.get("op") == "failed":
            line.decode(FailedCase)
        else:
            record = line.decode(StepRecord)
            if fault := _fault(record):
                raise RecordError(f"{line.place}: {fault}")
            if record.case.id in records:
                raise RecordError(
                    f"{line.place}: case {record.case.id} is recorded twice; remove one of the two"
                )
            records[record.case.id] = record
    if not records:
        raise RecordError(f"{path}: has no record of a timed case")
    return header, list(records.values())


def read_rows(path: Path) -> tuple[Mapping[str, Any], list[StepRecord]]:
    """The header and the rows of the last `specroof run bench` in a file, as records of steps.

    Raises `RecordError` if the catalog does not have the GPU, or a row lacks something; with the
    line number.
    """
    lines = read_lines(path)
    start = max(at for at, line in enumerate(lines) if line.header is not None)
    header = lines[start].header or {}
    gpu_of(header, lines[start].place)
    records = []
    for line in lines[start + 1 :]:
        row = dict(line.value)
        name = f"{row.get('model')} {row.get('batch')} x {row.get('context_tokens')}"
        case = {name: row.get(name) for name in ("batch", "context_tokens", "tp", "plan")}
        case |= {"id": name, "scenario": name, "purpose": "scenario", "alpha": 0.0}
        case["target"] = row.get("model")
        step = {name: row[name] for name in (*TIMES, "spread", "repeats") if name in row}
        text = json.dumps({"op": "step", "case": case, "unit": "s"} | step)
        records.append(decode(StepRecord, text, line.place))
    return header, records


def case_scenario(case: Case, *, gpu: str, engine: str = "specroof") -> Scenario:
    """The scenario that predicts a case."""
    plan = case.plan
    return parse_scenario(
        {
            "target": case.target,
            "draft": plan.draft,
            "draft_policy": plan.policy if plan.draft != "none" else None,
            "kv_budget": plan.kv_budget_tokens,
            "gamma": plan.gamma,
            "gpu": gpu,
            "tp": case.tp,
            "draft_tp": plan.draft_tp,
            "batch": case.batch,
            "prompt_tokens": case.context_tokens,
            "output_tokens": (plan.gamma + 1) * TIMED_ROUNDS,
            "acceptance": case.alpha,
            "engine": engine,
        }
    ).scenario()


def prompt_chunks(scenario: Scenario, tokens: int) -> list[float]:
    """Seconds of the kernels of each chunk of one prompt, up to the last hidden state."""
    rank, chunks = target_rank(scenario), []
    for start in range(0, tokens, CHUNK_TOKENS):
        chunk = min(CHUNK_TOKENS, tokens - start)
        step = prefill_pass(rank, batch=1, prompt_tokens=chunk, cached_tokens=start)
        parts = (part for part in step.parts if part.name not in ("lm_head", "sampling"))
        chunks.append(float(StepTime(tuple(parts)).total_s))
    return chunks


def _fault(record: StepRecord) -> str:
    """What is impossible in a record, or ""."""
    case = record.case
    for name in ("draft_step_s", "round_s"):
        if case.plan.gamma and not record.times[name]:
            return f"{name}=0 with gamma={case.plan.gamma}"
    stored = sum(record.memory_bytes.values())
    if 0.0 < record.peak_memory_bytes < max(stored, 1.0):
        return (
            f"peak_memory_bytes={record.peak_memory_bytes:.6g} is below the {stored:,.0f} bytes "
            f"of weights and KV cache"
        )
    if record.prefill_tokens and not record.prefill_s:
        return f"prefill_s=0 for {record.prefill_tokens} prompt tokens"
    if record.prefill_tokens > case.context_tokens:
        return (
            f"prefill_tokens={record.prefill_tokens} exceeds the context of "
            f"{case.context_tokens} tokens"
        )
    return ""
