"""Mutated files and flags of every kind, given to the command line in this process.

    python tests/soak/fuzz.py --inputs 1000000 --jobs 2 --folder fuzz

Each input must end with exit code 0, 2 or 3 (or 4, outside a tolerance) and at most one line on
stderr, within 5 s of CPU time and 1 GB of memory, and without a traceback; JSON on stdout must be
valid. An input is determined by
the seed and its number. `--folder` receives the progress, so that the same command continues an
interrupted run, and a folder per distinct failure with its files and command. The exit code is 1 if
there were failures; `--stop` ends the run after that many.
"""

import argparse
import io
import json
import multiprocessing
import os
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from random import Random
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("", "tests", "tests/fakes", "tests/soak")]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is imported

from fuzz_cases import Case, cases, flags  # noqa: E402

CPU_S, WALL_S, MEMORY, LINE = float(os.environ.get("CPU_S", "5")), 600.0, 10**9, 400
SILENCE_S = 1800.0  # after which workers are taken to hang in compiled code
BLOCK = 250  # inputs that a worker takes at once


class TooSlow(BaseException):
    """A time limit was exceeded. Not an `Exception`, so that nothing handles it."""


@dataclass(frozen=True)
class Failure:
    """An input that broke a rule; `kind` is the same for inputs that fail alike."""

    number: int
    case: str
    kind: str
    detail: str


class Fuzz:
    """Generates inputs by number and runs them."""

    def __init__(self, seed: int, only: str = "") -> None:
        self.seed = seed
        self.cases = [case for case in cases() if re.search(only, case.name)]
        self.turn = [case for case in self.cases for _ in range(case.weight)]
        Random(0).shuffle(self.turn)
        warnings.simplefilter("always")

    def check_cases(self, folder: Path) -> None:
        """Run every case without mutations; it must be valid."""
        for case in self.cases:
            self._write(case, folder, dict(case.others).get(case.file, case.content.encode()))
            code, out, err = self._run(case, folder, [])
            if code != case.exit_code:
                raise SystemExit(f"{case.name} is not valid: exit {code}: {err or out}")

    def failure(self, number: int, folder: Path) -> Failure | None:
        """What input `number` breaks, or None."""
        source = Random(f"{self.seed}:{number}")
        case = self.turn[number % len(self.turn)]
        self._write(case, folder, case.change(case.content, source))
        words = flags(source)
        with _time_limits():
            try:
                code, out, err = self._run(case, folder, words)
            except TooSlow as error:
                return Failure(number, case.name, f"{case.name}: too slow", str(error))
            except BaseException as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} at {place.filename}:{place.lineno}"
                return Failure(number, case.name, kind, traceback.format_exc())
        fault = _fault(code, out, err.replace(str(folder), ""), case.command)
        if not fault:
            return None
        return Failure(number, case.name, f"{case.name}: {fault}", err[:2000] or out[:2000])

    def command(self, case: Case, folder: Path, words: list[str]) -> list[str]:
        """The words of the command line."""
        places = {"FILE": folder / case.file, "DIR": folder, "OUT": folder / "out"}
        found: list[str] = []
        for word in case.command.split():
            if word == "FLAGS":
                found += words
            else:
                head, slash, tail = word.partition("/")
                found.append(f"{places[head]}{slash}{tail}" if head in places else word)
        return found

    def save(self, failure: Failure, folder: Path, place: Path) -> None:
        """Copy the files of a failed input, with its command and what it broke."""
        shutil.copytree(folder, place, dirs_exist_ok=True)
        case = self.turn[failure.number % len(self.turn)]
        source = Random(f"{self.seed}:{failure.number}")
        case.change(case.content, source)
        words = shlex.join(["specroof", *self.command(case, place, flags(source))])
        text = f"input {failure.number} of seed {self.seed}\n{failure.kind}\n{words}\n\n"
        (place / "failure.txt").write_text(text + failure.detail, errors="replace")

    def _write(self, case: Case, folder: Path, content: bytes) -> None:
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        for name, data in (*case.others, (case.file, content)):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def _run(self, case: Case, folder: Path, words: list[str]) -> tuple[int, str, str]:
        from app.cli.main import run

        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            if case.read is None:
                code = run(self.command(case, folder, words))
            else:
                code = _read(case, folder / case.file)
        return code, out.getvalue(), err.getvalue()


def _read(case: Case, path: Path) -> int:
    """Call a reader; its error is the one line that `specroof run` prints."""
    from app.cli.main import fail
    from runtime import InputError

    assert case.read is not None
    try:
        case.read(path)
    except InputError as error:
        return fail(str(error), 2)
    return 0


def _fault(code: int, out: str, err: str, command: str) -> str:
    """What is wrong with a result, or ""."""
    if code not in (0, 2, 3) and not (code == 4 and command.startswith(("validate", "calibrate"))):
        return f"exit code {code}"
    if "out of memory" in err:
        return "more than 1 GB"
    if err.count("\n") > 1:
        return "several lines on stderr"
    if len(err) > LINE:
        return "a long line"
    if bool(err) != bool(code) and "--from" not in command:
        return "a message without an error" if err else f"exit code {code} without a message"
    if code == 0 and " --json" in command:
        try:
            json.loads(out, parse_constant=_no_constant)
        except ValueError as error:
            return f"not JSON: {error}"
    return ""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


