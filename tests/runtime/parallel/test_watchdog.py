"""A rank that stalls ends the run, and the line names every rank's position."""

import math
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tiny_models import Case, run

from runtime.errors import InputError
from runtime.parallel.groups import connect
from runtime.parallel.launch import run_rank
from runtime.parallel.watchdog import HERE, Position, Watchdog, stall_limit_s

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
ENGINE = """
import os, signal, sys, time, torch
sys.path.insert(0, "tests")
from dataclasses import replace
from tiny_models import FAMILIES, DraftPlan
from runtime import BatchShape, EngineSetup, Model, build_engine
from runtime.parallel.groups import connect
from runtime.parallel.launch import run_rank
def body():
    plan = DraftPlan(draft="self", policy="streamingllm", gamma=2, kv_budget_tokens=24,
                     sink_tokens=4, draft_tp=None)
    setup = EngineSetup(target=Model(config=FAMILIES["llama-2"]), draft=None, plan=plan,
                        page_tokens=4)
    with connect(tp=2, draft_tp=2) as ranks:
        engine = build_engine(setup, ranks, BatchShape([40] * 2, [100] * 2))
        draft = engine.drafter.passes.draft
        def spoiled(*arguments):
            proposal = draft(*arguments)
            if len(engine.rounds) == 3 and ranks.target.rank == 1:  # drafts of round 4
                {spoil}
            return proposal
        engine.drafter.passes.draft = spoiled
        engine.generate([[1, 2, 3, 4] * 10] * 2, [100] * 2)
sys.exit(run_rank(body))
"""


def spoiled_run(spoil: str, stall_s: str) -> subprocess.CompletedProcess[str]:
    return launched(ENGINE.replace("{spoil}", spoil), stall_s)


def launched(code: str, stall_s: str) -> subprocess.CompletedProcess[str]:
    """Two ranks of this code."""
    script = [sys.executable, "-c", code]
    code = (
        "import sys; from runtime import EngineError; from runtime.parallel import launch\n"
        "launch.idle_limit_s = lambda: 2.0\n"
        f"try: launch.launch_ranks({script!r}, 2)\n"
        "except EngineError as error: sys.exit(str(error))"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "SPECROOF_STALL_S": stall_s, "PYTHONPATH": str(ROOT)},
    )


def test_a_rank_that_is_suspended_in_a_round_ends_the_run_with_every_position() -> None:
    done = spoiled_run("os.kill(os.getpid(), signal.SIGSTOP)", "")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    suspended = "rank 1 was suspended (SIGSTOP) for 2 s; all ranks were stopped"
    assert line.startswith(f"{suspended}; last positions: rank 0: round 4: ")
    assert line.endswith("; rank 1: round 4: draft")


def test_a_rank_that_drafts_other_tokens_is_an_error() -> None:
    done = spoiled_run("proposal.tokens[1, 1] += 1", "60")
    assert done.returncode == 1
    expected = "rank 1: rank 1 drafted different tokens than rank 0 (round 4, sequence 1)"
    assert expected in done.stderr


def test_a_rank_that_fails_ends_the_run_with_every_position() -> None:
    done = spoiled_run("os.kill(os.getpid(), 9)", "60")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    ended = "rank 1 was killed by SIGKILL; all ranks were stopped"
    assert line.startswith(f"{ended}; last positions: rank 0: round 4")
    assert line.endswith("; rank 1: round 4: draft")


def test_torchrun_ends_a_rank_that_waits_with_every_position(tmp_path: Path) -> None:
    """The wait is inside C++ and does not end with the peer, as in NCCL."""
    script, seen = tmp_path / "rank.py", str(tmp_path / "seen")
    killed = f"while not os.path.exists({seen!r}): pass\n            os.kill(os.getpid(), 9)"
    wait = (
        "while 'rank 1: joined' not in watchdog.known_places(): pass\n"
        f"        open({seen!r}, 'w').close()\n"
        "        torch.distributed.distributed_c10d._get_default_store().wait(['never'])"
    )
    script.write_text(WAITS.format(failure=killed, wait=wait))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            script,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1
    line = "error: rank 0: stopped by SIGTERM; last positions: rank 0: joined; rank 1: joined"
    assert line in done.stderr.splitlines()


