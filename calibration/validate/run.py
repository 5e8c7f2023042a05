"""Time the steps of sampled cases on this GPU with the runtime's kernels and graphs.

`specroof validate run` loads each pair of models once and times its cases in the order of the file,
so that even an interrupted run is a fair sample of every pair. Cases that are already in the output
are skipped. `specroof validate records` compares the times with predictions.

Cases with several ranks start one process per rank, unless torchrun already did. The ranks agree on
the time left and on the outcome of each case. If only some of them fail, the run ends; the same
command continues it.
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
FAILURES_IN_A_ROW = 5  # other than out of memory; then the device or the runtime is at fault
SAME_RUN = ("gpu", "driver", "torch", "commit")  # must not change within a file
LONGEST_CONTEXT = 262_144  # random weights can read longer contexts than the model was trained for


class StepRuntime:
    """What a validation run needs of the runtime; torch is imported with the first bench."""

    expected: type[Exception] = EngineError

    def check_device(self, ranks: int = 1) -> None:
        """Raise an error on a machine with fewer GPUs than `ranks`, before any file is created."""
        from runtime import require_gpu

        require_gpu("timing cases", ranks)

    def bench(self, pair: Pair) -> StepBench:
        """A bench for two catalog models with random weights."""
        from runtime import StepBench

        target, draft, tp = pair
        return StepBench(_shape(target), None if draft is None else _shape(draft), tp=tp)

    def case(self, case: Case) -> StepCase:
        """The runtime's `StepCase` of a case."""
        from runtime import StepCase

        return StepCase(plan=case.plan, batch=case.batch, context_tokens=case.context_tokens)

    def others_may_wait(self) -> bool:
        """Whether other ranks may be joining a group that this one has not joined."""
        from runtime import others_may_wait_to_join

        return others_may_wait_to_join()

    def exchange(self, word: str, *, failed: bool = False) -> list[str]:
        """The words of all ranks, in rank order; one that `failed` soon gives up waiting."""
        from runtime import exchange_words

        return exchange_words(word, failed=failed)


def _shape(model: str) -> ModelSpec:
    """A catalog model whose context limit admits every sampled case."""
    spec = catalog.model(model)
    return replace(spec, max_context_tokens=max(spec.max_context_tokens, LONGEST_CONTEXT))


class ValidationRun:
    """Time cases pair by pair; the time for each pair is proportional to its number of cases.

    Every rank has its own instance; only the first has a `log`.
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
        """Time the cases until all are done or the time is up; the number of cases left.

        The first pass gives every pair its share of the time. Unused time goes to the later pairs,
        and then to cases that the first pass did not reach.
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
        """Whether time is left, by the clock of the first rank."""
        return self.runtime.exchange(str(self.clock() < until))[0] == str(True)

    def agreed(self, error: Exception | None) -> Exception | None:
        """This rank's error; a `RecordError` if only some ranks failed.

        The collectives of the ranks would no longer match.
        """
        reason = "" if error is None else " ".join(str(error).split()) or type(error).__name__
        words = self.runtime.exchange(reason, failed=error is not None)
        failed = [f"rank {rank}: {word}" for rank, word in enumerate(words) if word]
        if failed and len(failed) < len(words):
            raise RecordError(
                f"{failed[0]}, while other ranks succeeded; run the same command again to continue"
            )
        return error

    def _pair(self, pair: Pair, cases: list[Case], until: float) -> list[Case]:
        """Load a pair and time its cases until `until`; the cases left."""
        if not self.before(until):
            return cases
        bench, error = None, None
        try:
            bench = self.runtime.bench(pair)
        except self.runtime.expected as expected:
            if self.runtime.others_may_wait():
                raise
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
        except Exception as failure:  # running out of memory must not end the run
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
    """The record of a timed case."""
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
    """Cases by pair of models; the pairs are in the order of their first case."""
    groups: dict[Pair, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.pair, []).append(case)
    return groups


def pair_lines(cases: CaseFile) -> list[str]:
    """One line for each pair of models with its number of cases."""
    return [
        f"{target:16} {draft or '-':16} tp {tp} {len(group):4} cases"
        for (target, draft, tp), group in by_pair(cases.cases).items()
    ]


def case_ids(lines: Sequence[Line]) -> set[str]:
    """Ids of the cases timed in these lines; failed cases are not included and run again."""
    timed = (line.value for line in lines if line.value.get("op") != "failed")
    return {str(record["case"]["id"]) for record in timed if "case" in record}


def ranks_of(cases: CaseFile) -> int:
    """The number of ranks, which is the same for all cases of a file.

    Raises `RecordError` if it is not, since the processes are only started once.
    """
    counts = sorted({case.tp for case in cases.cases})
    if len(counts) > 1:
        raise RecordError(f"the case file mixes tp {counts}; draw one file for each tp")
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
    """Time the cases that are not in `out` yet; returns a line, and the number of failed cases.

    Raises `RecordError` if `seconds` is not positive, `out` was written on another machine or by
    another version, or the device is missing or faulty.
    """
    from runtime import provenance

    if not seconds > 0:
        raise RecordError(f"--seconds {seconds:g} is not a positive time")
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
