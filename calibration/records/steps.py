"""What a validation run times and writes: cases, and records of them, as plain JSON.

Pure standard library, so that the machine with the GPU needs nothing else. A case file holds the
shapes of its models, so no catalog is needed either. Cases are drawn by `draw_cases`, timed by
`validate_run` and compared by `step_errors`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from calibration.records.jsonl import RecordError as RecordError

TIMES = ("target_step_s", "verify_s", "draft_step_s", "round_s", "host_s")
TRIALS = {"trials": "capturing stream"}  # a header's word on where graphs are tried (step_memory)
SHAPE_FIELDS = {
    "name": str, "layers": int, "hidden": int, "query_heads": int, "kv_heads": int,
    "head_dim": int, "ffn_hidden": int, "vocab": int, "max_context_tokens": int,
    "tied_embeddings": bool, "qkv_bias": bool, "qk_norm": bool, "rope_theta": float,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CasePlan:
    """Who drafts and what a draft may read; satisfies the runtime's `DraftChoice`."""

    draft: str
    policy: str
    gamma: int
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
    purpose: str
    target: str
    plan: CasePlan
    batch: int
    context_tokens: int
    alpha: float
    tp: int = 1

    @property
    def pair(self) -> tuple[str, str | None, int]:
        """Which models must be loaded: target, standalone draft or None, and ranks."""
        draft = self.plan.draft
        return self.target, None if draft in ("none", "self") else draft, self.tp

    @property
    def label(self) -> str:
        """The case in words."""
        plan = self.plan
        draft = "self" if plan.draft == "self" else plan.draft
        budget = "" if plan.kv_budget_tokens is None else f" {plan.kv_budget_tokens:,}"
        return (
            f"{self.target}, {draft} {plan.policy}{budget}, γ {plan.gamma}, batch {self.batch}, "
            f"{self.context_tokens:,} tokens"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """One case and the median seconds measured; `line` is its place in the file."""

    case: Case
    times: Mapping[str, float]  # by the names of TIMES
    spread: float
    peak_memory_bytes: float
    memory_bytes: Mapping[str, float]
    parts_s: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # by pass and part
    prefill_s: float = 0.0  # of one prompt of `prefill_tokens`; 0 where it was not timed
    prefill_tokens: int = 0
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFile:
    """Cases in the order of their worth, the shapes of their models, and how they were drawn."""

    drawn: Mapping[str, Any]
    models: Mapping[str, Mapping[str, Any]]
    cases: Sequence[Case]

    def text(self) -> str:
        """The file: one case a line, so that a difference can be read."""
        cases = ",\n".join("  " + json.dumps(asdict(case)) for case in self.cases)
        return (
            f'{{"drawn": {json.dumps(self.drawn)},\n "models": {json.dumps(self.models)},\n'
            f' "cases": [\n{cases}\n]}}\n'
        )


def read_cases(path: Path) -> CaseFile:
    """The cases of a file.

    Raises
    ------
    RecordError
        If it cannot be read, or a case or model is not whole.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise RecordError(f"{path}: not a JSON file of cases ({error})") from error
    if not isinstance(value, dict) or set(value) != {"drawn", "models", "cases"}:
        raise RecordError(f"{path}: not a file of cases; `specroof validate draw` writes one")
    cases = [case_of(item, where=f"{path}: case {i + 1}") for i, item in enumerate(value["cases"])]
    for case in cases:
        for name in case.pair[:2]:
            if name is not None and set(value["models"].get(name, ())) != set(SHAPE_FIELDS):
                raise RecordError(f"{path}: {case.id} needs the whole shape of model {name}")
    if len({case.id for case in cases}) != len(cases):
        raise RecordError(f"{path}: two cases have the same id")
    return CaseFile(drawn=value["drawn"], models=value["models"], cases=cases)


def case_of(value: Any, *, where: str) -> Case:
    """A case from its JSON form.

    Raises
    ------
    RecordError
        If a field is missing, unknown, or of another type.
    """
    try:
        plan = CasePlan(**value["plan"])
        case = Case(**{**value, "plan": plan})
    except (TypeError, KeyError) as error:
        raise RecordError(f"{where}: not a case ({str(error).splitlines()[0]})") from error
    counts = {"batch": case.batch, "context_tokens": case.context_tokens, "tp": case.tp}
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise RecordError(f"{where}: {name}={count!r} must be a positive whole number")
    if not isinstance(plan.gamma, int) or plan.gamma < 0:
        raise RecordError(f"{where}: gamma={plan.gamma!r} must be a whole number")
    return case


def read_records(path: Path) -> tuple[Mapping[str, Any], list[StepRecord]]:
    """Provenance and records of a validation run; cases that did not fit are left out.

    Raises
    ------
    RecordError
        With the line number: a line that is no JSON or breaks off, no provenance, a time that is
        missing or not positive, or another unit.
    """
    header: Mapping[str, Any] | None = None
    records: list[StepRecord] = []
    for number, value in json_lines(path):
        where = f"{path}, line {number}"
        if value.get("op") == "provenance":
            if header is not None and header.get("gpu") != value.get("gpu"):
                raise RecordError(f"{where}: GPU {value.get('gpu')!r} after {header.get('gpu')!r}")
            header = header or value
        elif header is None:
            raise RecordError(f"{where}: no provenance before the first record")
        elif value.get("op") == "step":
            records.append(_record(value, where, number))
    if header is None or not records:
        raise RecordError(f"{path}: holds no record of a step")
    return header, records


def _record(value: Mapping[str, Any], where: str, number: int) -> StepRecord:
    case = case_of(value.get("case"), where=where)
    if value.get("unit") != "s":
        raise RecordError(f"{where}: unit is {value.get('unit')!r}, not 's'")
    times = {}
    for name in TIMES:
        times[name] = _seconds(value, name, where)
    tokens = value.get("prefill_tokens", 0)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 0:
        raise RecordError(f"{where}: prefill_tokens={tokens!r} must be a whole number")
    return StepRecord(
        case=case,
        times=times,
        prefill_s=_seconds(value, "prefill_s", where) if tokens else 0.0,
        prefill_tokens=tokens,
        spread=float(value.get("spread", 0.0)),
        peak_memory_bytes=float(value.get("peak_memory_bytes", 0.0)),
        memory_bytes=dict(value.get("memory_bytes", {})),
        parts_s=dict(value.get("parts_s", {})),
        line=number,
    )


def _seconds(value: Mapping[str, Any], name: str, where: str) -> float:
    """A positive time; those that a plain decode does not have may be 0.

    `host_s` may be negative: a round less passes that were timed back to back.
    """
    found = value.get(name)
    if isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found):
        seconds = float(found)
        may_be_zero = name in ("draft_step_s", "round_s")
        if seconds > 0 or (seconds == 0 and may_be_zero) or name == "host_s":
            return seconds
    raise RecordError(f"{where}: {name}={found!r} is no time in seconds")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not empty.

    Raises
    ------
    RecordError
        If the file cannot be read, or a line is no JSON object; a last line without its end says
        that the file was cut off.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read ({error})") from error
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            why = "the file is cut off here" if number == len(lines) else "not JSON"
            raise RecordError(f"{path}, line {number}: {why}") from error
        if not isinstance(value, dict):
            raise RecordError(f"{path}, line {number}: not a JSON object")
        yield number, value