@contextmanager
def _time_limits() -> Iterator[None]:
    def too_slow(number: int, _: object) -> NoReturn:
        what = f"{CPU_S:g} s of CPU" if number == signal.SIGPROF else f"{WALL_S:g} s"
        raise TooSlow(f"more than {what}\n{''.join(traceback.format_stack()[-6:])}")

    limits = (
        (signal.SIGPROF, signal.ITIMER_PROF, CPU_S),
        (signal.SIGALRM, signal.ITIMER_REAL, WALL_S),
    )
    for number, timer, seconds in limits:
        signal.signal(number, too_slow)
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for _, timer, _ in limits:
            signal.setitimer(timer, 0.0)


def limit_memory() -> None:
    """Allow this process `MEMORY` bytes more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def work(options: Any, pipe: Any) -> None:
    """Run blocks of inputs: receives their numbers, sends their failures."""
    folder = Path(tempfile.mkdtemp(prefix="specroof-fuzz-"))
    files = folder / "files"
    try:
        fuzz = Fuzz(options.seed, options.only)
        fuzz.check_cases(files)
        limit_memory()
        while (block := pipe.recv()) >= 0:
            for number in range(block * BLOCK, min((block + 1) * BLOCK, options.inputs)):
                failure = fuzz.failure(number, files)
                if failure is not None:
                    place = options.folder / re.sub(r"\W+", "-", failure.kind)[-80:].strip("-")
                    if not place.exists():
                        fuzz.save(failure, files, place)
                    pipe.send(failure)
            pipe.send(block)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Run the fuzz; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, default=ROOT / "fuzz")
    parser.add_argument("--stop", type=int, default=20, help="distinct failures that end the run")
    parser.add_argument("--only", default="", help="pattern of the cases' names")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    return run_blocks(options)


def run_blocks(options: Any) -> int:
    """Give blocks of inputs to workers and record the progress; returns the exit code."""
    progress = Progress(options)
    workers: dict[Any, multiprocessing.Process] = {}
    for _ in range(options.jobs):
        pipe, other = multiprocessing.Pipe()
        process = multiprocessing.Process(target=work, args=(options, other), daemon=True)
        process.start()
        other.close()
        workers[pipe] = process
        pipe.send(progress.next_block())
    while workers:
        ready = wait(list(workers), timeout=SILENCE_S) or list(workers)
        for pipe in ready:
            try:
                message = pipe.recv() if pipe.poll() else None
            except (EOFError, ConnectionError):
                message = None
            if isinstance(message, Failure):
                progress.fail(message)
            elif message is None:  # killed, or stuck in compiled code
                workers[pipe].kill()
                progress.fail(Failure(-1, "", "a worker died or did not answer", ""))
                del workers[pipe]
            else:
                progress.finish(message)
                pipe.send(block := progress.next_block())
                if block < 0:
                    workers.pop(pipe).join()
    return 1 if progress.failures else 0


class Progress:
    """The blocks that are done and the failures so far, also in a file."""

    def __init__(self, options: Any) -> None:
        self.options, self.path = options, options.folder / "progress.json"
        self.state: dict[str, Any] = {"seed": options.seed, "only": options.only, "blocks": 0}
        self.failures: dict[str, int] = {}
        if self.path.is_file():
            known = json.loads(self.path.read_text())
            if all(known[key] == self.state[key] for key in ("seed", "only")):
                self.failures = known.pop("failures")
                self.state = known
        self.first = self.following = self.state["blocks"]
        self.done: set[int] = set()
        self.start = time.monotonic()

    def next_block(self) -> int:
        """The number of the next block, or -1 at the end."""
        if self.following * BLOCK >= self.options.inputs or len(self.failures) >= self.options.stop:
            return -1
        self.following += 1
        return self.following - 1

    def finish(self, block: int) -> None:
        """Record a finished block and print the rate now and then."""
        self.done.add(block)
        while self.state["blocks"] in self.done:
            self.state["blocks"] += 1
        self._write()
        if len(self.done) % 20 == 0 or self.state["blocks"] * BLOCK >= self.options.inputs:
            rate = len(self.done) * BLOCK / (time.monotonic() - self.start)
            count = min((self.first + len(self.done)) * BLOCK, self.options.inputs)
            print(f"{count:,} of {self.options.inputs:,} inputs, {rate:.0f} per second, "
                  f"{len(self.failures)} distinct failures", flush=True)  # fmt: skip

    def fail(self, failure: Failure) -> None:
        """Record a failure, and print it if it is the first of its kind."""
        if failure.kind not in self.failures:
            print(f"input {failure.number}: {failure.kind}", flush=True)
        self.failures[failure.kind] = self.failures.get(failure.kind, 0) + 1
        self._write()

    def _write(self) -> None:
        self.path.write_text(json.dumps(self.state | {"failures": self.failures}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
