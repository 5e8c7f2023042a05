"""Time the steps of drawn cases on this GPU with the runtime's own kernels and graphs.

`python -m calibration.validate.run --cases FILE.json --out FILE.jsonl --seconds N` loads each pair
of models once and times its cases in the order of the file, so that a run cut off is still a fair
sample of every pair. Cases that FILE.jsonl holds are passed over. It needs torch and the runtime,
neither pydantic nor the catalog; `specroof validate records FILE.jsonl` compares afterwards.

Cases of several ranks start as many processes, unless torchrun has. The ranks agree on time left
and on each case's outcome; one that fails alone ends the run, which the same command continues.
Exit codes: 0, 4 where cases failed, 1 where a rank did, 2 for bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TextIO

from calibration.records.jsonl import open_records
from calibration.records.steps import (
    TIMES,
    TRIALS,
    Case,
    CaseFile,
    RecordError,
    json_lines,
    read_cases,
)

REPEATS = 15
FAILURES_IN_A_ROW = 5  # not of memory: then the device or the runtime is at fault
SAME_RUN = ("gpu", "driver", "torch", "commit")  # must not change within a file


class Times(Protocol):
    """What a bench returns of one case; seconds are medians."""

    @property
    def target_step_s(self) -> float: ...
    @property
    def verify_s(self) -> float: ...
    @property
    def draft_step_s(self) -> float: ...
    @property
    def round_s(self) -> float: ...
    @property
    def host_s(self) -> float: ...
    @property
    def spread(self) -> float: ...
    @property
    def repeats(self) -> int: ...
    @property
    def peak_memory_bytes(self) -> int: ...
    @property
    def memory_bytes(self) -> Any: ...
    @property
    def prefill_s(self) -> float: ...
    @property
    def prefill_tokens(self) -> int: ...
    @property
    def parts_s(self) -> Any: ...


class Bench(Protocol):
    """One pair of models, loaded."""

    def time(
        self, case: Any, *, repeats: int = REPEATS, parts: bool = False, prompt: bool = False
    ) -> Times:
        """Time one case, with `prompt` its prefill too; an error where it does not fit."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class Runtime(Protocol):
    """What a run needs of the runtime: a bench per pair, and its expected errors."""

    expected: type[Exception]

    def bench(self, models: CaseFile, pair: tuple[str, str | None, int]) -> Bench: ...
    def case(self, case: Case) -> Any: ...
    def exchange(self, word: str) -> list[str]: ...


class StepRuntime:
    """The runtime itself, imported when it is first used."""

    def __init__(self) -> None:
        import runtime

        self.runtime: Any = runtime
        self.expected: type[Exception] = runtime.EngineError

    def bench(self, models: CaseFile, pair: tuple[str, str | None, int]) -> Bench:
        """Load a pair of models with random weights."""
        target, draft, tp = pair
        shapes = [
            None if name is None else self.runtime.DecoderConfig(**models.models[name])
            for name in (target, draft)
        ]
        found: Bench = self.runtime.StepBench(*shapes, tp=tp)
        return found

    def case(self, case: Case) -> Any:
        """The runtime's form of a case."""
        return self.runtime.StepCase(
            plan=case.plan, batch=case.batch, context_tokens=case.context_tokens
        )

    def exchange(self, word: str) -> list[str]:
        """Every rank's word, in the order of ranks."""
        words: list[str] = self.runtime.exchange_words(word)
        return words


