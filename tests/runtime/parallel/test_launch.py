"""A failed rank ends the run with its message, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny_models import FAMILIES, hf_config

from runtime.bench.plan import RunPlan
from runtime.errors import RankFailed
from runtime.parallel import launch
from runtime.parallel.launch import launch_ranks
from runtime.parallel.processes import RankMonitor

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
RANK = """
import os, sys, threading, time, torch
from runtime.parallel.groups import connect
from runtime.parallel.launch import run_rank
def keep_running():
    threading.Thread(target=time.sleep, args=(300,)).start()
def body():
    with connect(tp=2, draft_tp=1) as ranks:
        ranks.target.all_reduce(torch.ones(1))
        if ranks.target.rank == 1:
            {failure}
        while True:
            ranks.target.all_reduce(torch.ones(1))
sys.exit(run_rank(body))
"""


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("os._exit(7)", "rank 1 ended with 7"),
        ("keep_running(); raise ValueError('no\\nsuch thing')", "ValueError: no such thing"),
    ],
)
def test_a_rank_that_fails_ends_all_with_its_message(
    failure: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    begun = time.monotonic()
    with pytest.raises(RankFailed) as caught:
        launch_ranks([sys.executable, "-c", RANK.format(failure=failure)], 2)
    assert message in str(caught.value)
    assert caught.value.exit_code == 1
    assert time.monotonic() - begun < 300
    assert not children(os.getpid())


ENDS = """
import os, sys, time
from runtime.parallel.launch import run_rank
def end():
    {end}
def body():
    ended = sys.argv[1]
    if os.environ["RANK"] == "1":
        open(ended, "w").write(str(os.getpid()))
        end()
    while not (process := os.path.exists(ended) and open(ended).read()):
        time.sleep(0.01)
    while open(f"/proc/{{process}}/stat").read().rpartition(")")[2].split()[0] != "Z":
        pass
    raise ConnectionError("rank 1 closed the connection")
sys.exit(run_rank(body))
"""


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("os._exit(0)", "rank 1 ended with 0"),
        ("os.kill(os.getpid(), 15)", "rank 1 was killed by SIGTERM"),
        ("sys.exit(3)", "rank 1: SystemExit: 3"),
    ],
)
def test_the_rank_that_ends_first_is_blamed_not_those_that_report_it(
    end: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Monitor(RankMonitor):
        """Knows it however late it looks."""

        ended_first = property(lambda _: [1], lambda *_: None)

    monkeypatch.setattr(launch, "RankMonitor", Monitor)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with pytest.raises(RankFailed, match=message):
        launch_ranks([sys.executable, "-c", ENDS.format(end=end), str(tmp_path / "ended")], 2)


# Rank 1 ends with 143 when the agent stops it, as while `specroof` starts.
LAST_TO_END = """
import os, signal, sys, time
from runtime.errors import InputError
from runtime.parallel.launch import run_rank
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
ready = sys.argv[1]
if os.environ["RANK"] == "1":
    open(ready, "w").close()
    time.sleep(300)
def body():
    while not os.path.exists(ready):
        time.sleep(0.01)
    raise InputError(f"{signal.getsignal(signal.SIGTERM)!r} handles SIGTERM")
sys.exit(run_rank(body))
"""


def test_a_rank_that_the_agent_stops_does_not_hide_the_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SPECROOF_STALL_S", "900")  # with a rank that only sleeps
    with pytest.raises(RankFailed) as caught:
        launch_ranks([sys.executable, "-c", LAST_TO_END, str(tmp_path / "ready")], 2)
    assert caught.value.exit_code == 2
    # A handler in Python would not run while the rank waits for another inside C++.
    assert str(caught.value) == f"rank 0: {signal.SIG_DFL!r} handles SIGTERM"


@pytest.fixture
def long_run(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A run of two ranks that would take minutes, past its first rounds."""
    (tmp_path / "config.json").write_text(json.dumps(hf_config(FAMILIES["llama-2"])))
    log = tmp_path / "log.jsonl"
    flags = f"run selfspec --model {tmp_path} --random-weights --tp 2 --output-tokens 100000"
    command = ["app.cli.main", *flags.split(), "--output", str(log)]
    if getattr(request, "param", "runtime.bench") == "runtime.bench":
        plan = RunPlan(
            mode="selfspec",
            model=Path("m"),
            configs={"m": FAMILIES["llama-2"]},
            random_weights=True,
            tp=2,
            gen_tokens=100_000,
            output=log,
        )
        plan.write(tmp_path / "plan.json")
        command = ["runtime.bench", str(tmp_path / "plan.json")]
    process = subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 3)
        yield process
    finally:
        process.kill()  # its ranks end with it
        process.communicate()


