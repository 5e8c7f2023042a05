"""Time the steps of sampled cases on this GPU with the runtime's kernels and graphs.

`specroof validate run` loads each pair of models once and times its cases in the order of the file,
so that a run cut off is still a fair sample of every pair. Cases that the output holds are skipped.
`specroof validate records` compares afterwards.

Cases of several ranks start as many processes, unless torchrun has. The ranks agree on time left
and on each case's outcome; one that fails alone ends the run, which the same command continues.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.records.jsonl import Line, RecordError, RecordLog, read_lines
from calibration.records.steps import (
    PASS_END,
    TIMES,
    TRIALS,
    Case,
    CaseFile,
    FailedCase,
    Pair,
    StepRecord,
)
from perfmodel import ModelSpec, catalog
from runtime import EngineError, show_status

if TYPE_CHECKING:
    from runtime import StepBench, StepCase, StepTimes

REPEATS = 15
FAILURES_IN_A_ROW = 5  # not of memory: then the device or the runtime is at fault
SAME_RUN = ("gpu", "driver", "torch", "commit")  # must not change within a file
LONGEST_CONTEXT = 262_144  # random weights read any context, whatever the model was trained for


class StepRuntime:
    """The runtime's benches; torch is imported when the first is made."""

    expected: type[Exception] = EngineError

    def check_device(self) -> None:
        """Refuse a machine without a GPU, before a file is begun."""
        from runtime import require_gpu

        require_gpu("timing cases")

    def bench(self, pair: Pair) -> StepBench:
        """Load a pair of models of the catalog with random weights."""
        from runtime import StepBench

        target, draft, tp = pair
        return StepBench(_shape(target), None if draft is None else _shape(draft), tp=tp)

    def case(self, case: Case) -> StepCase:
        """The runtime's form of a case."""
        from runtime import StepCase

        return StepCase(plan=case.plan, batch=case.batch, context_tokens=case.context_tokens)

    def exchange(self, word: str) -> list[str]:
        """Every rank's word, in the order of ranks."""
        from runtime import exchange_words

        return exchange_words(word)


def _shape(model: str) -> ModelSpec:
    """A model of the catalog, with room for any sampled context."""
    spec = catalog.model(model)
    return replace(spec, max_context_tokens=max(spec.max_context_tokens, LONGEST_CONTEXT))


