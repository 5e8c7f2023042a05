"""One process per rank on this host, watched: the first failure ends them all, with its message.

Ranks find each other through the environment, in torchrun's own names; under torchrun this launcher
is not used, and a rank cannot tell the difference.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from runtime.errors import EngineError, RankFailed, Terminated

GRACE_S = 5.0  # between asking a rank to stop and killing it
FAILURE_FOLDER = "SPECROOF_FAILURE_FOLDER"
STDERR = 2
LAUNCHER = "SPECROOF_LAUNCHER"  # its process id
_POLL_S = 0.05


def launch_ranks(command: Sequence[str], ranks: int) -> None:
    """Run `command` once per rank and wait for all.

    Parameters
    ----------
    command : list of str
        Program and arguments; rank 0 inherits stdout, the others write to stderr alone.
    ranks : int
        Processes to start.

    Raises
    ------
    RankFailed
        When a rank fails, within seconds, after all others were stopped; carries its message and,
        for bad input, its exit code.
    Terminated
        On SIGTERM, after all ranks were stopped.
    """
    with _sigterm_raises(), tempfile.TemporaryDirectory(prefix="specroof-ranks-") as folder:
        processes: list[subprocess.Popen[bytes]] = []
        try:
            port = _free_port()
            for rank in range(ranks):
                processes.append(_start(command, rank, ranks, port, folder))
            if not _all_end_well(processes, Path(folder)):
                time.sleep(2 * _POLL_S)  # let the rank that failed first have said so
                raise _failure(processes, Path(folder))
        finally:
            _stop(processes)


def _start(
    command: Sequence[str], rank: int, ranks: int, port: int, folder: str
) -> subprocess.Popen[bytes]:
    environment = {
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # a rank's own message is the one line that counts
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        FAILURE_FOLDER: folder,
        LAUNCHER: str(os.getpid()),
    }
    out = None if rank == 0 else STDERR
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=out, start_new_session=True
    )


def _all_end_well(processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> bool:
    """Wait until a rank has failed or said that it will, or all have ended well."""
    while True:
        codes = [process.poll() for process in processes]
        if any(codes) or any(folder.glob("rank-*")):
            return False
        if all(code == 0 for code in codes):
            return True
        time.sleep(_POLL_S)


def _failure(processes: Sequence[subprocess.Popen[bytes]], folder: Path) -> RankFailed:
    """What went wrong first: a rank that died without a word, else the earliest message."""
    reports = sorted(folder.glob("rank-*"), key=lambda report: report.stat().st_mtime_ns)
    spoken = {report.name for report in reports}
    for rank, process in enumerate(processes):
        code = process.poll()
        if code and f"rank-{rank}" not in spoken:
            killed = code < 0
            how = f"was killed by {signal.Signals(-code).name}" if killed else f"ended with {code}"
            return RankFailed(f"rank {rank} {how}; all ranks were stopped")
    code_text, message, trace = reports[0].read_text(encoding="utf-8").split("\n", 2)
    sys.stderr.write(trace)  # of a bug; an expected outcome has none
    who = f"{reports[0].name.replace('-', ' ')}: " if len(processes) > 1 else ""
    error = RankFailed(who + message.rstrip("\n"))
    error.exit_code = int(code_text)
    return error


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Within, SIGTERM is raised as `Terminated`, once; a second one does not disturb the ending."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated("terminated by SIGTERM; all ranks were stopped")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End every rank still alive: ask, wait, kill."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.terminate()
    deadline = time.monotonic() + GRACE_S
    for process in alive:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- on the side of a rank --------------------------------------------------------------------


def run_rank(body: Callable[[], None]) -> int:
    """Run one rank's work; a failure is one line on stderr, a note for the launcher, a code.

    Peers that wait for this rank see its connection close and fail in turn. On GPUs they would
    wait for good, and so would the exit of this process: it ends at once, and whoever started the
    ranks ends them.
    """
    _end_with_launcher()
    try:
        body()
    except KeyboardInterrupt:
        code = 130
    except EngineError as error:
        code = _report(str(error), error.exit_code)
    except Exception as error:
        code = _report(f"{type(error).__name__}: {error}", 1, traceback.format_exc())
    else:
        return 0
    if _still_connected():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _still_connected() -> bool:
    """Whether a process group was left standing, as NCCL's is after a failure."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and bool(distributed.is_initialized())


def _report(message: str, code: int, trace: str = "") -> int:
    line = " ".join(message.split())
    rank = os.environ.get("RANK", "0")
    folder = os.environ.get(FAILURE_FOLDER)
    if folder is None:
        print(f"{trace}error: rank {rank}: {line}", file=sys.stderr, flush=True)
    else:
        whole = Path(folder, f"writing-{rank}")
        whole.write_text(f"{code}\n{line}\n{trace}", encoding="utf-8")
        whole.replace(Path(folder, f"rank-{rank}"))
    return code


def _end_with_launcher() -> None:
    """End soon after the launcher has: one that is killed leaves nothing behind."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
