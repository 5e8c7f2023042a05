"""A rank that is suspended or hangs is named and killed; one that works or waits for others is not.

The monitor counts looks, not seconds, so these tests look as often as they need.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.parallel import processes
from runtime.parallel.processes import (
    EXEMPT,
    FINISHED,
    POSITION_FILE,
    RankMonitor,
    RankProcess,
    is_suspended,
)
from runtime.parallel.watchdog import Position

LOOKS = 6
ROOT = Path(__file__).parents[3]
HANG = "print('ready', flush=True); threading.Event().wait()"
WORK = "print('ready', flush=True)\nwhile True: pass"
COMPILE = (
    "compiler = subprocess.Popen([sys.executable, '-c', 'while True: pass'])\n"
    "print('ready', compiler.pid, flush=True)\n"
    "threading.Event().wait()"
)
Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process of this code in its own session, as torch's agent does."""
    started = list[subprocess.Popen[str]]()

    def begin(code: str) -> subprocess.Popen[str]:
        code = f"import subprocess, sys, threading\n{code}"
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def monitor(tmp_path: Path, *processes: subprocess.Popen[str]) -> RankMonitor:
    ranks = {
        rank: RankProcess(process.pid, tmp_path / f"{rank}" / POSITION_FILE)
        for rank, process in enumerate(processes)
    }
    return RankMonitor(len(ranks), looks=LOOKS, every_s=0.5, ranks=lambda: ranks)


def ready(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def suspend(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)


def test_a_rank_that_is_suspended_is_killed_and_named(start: Start, tmp_path: Path) -> None:
    """Whatever it was doing; also before it has written a position."""
    works, stopped = start(WORK), start(WORK)
    assert ready(works) and is_suspended(stopped.pid) is False
    suspend(stopped)
    assert is_suspended(stopped.pid)
    watch = monitor(tmp_path, works, stopped)
    for _ in range(LOOKS):
        watch.look()
    assert watch.verdict == ""
    watch.look()
    assert watch.verdict == "rank 1 was suspended (SIGSTOP) for 3 s"
    assert stopped.wait(300) == -signal.SIGKILL
    assert works.poll() is None
    assert is_suspended(stopped.pid) is None


@pytest.mark.parametrize("code", [WORK, HANG])  # the second uses no CPU time between
def test_a_rank_that_is_stopped_and_continued_in_turns_is_not_at_fault(
    code: str, start: Start, tmp_path: Path
) -> None:
    """As by cpulimit; every look finds it stopped."""
    rank = start(code)
    assert ready(rank)
    watch = monitor(tmp_path, rank)
    for _ in range(3 * LOOKS):
        suspend(rank)
        watch.look()
        rank.send_signal(signal.SIGCONT)
        os.waitpid(rank.pid, os.WCONTINUED)
    assert watch.verdict == ""


def test_a_rank_whose_main_thread_hangs_is_killed_and_named(start: Start, tmp_path: Path) -> None:
    hangs, works = start(HANG), start(WORK)
    assert ready(hangs) and ready(works)
    watch = monitor(tmp_path, hangs, works)
    while not watch.verdict:
        watch.look()
    assert watch.verdict == "rank 0 was hung, without computing or reading, for 3 s"
    assert hangs.wait(300) == -signal.SIGKILL


@pytest.mark.parametrize(("state", "is_at_fault"), [("S", True), ("D", False), ("R", False)])
def test_a_rank_that_runs_or_waits_for_a_disk_is_not_at_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str, is_at_fault: bool
) -> None:
    process = 2**22 + 1  # more than Linux gives
    folder = tmp_path / str(process) / "task" / str(process)
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{process} (python) {state} " + "0 " * 20)
    monkeypatch.setattr(processes, "PROC", tmp_path)
    ranks = {0: RankProcess(process, tmp_path / "position")}
    watch = RankMonitor(1, looks=4, every_s=1.0, ranks=lambda: ranks)
    for _ in range(6):
        watch.look()
    assert bool(watch.verdict) == is_at_fault


def test_a_rank_that_waits_for_one_that_works_is_not_at_fault(start: Start, tmp_path: Path) -> None:
    waits, works = start(HANG), start(WORK)
    assert ready(waits) and ready(works)
    here = written(tmp_path, 0)
    watch = monitor(tmp_path, waits, works)
    with here.waiting():
        for _ in range(10 * LOOKS):
            watch.look()
        assert watch.verdict == ""
        works.kill()
        works.wait()
        while not watch.verdict:
            watch.look()
    assert watch.verdict == "rank 0 was waiting for others in vain for 4 s"


def test_ranks_that_all_wait_are_killed_unless_what_they_do_is_exempt(
    start: Start, tmp_path: Path
) -> None:
    ranks = [start(HANG), start(HANG)]
    assert all(ready(rank) for rank in ranks)
    first, second = (written(tmp_path, rank) for rank in range(2))
    watch = monitor(tmp_path, *ranks)
    with first.waiting():
        with second.waiting(EXEMPT), second.waiting(EXEMPT):
            for _ in range(10 * LOOKS):
                watch.look()
            assert watch.verdict == ""
        with second.waiting():
            while not watch.verdict:
                second.note("loading")  # the same text is no progress
                watch.look()
    assert watch.verdict == "rank 0 and rank 1 were waiting for others in vain for 4 s"
    assert [rank.wait(300) for rank in ranks] == [-signal.SIGKILL] * 2