class ValidationRun:
    """Times cases pair by pair; each pair has the share of the time that its cases are of all.

    Every rank makes one; only the first has a `log`.
    """

    def __init__(
        self,
        runtime: StepRuntime,
        log: RecordLog | None,
        *,
        seconds: float,
        repeats: int = REPEATS,
        parts: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runtime, self.log = runtime, log
        self.repeats, self.parts, self.clock = repeats, parts, clock
        self.deadline = clock() + seconds
        self.done = self.failed = self.total = self.in_a_row = 0

    def measure(self, left: Sequence[Case]) -> int:
        """Time `left` until all are done or time is out; how many are left.

        A first round gives every pair its share. What a pair leaves over goes to those after it,
        and cases that found no time are tried again at the end, while there is any.
        """
        self.total, waiting = len(left), list(left)
        while waiting and self.before(self.deadline):
            groups, unmet = list(by_pair(waiting).items()), []
            for i, (pair, of_pair) in enumerate(groups):
                now, ahead = self.clock(), sum(len(cases) for _, cases in groups[i:])
                until = now + len(of_pair) / ahead * (self.deadline - now)
                unmet += self._pair(pair, of_pair, until)
            if len(unmet) == len(waiting):
                break
            waiting = unmet
        return len(waiting)

    def before(self, until: float) -> bool:
        """Whether there is time left, as the first rank sees it."""
        return self.runtime.exchange(str(self.clock() < until))[0] == str(True)

    def agreed(self, error: Exception | None) -> Exception | None:
        """This case's outcome on every rank: none, or an error.

        Raises
        ------
        RecordError
            If some ranks failed and others did not: their collectives no longer match.
        """
        reason = "" if error is None else " ".join(str(error).split()) or type(error).__name__
        words = self.runtime.exchange(reason)
        failed = [f"rank {rank}: {word}" for rank, word in enumerate(words) if word]
        if failed and len(failed) < len(words):
            raise RecordError(
                f"{failed[0]}, where other ranks went on; the same command continues the run"
            )
        return error

    def _pair(self, pair: Pair, cases: list[Case], until: float) -> list[Case]:
        """Load a pair and time its cases until `until`; those left."""
        if not self.before(until):
            return cases
        bench, error = None, None
        try:
            bench = self.runtime.bench(pair)
        except self.runtime.expected as expected:
            error = expected
        if self.agreed(error) is not None or bench is None:
            for case in cases:
                self._write_failure(case, error or RecordError("no bench"))
            return []
        try:
            for i, case in enumerate(cases):
                if not self.before(until):
                    return cases[i:]
                self._case(bench, case)
        finally:
            bench.close()
        return []

    def _case(self, bench: StepBench, case: Case) -> None:
        start, error, times = self.clock(), None, None
        try:
            drawn = case.purpose == "scenario"  # further choices of one repeat its prompt
            times = bench.time(
                self.runtime.case(case),
                repeats=self.repeats,
                parts=self.parts and drawn,
                prompt=drawn,
            )
        except Exception as failure:  # a device out of memory must not end the run
            error = failure
        if self.agreed(error) is not None or times is None:
            error = error or RecordError("not timed")
            self._write_failure(case, error)
            self.in_a_row += 1
            if self.in_a_row >= FAILURES_IN_A_ROW and not isinstance(error, self.runtime.expected):
                raise RecordError(f"{self.in_a_row} cases failed in a row: {error}") from error
            return
        self.in_a_row = 0
        self._write(step_record(case, times, wall_s=round(self.clock() - start, 3)))
        self.done += 1
        self._show(case)

    def _write_failure(self, case: Case, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        self._write(FailedCase(case=case, reason=reason))
        self.failed += 1
        print(f"{case.id}: {reason}", file=sys.stderr, flush=True)

    def _write(self, record: StepRecord | FailedCase) -> None:
        if self.log is not None:
            self.log.append(record)

    def _show(self, case: Case) -> None:
        show_status(f"{self.done + self.failed} of {self.total} cases, {case.label}")


def step_record(case: Case, times: StepTimes, *, wall_s: float) -> StepRecord:
    """The record of a case that was timed."""
    return StepRecord(
        case=case,
        unit="s",
        **{name: getattr(times, name) for name in TIMES},
        prefill_s=times.prefill_s,
        prefill_tokens=times.prefill_tokens,
        spread=times.spread,
        repeats=times.repeats,
        peak_memory_bytes=times.peak_memory_bytes,
        memory_bytes=dict(times.memory_bytes),
        parts_s={name: dict(part) for name, part in times.parts_s.items()},
        wall_s=wall_s,
    )


def by_pair(cases: Sequence[Case]) -> dict[Pair, list[Case]]:
    """Cases of each pair of models, in their order; the pairs in the order of their first case."""
    groups: dict[Pair, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.pair, []).append(case)
    return groups


def pair_lines(cases: CaseFile) -> list[str]:
    """How many cases each pair of models has."""
    return [
        f"{target:16} {draft or '-':16} tp {tp} {len(group):4} cases"
        for (target, draft, tp), group in by_pair(cases.cases).items()
    ]


def case_ids(lines: Sequence[Line]) -> set[str]:
    """Ids of the cases that these lines have timed; one that failed is tried again."""
    timed = (line.value for line in lines if line.value.get("op") != "failed")
    return {str(record["case"]["id"]) for record in timed if "case" in record}


def ranks_of(cases: CaseFile) -> int:
    """The number of ranks of every case.

    Raises
    ------
    RecordError
        If cases differ: processes are started once.
    """
    counts = sorted({case.tp for case in cases.cases})
    if len(counts) > 1:
        raise RecordError(f"cases of tp {counts} in one file; draw a file for each")
    return counts[0] if counts else 1


def time_cases(
    cases: CaseFile,
    out: Path,
    *,
    command: Sequence[str],
    seconds: float,
    repeats: int = REPEATS,
    parts: bool = False,
) -> tuple[str, int]:
    """Time what `out` does not hold until time is out; a summary in one line, the count of failed.

    Raises
    ------
    RecordError
        If `out` was written on another machine or with another version, or the device is at fault
        or missing.
    """
    from runtime import provenance

    start, runtime = time.monotonic(), StepRuntime()
    runtime.check_device()
    with ExitStack() as stack:
        log = None
        if os.environ.get("RANK", "0") == "0":
            header = provenance(list(command)) | TRIALS | PASS_END
            log = stack.enter_context(RecordLog(out, header, same=SAME_RUN))
            done = case_ids(log.lines)
        else:
            done = case_ids(read_lines(out, drop_cut_off=True)) if out.is_file() else set()
        run = ValidationRun(
            runtime,
            log,
            seconds=seconds - (time.monotonic() - start),
            repeats=repeats,
            parts=parts,
        )
        unmet = run.measure([case for case in cases.cases if case.id not in done])
    summary = f"{run.done} cases timed, {run.failed} failed, {unmet} left, {len(done)} done before"
    return summary, run.failed