class ValidationRun:
    """Times cases pair by pair; each pair has the share of the time that its cases are of all."""

    def __init__(
        self,
        runtime: Runtime,
        cases: CaseFile,
        file: TextIO,
        *,
        seconds: float,
        repeats: int = REPEATS,
        parts: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runtime, self.cases, self.file = runtime, cases, file
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
            for i, (pair, mine) in enumerate(groups):
                now, ahead = self.clock(), sum(len(cases) for _, cases in groups[i:])
                until = now + len(mine) / ahead * (self.deadline - now)
                unmet += self._pair(pair, mine, until)
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

    def _pair(
        self, pair: tuple[str, str | None, int], cases: list[Case], until: float
    ) -> list[Case]:
        """Load a pair and time its cases until `until`; those left."""
        if not self.before(until):
            return cases
        bench, error = None, None
        try:
            bench = self.runtime.bench(self.cases, pair)
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

    def _case(self, bench: Bench, case: Case) -> None:
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
        self._write({
            "op": "step", "case": asdict(case), "unit": "s",
            **{name: getattr(times, name) for name in TIMES},
            "prefill_s": times.prefill_s, "prefill_tokens": times.prefill_tokens,
            "spread": times.spread, "repeats": times.repeats,
            "peak_memory_bytes": times.peak_memory_bytes,
            "memory_bytes": dict(times.memory_bytes),
            "parts_s": {name: dict(part) for name, part in times.parts_s.items()},
            "wall_s": round(self.clock() - start, 3),
        })  # fmt: skip
        self.done += 1
        self._show(case)

    def _write_failure(self, case: Case, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        self._write({"op": "failed", "case": asdict(case), "reason": reason})
        self.failed += 1
        print(f"{case.id}: {reason}", file=sys.stderr, flush=True)

    def _write(self, value: dict[str, Any]) -> None:
        self.file.write(json.dumps(value, allow_nan=False) + "\n")
        self.file.flush()

    def _show(self, case: Case) -> None:
        if sys.stderr.isatty():
            line = f"{self.done + self.failed} of {self.total} cases, {case.label}"
            print(f"\r{line:110.110}", end="", file=sys.stderr, flush=True)


def by_pair(cases: Sequence[Case]) -> dict[tuple[str, str | None, int], list[Case]]:
    """Cases of each pair of models, in their order; the pairs in the order of their first case."""
    groups: dict[tuple[str, str | None, int], list[Case]] = {}
    for case in cases:
        groups.setdefault(case.pair, []).append(case)
    return groups


def held_cases(path: Path, header: dict[str, Any]) -> set[str]:
    """Ids that `path` holds, measured or failed; the file is created, or a half last line cut off.

    Raises
    ------
    RecordError
        If it was written on another machine or with another version.
    """
    if not open_records(path, header):
        return set()
    held, first = set(), None
    for number, value in json_lines(path):
        if first is None:
            first = value
            for field in SAME_RUN:
                if value.get(field) != header[field]:
                    raise RecordError(
                        f"{path}, line {number}: measured with {field} {value.get(field)!r}, this "
                        f"is {header[field]!r}; give --out another name"
                    )
        elif "case" in value:
            held.add(str(value["case"]["id"]))
    return held


def provenance(command: str) -> dict[str, Any]:
    """GPU, driver, versions, date, commit and command of this run."""
    from calibration.measure.run import provenance as of_microbench

    return of_microbench(command) | TRIALS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m calibration.validate.run", description="Time drawn cases on this GPU."
    )
    parser.add_argument("--cases", type=Path, required=True, help="from `specroof validate draw`")
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON lines to write, or go on with"
    )
    parser.add_argument("--seconds", type=float, default=360.0, help="time to spend")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument(
        "--parts", action="store_true", help="trace each pass by part; may slow what follows"
    )
    parser.add_argument("--list", action="store_true", help="print pairs and cases; needs no GPU")
    options = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        cases = read_cases(options.cases)
        if options.list:
            for pair, mine in by_pair(cases.cases).items():
                print(f"{pair[0]:16} {pair[1] or '-':16} tp {pair[2]} {len(mine):4} cases")
            return 0
        ranks = ranks_of(cases)
    except (RecordError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return _start(options, cases, ranks, words)


def ranks_of(cases: CaseFile) -> int:
    """The number of ranks of every case.

    Raises
    ------
    RecordError
        If cases differ: processes are started once.
    """
    counts = sorted({case.pair[2] for case in cases.cases})
    if len(counts) > 1:
        raise RecordError(f"cases of tp {counts} in one file; draw a file for each")
    return counts[0] if counts else 1


def _start(options: argparse.Namespace, cases: CaseFile, ranks: int, words: Sequence[str]) -> int:
    """Start the ranks, or be one; the exit code."""
    try:
        from runtime import EngineError, launch_ranks, run_rank
    except ModuleNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if ranks > 1 and "RANK" not in os.environ:
        try:
            launch_ranks([sys.executable, "-m", "calibration.validate.run", *words], ranks)
        except EngineError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
        return 0
    codes = list[int]()
    return run_rank(lambda: codes.append(_measure(options, cases, words))) or codes[0]


def _measure(options: argparse.Namespace, cases: CaseFile, words: Sequence[str]) -> int:
    """One rank's part; the exit code."""
    try:
        start = time.monotonic()
        header = provenance(" ".join(["python -m calibration.validate.run", *words]))
        held = held_cases(options.out, header)
        left = [case for case in cases.cases if case.id not in held]
        first_rank = os.environ.get("RANK", "0") == "0"
        target = options.out if first_rank else Path(os.devnull)
        with target.open("a", encoding="utf-8") as file:
            seconds = options.seconds - (time.monotonic() - start)
            run = ValidationRun(
                StepRuntime(),
                cases,
                file,
                seconds=seconds,
                repeats=options.repeats,
                parts=options.parts,
            )
            unmet = run.measure(left)
    except (RecordError, ModuleNotFoundError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    if first_rank:
        print(f"{run.done} cases timed, {run.failed} failed, {unmet} left, {len(held)} held before")
    return 4 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