class Store(dict[str, str]):
    """A store of one process."""

    def set(self, key: str, value: str) -> None:
        self[key] = value

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key].encode()


def test_a_position_within_its_limit_ends_nothing_and_a_longer_one_does() -> None:
    said, codes = list[str](), list[int]()
    store, here = Store({"position-1": "elsewhere 7 5 round 2: verify"}), Position()
    watchdog = Watchdog(store, 0, 3, position=here, report=said.append, end=codes.append)
    with here.at("round 3", limit_s=0.2):
        assert here.limit_s == 0.2
        for number in range(4):
            with here.at(f"step {number}", limit_s=0.1):
                assert here.text == f"step {number}"
        assert (here.text, here.limit_s) == ("round 3, after step 3", 0.2)
    assert (here.text, here.limit_s) == ("starting, after round 3", math.inf)
    with pytest.raises(ValueError, match="no"), here.at("round 3", limit_s=0.2):
        raise ValueError("no")
    assert here.limit_s == math.inf  # a run that goes on after an error is not given up
    here.move("round 4", limit_s=0.2)
    here.since -= 1000  # as after a time in which the whole job was frozen
    for _ in range(8):
        watchdog.exchange()
    watchdog.run(every_s=0.02)
    assert codes == [1] and len(said) == 1
    assert said[0].startswith("rank 1 sent no sign of life, and rank 0 has waited 0 s")
    assert said[0].endswith("rank 0: round 4; rank 1: round 2: verify; rank 2: nothing heard")
    assert store["position-0"] == f"{socket.gethostname()} {os.getpid()} 8 round 4"