def written(folder: Path, rank: int) -> Position:
    """The position of a rank, in its file."""
    (folder / f"{rank}").mkdir()
    here = Position("loading")
    here.write_to(folder / f"{rank}" / POSITION_FILE)
    return here


def test_the_rank_that_ends_first_is_known_unless_it_had_finished(
    start: Start, tmp_path: Path
) -> None:
    ranks = [start(HANG) for _ in range(3)]
    assert all(ready(rank) for rank in ranks)
    for rank, position in enumerate([FINISHED, "round 4"]):
        written(tmp_path, rank).note(position)
        ranks[rank].terminate()
        os.waitid(os.P_PID, ranks[rank].pid, os.WEXITED | os.WNOWAIT)
    watch = monitor(tmp_path, *ranks)
    watch.look()
    while not watch.ended_first:
        pass
    ranks[2].kill()
    ranks[2].wait()
    assert watch.ended_first == [1]


STATUS = """
from pathlib import Path
from runtime import show_status
from runtime.parallel.watchdog import HERE
show_status("")
HERE.write_to(Path(sys.argv[1]))
print("ready", flush=True)
while True: show_status("prefill")
"""


def test_a_rank_whose_terminal_is_paused_is_not_judged(tmp_path: Path) -> None:
    reader, terminal = os.openpty()  # never read, so a write waits when it is full
    (folder := tmp_path / "0").mkdir()
    command = [sys.executable, "-c", "import sys\n" + STATUS, str(folder / POSITION_FILE)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=terminal, text=True, env=environment
    ) as rank:
        try:
            assert ready(rank)
            stat = Path(f"/proc/{rank.pid}/stat")
            while stat.read_text().rpartition(")")[2].split()[0] != "S":
                pass
            watch = monitor(tmp_path, rank)
            for _ in range(3 * LOOKS):
                watch.look()
            assert watch.verdict == ""
        finally:
            rank.kill()
            os.close(reader)
            os.close(terminal)


def test_a_rank_whose_peer_compiles_in_another_process_is_not_judged(
    start: Start, tmp_path: Path
) -> None:
    """It may wait for the lock of the files that the compiler writes."""
    waits, compiles = start(HANG), start(COMPILE)
    assert ready(waits)
    compiler = int(ready(compiles)[1])
    watch = monitor(tmp_path, waits, compiles)
    for _ in range(3 * LOOKS):
        watch.look()
        used = cpu_time(compiler)
        while cpu_time(compiler) == used:  # a look must find it advanced
            pass
    assert watch.verdict == ""
    os.kill(compiler, signal.SIGKILL)
    while not watch.verdict:
        watch.look()


def cpu_time(process: int) -> list[str]:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]


def test_a_suspended_rank_that_was_sent_sigterm_ends_by_it(start: Start, tmp_path: Path) -> None:
    """Otherwise torch's agent waits 30 s for it."""
    rank = start(WORK)
    suspend(rank)
    rank.terminate()
    watch = monitor(tmp_path, rank)
    watch.look()
    assert rank.wait(300) == -signal.SIGTERM
    watch.look()
    assert watch.verdict == ""


# ---- with torch's agent ---------------------------------------------------------------------

AGENT = """
import sys
from runtime.errors import EngineError
from runtime.parallel import launch
launch.idle_limit_s = lambda: 2.0
try: launch.launch_ranks([sys.executable, "-c", {rank!r}], 2)
except EngineError as error: sys.exit(str(error))
"""
LOADS = """
import os, signal, sys, threading
from runtime.parallel.groups import connect, exchange_words
from runtime.parallel.launch import run_rank
from runtime.parallel.watchdog import HERE
def body():
    with connect(tp=2, draft_tp=2) as ranks:
        with HERE.at("loading tiny", limit_s=1000):
            if not ranks.is_root:
                threading.Event().wait()
        exchange_words("loaded")
sys.exit(run_rank(body))
"""
STARTS = """
import os, signal
while os.environ["RANK"] == "0": pass
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "line"),
    [
        (
            STARTS,
            "rank 1 was suspended (SIGSTOP) for 2 s; all ranks were stopped; "
            "last positions: rank 0: starting; rank 1: starting",
        ),
        (
            LOADS,
            "rank 1 was hung, without computing or reading, for 2 s; all ranks were stopped; "
            "last positions: rank 0: waiting for other ranks; rank 1: loading tiny",
        ),
    ],
)
def test_a_rank_that_stops_before_it_joins_or_hangs_in_loading_ends_the_run(
    rank: str, line: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AGENT.format(rank=rank)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "SPECROOF_STALL_S": "", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    assert done.stderr == f"{line}\n"