def test_what_was_measured_before_a_rank_died_is_on_disk(
    long_run: subprocess.Popen[str], tmp_path: Path
) -> None:
    ranks = children(long_run.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    _, said = long_run.communicate(timeout=300)
    assert long_run.returncode == 1
    line = said.splitlines()[-1]
    assert line.startswith("error: rank 1 was killed by SIGKILL; all ranks were stopped")
    assert "; last positions: rank 0: round " in line and "; rank 1: round " in line
    wait_for(lambda: not any(alive(rank) for rank in ranks))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert "provenance" in json.loads(lines[0])
    assert json.loads(lines[2])["round"]["gamma"] == 4


# A launcher of ranks that only sleep, since an engine takes seconds to start.
SLEEPER = """
import os, sys, time
from runtime.parallel.launch import run_rank
def body():
    open(f"{sys.argv[1]}.{os.environ['RANK']}", "w").close()
    time.sleep(300)
sys.exit(run_rank(body))
"""
LAUNCHER = f"""
import signal, sys
import runtime.bench.run as bench
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also if the tests run under nohup
from runtime.parallel.launch import launch_ranks
rank = [sys.executable, "-c", {SLEEPER!r}, sys.argv[1]]
bench.launch_ranks = lambda _, ranks: launch_ranks(rank, ranks)
sys.exit(bench.main())
"""


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGKILL, -9)]
)
def test_a_launcher_that_is_stopped_leaves_no_rank(
    how: signal.Signals, code: int, tmp_path: Path
) -> None:
    """Also if it is killed while one is suspended; otherwise it leaves no file either."""
    plan = tmp_path / "plan.json"
    RunPlan(mode="baseline", model=tmp_path, random_weights=True, tp=2).write(plan)
    command = [sys.executable, "-c", LAUNCHER, str(plan)]
    (temporary := tmp_path / "temporary").mkdir()
    patient = {**os.environ, "SPECROOF_STALL_S": "900"}  # with ranks that only sleep
    patient["TMPDIR"] = str(temporary)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, env=patient) as launcher:
        wait_for(lambda: len([*tmp_path.glob("plan.json.*")]) == 2)
        ranks = children(launcher.pid)
        assert len(ranks) == 2
        if how == signal.SIGKILL:
            os.kill(ranks[1], signal.SIGSTOP)
        launcher.send_signal(how)
        assert launcher.wait(timeout=300) == code
    wait_for(lambda: not any(alive(rank) for rank in ranks))
    assert how == signal.SIGKILL or not [*temporary.glob("specroof-*")]


@pytest.mark.parametrize("long_run", ["app.cli.main"], indirect=True)
def test_sigterm_ends_all_ranks_with_one_line_and_143(long_run: subprocess.Popen[str]) -> None:
    ranks = children(long_run.pid)
    assert len(ranks) == 2
    long_run.send_signal(signal.SIGTERM)
    _, said = long_run.communicate(timeout=300)
    assert long_run.returncode == 143
    assert said == "error: terminated by SIGTERM; all ranks were stopped\n"
    wait_for(lambda: not any(alive(rank) for rank in ranks))


def test_bad_input_on_every_rank_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    plan, configs = tmp_path / "plan.json", {str(tmp_path): FAMILIES["llama-2"]}
    RunPlan(mode="baseline", model=tmp_path, configs=configs, tp=2).write(plan)
    command = [sys.executable, "-m", "runtime.bench", str(plan)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "is a pickle" in done.stderr and done.stderr.count("\n") == 1


def children(parent: int) -> list[int]:
    """Processes that a process has started and not yet reaped."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in listed if alive(int(child))]


def alive(process: int) -> bool:
    """Whether it runs; one that ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    """Poll until it holds; the limit only ends a hang."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)