@pytest.mark.parametrize("text", ["starting", "joining", "joined"])  # without a limit
def test_a_rank_whose_count_stays_ends_the_run_wherever_it_is(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, codes, here = list[str](), list[int](), Position()
    here.move(text)

    class Counting(Store):
        """Ranks 1 to 3: one goes on, one has left its group, one stops after four counts."""

        def get(self, key: str) -> bytes:  # type: ignore[override]
            turn = int(self["position-0"].split()[2])
            turns = {"position-1": turn, "position-2": 0, "position-3": min(turn, 4)}
            return f"elsewhere 7 {turns[key]} {text}".encode()

        def check(self, keys: list[str]) -> bool:
            return True

    monkeypatch.setenv("SPECROOF_STALL_S", "0.5")
    store = Counting()
    watchdog = Watchdog(store, 0, 4, position=here, report=said.append, end=codes.append)
    watchdog.talk(every_s=0.01)
    assert codes == [1] and len(said) == 1
    assert said[0].startswith("rank 3 has sent no sign of life for 0 s")
    assert said[0].endswith(f"rank 2: {text}; rank 3: {text}")
    assert int(store["position-0"].split()[2]) == 4 + 51  # as long as it was heard, and 0.5 s
    watchdog.stop()
    assert store["position-0"].split()[2] == "0"  # the others expect no more of it


def test_a_silent_rank_of_this_host_that_runs_is_only_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is inside a long call that keeps its threads from counting."""
    here, said = Position(), list[str]()

    class Busy(Store):
        """Rank 1 is this process, until it is another one that has ended."""

        def get(self, key: str) -> bytes:  # type: ignore[override]
            turn, process = int(self["position-0"].split()[2]), os.getpid()
            if turn == 100:
                assert said == []
                process = 2**22  # above the largest process id
            return f"{socket.gethostname()} {process} 5 round 2: verify".encode()

        def check(self, keys: list[str]) -> bool:
            return True

    monkeypatch.setenv("SPECROOF_STALL_S", "0.5")
    store = Busy()
    Watchdog(store, 0, 2, position=here, report=said.append, end=bool).talk(every_s=0.01)
    assert int(store["position-0"].split()[2]) == 100
    assert said[0].startswith("rank 1 has sent no sign of life")


WAITS = """
import os, sys, torch
from runtime.parallel import watchdog
from runtime.parallel.groups import connect, exchange_words
from runtime.parallel.launch import run_rank
def body():
    with connect(tp=2, draft_tp=2) as ranks:
        ranks.target.all_reduce(torch.ones(1))
        if not ranks.is_root:
            {failure}
        {wait}
sys.exit(run_rank(body))
"""


def test_a_rank_that_fails_alone_ends_the_run_although_others_wait_for_it() -> None:
    failure = "watchdog.HERE.note('round 4'); exchange_words('no pages', failed=True)"
    done = launched(
        WAITS.format(failure=failure, wait="ranks.target.all_reduce(torch.ones(1))"), "5"
    )
    assert done.returncode == 1
    assert done.stderr.startswith("rank 1: no pages; other ranks have not"), done.stderr
    assert done.stderr.endswith("; rank 1: round 4, failed: no pages\n")


def test_no_thread_is_left_inside_the_store() -> None:
    """Python 3.11 aborts a process that ends while a thread is inside compiled code."""
    inside, leave = threading.Event(), threading.Event()

    class Slow(Store):
        def check(self, keys: list[str]) -> bool:
            if threading.current_thread() is threading.main_thread():
                first.append(self["position-0"].split()[2])
                return False
            inside.set()
            assert leave.wait(60)
            return False

    first = list[str]()
    watchdog = Watchdog(Slow(), 0, 2, position=Position(), report=print, end=bool)
    before = set(threading.enumerate())
    watchdog.start(every_s=0.01)
    assert inside.wait(60)
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    threading.Timer(0.2, leave.set).start()
    assert first == ["1"]  # from its start, the others expect more
    watchdog.stop()
    assert not any(thread.is_alive() for thread in started)


def test_a_stopped_rank_of_this_host_is_continued_so_that_it_can_end() -> None:
    stopped = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        os.kill(stopped.pid, signal.SIGSTOP)
        os.waitpid(stopped.pid, os.WUNTRACED)
        stopped.terminate()  # as a launcher does; a stopped process does not end by it
        with pytest.raises(subprocess.TimeoutExpired):
            stopped.wait(0.3)
        store = Store({"position-1": f"{socket.gethostname()} {stopped.pid} 5 round 2: verify"})
        here = Position()
        here.move("round 2", limit_s=0.2)
        watchdog = Watchdog(store, 0, 2, position=here, report=print, end=bool)
        watchdog.exchange()
        watchdog.run(every_s=0.02)
        assert stopped.wait(10) == -signal.SIGTERM
    finally:
        stopped.kill()


def test_the_limit_of_a_round_can_be_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECROOF_STALL_S", raising=False)
    assert stall_limit_s("cuda") < 30 < stall_limit_s("cpu")
    monkeypatch.setenv("SPECROOF_STALL_S", "7.5")
    assert stall_limit_s("cpu") == 7.5


@pytest.mark.parametrize("text", ["soon", "nan", "0", "-1"])
def test_a_limit_that_is_no_positive_number_is_refused_before_anything_is_loaded(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPECROOF_STALL_S", text)
    with (
        pytest.raises(InputError, match="not a positive number of seconds"),
        connect(tp=1, draft_tp=1),
    ):
        pytest.fail("joined")
    assert run_rank(lambda: pytest.fail("ran")) == 2
    assert f"SPECROOF_STALL_S='{text}' is not" in capsys.readouterr().err


def test_the_position_of_an_error_is_not_that_of_the_next_case() -> None:
    here = Position()
    here.move("case 1")
    with pytest.raises(ValueError), here.at("round 5", limit_s=1.0):
        here.note("round 5: verify")
        raise ValueError
    assert here.text == "round 5: verify"  # where the error was raised
    with here.at("prefill", limit_s=1.0), here.at("loading", limit_s=1.0):
        pass
    assert here.text == "case 1, after prefill"


def test_between_runs_a_rank_may_wait_as_long_as_it_likes() -> None:
    case = Case(family="llama-2", prompts=[[1, 2, 3]], new_tokens=[6], draft="self-full", gamma=2)
    run(case)
    assert HERE.limit_s == math.inf
    assert ", after round " in HERE.text
