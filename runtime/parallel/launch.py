"""Start one process per rank on this host; the first failure ends all of them.

torch's elastic agent starts, watches and stops the ranks, as torchrun does. This module reports the
outcome as one line and an exit code, and makes ranks end with their launcher even if it is killed.
Importing torch in the launcher takes 1.5 s, so a single rank runs without a launcher.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import EngineError, RankFailed, Terminated
from runtime.parallel import watchdog
from runtime.parallel.processes import (
    FAILURE_FILE,
    FINISHED,
    POSITION_FILE,
    RankMonitor,
    last_positions,
)
from runtime.parallel.watchdog import HERE, idle_limit_s, stall_limit_s

RUN_ID = "TORCHELASTIC_RUN_ID"  # "specroof-" and the launcher's process id, or another launcher's
STOPPED = (-signal.SIGTERM, 128 + signal.SIGTERM)  # exit codes of a rank that the agent stops
LOOKS = 15  # at each rank, within the time that it may be idle
PR_SET_PDEATHSIG = 1
PATIENCE_S = 5  # a rank that dies silently within this time of the first failure is its cause


def launch_ranks(command: Sequence[str], ranks: int) -> None:
    """Run `command` once per rank and wait for all.

    Parameters
    ----------
    command : list of str
        Program and arguments.
    ranks : int
        Processes to start.

    Raises
    ------
    RankFailed
        When a rank fails, is suspended or hangs, after all others were stopped; has its message
        and, for bad input, its exit code. Unless the input is at fault, the message ends with the
        last position of every rank.
    Terminated
        On SIGTERM, or SIGHUP if its action is the default, after all ranks were stopped.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in logging.root.manager.loggerDict:  # each has a level and handler of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] != signal.SIG_DFL:  # under nohup, or handled by the caller
        del before[signal.SIGHUP]
    monitor = RankMonitor(ranks, looks=LOOKS, every_s=idle_limit_s() / LOOKS)
    with tempfile.TemporaryDirectory(prefix="specroof-ranks-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=ranks,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            run_id=f"specroof-{os.getpid()}",
            local_addr="127.0.0.1",
            max_restarts=0,
            monitor_interval=0.05,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle=",".join(number.name for number in before),  # not SIGINT
        )
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        try:
            with monitor.watching():
                elastic_launch(config, command[0])(*command[1:])
        except ChildFailedError as error:
            failed = _failure(error.failures, ranks, monitor.ended_first)
            if monitor.verdict:
                failed = RankFailed(f"{monitor.verdict}; all ranks were stopped")
            if failed.exit_code == 1:  # otherwise the input is at fault
                positions = last_positions(Path(folder), ranks)
                failed.args = (f"{failed}; last positions: {positions}",)
            raise failed from None
        except SignalException as error:
            raise Terminated(error.sigval) from None
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)  # the agent leaves its own behind


def _failure(failures: Mapping[int, Any], ranks: int, ended: Sequence[int]) -> RankFailed:
    """The first failure: a rank that died without a report, otherwise the earliest report.

    `ended` are the ranks that ended first, if known; others report lost connections to them.
    """
    reports = {
        rank: f.error_file_data for rank, f in failures.items() if "code" in f.error_file_data
    }
    times = {rank: (report["code"] == 1, report["time_ns"]) for rank, report in reports.items()}
    first = min(times, key=times.__getitem__, default=None)  # others may report lost connections
    for rank in sorted(set(ended) - reports.keys()):
        return _silent(rank, failures[rank].exitcode if rank in failures else 0)
    for rank, failure in failures.items():
        code = failure.exitcode
        # The agent stops all others by SIGTERM, and by SIGKILL much later.
        late = first is not None and failure.timestamp > failures[first].timestamp + PATIENCE_S
        if rank not in reports and code not in STOPPED and not late:
            return _silent(rank, code)
    if first is None:
        return RankFailed("a rank was killed by SIGTERM; all ranks were stopped")
    report = reports[first]
    sys.stderr.write(report["trace"])  # of a bug; an expected outcome has none
    who = f"rank {first}: " if ranks > 1 else ""
    return RankFailed(who + report["message"], exit_code=report["code"])


def _silent(rank: int, code: int) -> RankFailed:
    """The failure of a rank that ended without a report."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    return RankFailed(f"rank {rank} {how}; all ranks were stopped")


# ---- inside a rank ----------------------------------------------------------------------------


def run_rank(body: Callable[[], None]) -> int:
    """Run one rank's work and return its exit code; report a failure to the launcher.

    With several ranks this does not return: the process ends here. After a failure on GPUs, a
    normal interpreter exit would wait for peers forever; after a success on CPUs, a gloo thread
    that still holds a tensor would abort it. Peers that wait for this rank see its connections
    close.
    """
    if _launcher() is not None:
        # A handler in Python would run only after a wait for another rank, which may never end.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _end_with_launcher()
        HERE.write_to(Path(os.environ[FAILURE_FILE]).with_name(POSITION_FILE))
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        _tell_positions_on_sigterm()
    try:
        stall_limit_s("cuda")  # refused before anything is loaded
        body()
        HERE.move(FINISHED)
        code = 0
    except KeyboardInterrupt:
        code = 130
    except EngineError as error:
        code = _report(str(error), error.exit_code)
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and _launcher() is None:
            raise  # the handler of a signal, in the only process
        code = _report(f"{type(error).__name__}: {error}", 1, traceback.format_exc())
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _launcher() -> int | None:
    """Process id of the `launch_ranks` that started this rank; None under torchrun or alone."""
    name, _, process = os.environ.get(RUN_ID, "").partition("-")
    return int(process) if name == "specroof" else None


def _report(message: str, code: int, trace: str = "") -> int:
    """Report a failure to `launch_ranks`; under any other launcher, print it."""
    line = " ".join(message.split())
    if _launcher() is None:
        _print_error(line, trace, positions=code == 1)
        return code
    file = Path(os.environ[FAILURE_FILE])
    now = time.time_ns()
    report = {"message": line, "timestamp": now // 10**9, "time_ns": now}
    whole = file.with_suffix(".writing")
    whole.write_text(json.dumps(report | {"code": code, "trace": trace}), encoding="utf-8")
    whole.replace(file)
    return code


def _print_error(line: str, trace: str = "", *, positions: bool) -> None:
    """Print an error, with the last position of every rank unless the input is at fault."""
    who = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    places = watchdog.known_places() if positions else ""
    tail = f"; last positions: {places}" if places else ""
    print(f"{trace}error: {who}{line}{tail}", file=sys.stderr, flush=True)


def _tell_positions_on_sigterm() -> None:
    """End at once on SIGTERM, by which torchrun stops the others if a rank was killed.

    Python's handlers run only after a wait for another rank, but the signal's number is written to
    a pipe at once.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writer)

    def watch() -> None:
        while os.read(reader, 1)[0] != signal.SIGTERM:
            pass
        _print_error("stopped by SIGTERM", positions=True)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def _end_with_launcher() -> None:
    """End when the launcher does, even if it is killed and, on Linux, this rank suspended."""
    launcher = _launcher()
    with contextlib.suppress(AttributeError):  # Linux only; the launcher's main thread starts ranks
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
