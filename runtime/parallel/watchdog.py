"""Ends a run in which a rank waits too long, and reports the last position of every rank.

A rank that dies closes its connections, but one that stalls leaves the others inside a collective
forever. Each rank records its position as it goes. A thread publishes it through the ranks' store
and keeps the last position of every other rank, so that nothing is lost if the store stalls too.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from runtime.errors import InputError

LIMIT_VARIABLE = "SPECROOF_STALL_S"
STALL_S = 20.0  # longest round of a run that is under way
START_S = 1800.0  # longest first round, which compiles, chunk of a prompt, or round on a CPU
POSITION_FILE = "position"
_FILE_BYTES = 80
_EVERY_S = 1.0
STORE_TIMEOUT = timedelta(seconds=10)  # of one call of the store


class PositionStore(Protocol):
    """The part of the ranks' store that a watchdog uses."""

    def set(self, key: str, value: str) -> None: ...
    def check(self, keys: list[str]) -> bool: ...
    def get(self, key: str) -> bytes: ...


def stall_limit_s(device_type: str) -> float:
    """Seconds that a round may last: SPECROOF_STALL_S if set, otherwise `STALL_S` on GPUs.

    Raises
    ------
    InputError
        If the variable is not a number of seconds.
    """
    text = os.environ.get(LIMIT_VARIABLE)
    if not text:
        return STALL_S if device_type == "cuda" else START_S
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"{LIMIT_VARIABLE}={text!r} is not a number of seconds; use a number such as 20"
        ) from None


@dataclass(slots=True)
class Position:
    """What this rank is doing, since when, and how long that may take [s]."""

    text: str = "joining"
    since: float = field(default_factory=time.monotonic)
    limit_s: float = math.inf
    _file: mmap.mmap | None = None

    def move(self, text: str, *, limit_s: float = math.inf) -> None:
        """Set a new position."""
        self.limit_s, self.since = limit_s, time.monotonic()
        self.note(text)

    def note(self, text: str) -> None:
        """Name the next part of the current position."""
        self.text = text
        if self._file is not None:
            self._file[:] = text.encode()[:_FILE_BYTES].ljust(_FILE_BYTES)

    @contextmanager
    def at(self, text: str, *, limit_s: float) -> Iterator[None]:
        """Set this position within the body, and restore the previous one after it."""
        before = self.text, self.limit_s
        self.move(text, limit_s=limit_s)
        try:
            yield
        except BaseException:
            self.text, self.limit_s = before  # the file still names where the error was raised
            raise
        self.move(before[0], limit_s=before[1])

    def write_to(self, path: Path) -> None:
        """From now on, also write to this file, which remains if the process is killed."""
        path.write_bytes(b" " * _FILE_BYTES)
        with path.open("r+b") as file:
            self._file = mmap.mmap(file.fileno(), _FILE_BYTES)
        self.note(self.text)


def last_positions(folder: Path) -> str:
    """What each rank was doing, from the files in one folder per rank; empty if there are none."""
    texts = {
        int(path.parent.name): path.read_text("utf-8", errors="replace").strip()
        for path in folder.rglob(POSITION_FILE)
    }
    return "; ".join(f"rank {rank}: {texts[rank]}" for rank in sorted(texts))


HERE = Position()  # of this process
_HOST = socket.gethostname()


def _print_error(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)


class Watchdog:
    """Watches one rank's position and publishes it."""

    def __init__(
        self,
        store: PositionStore,
        rank: int,
        ranks: int,
        *,
        position: Position = HERE,
        report: Callable[[str], None] = _print_error,
        end: Callable[[int], None] = os._exit,  # the main thread waits and cannot be interrupted
    ) -> None:
        self.store, self.rank, self.ranks = store, rank, ranks
        self.position, self.report, self.end = position, report, end
        self.positions = {other: "nothing heard" for other in range(ranks) if other != rank}
        self._processes: set[int] = set()  # of other ranks on this host
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, every_s: float = _EVERY_S) -> None:
        """Publish and watch in threads until stopped."""
        for work in (self.run, self._talk):
            thread = threading.Thread(target=work, args=(every_s,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def run(self, every_s: float = _EVERY_S) -> None:
        """Watch until stopped, or until this rank has waited too long."""
        while not self._stop.wait(every_s):
            here = self.position
            waited = time.monotonic() - here.since
            if waited > here.limit_s:
                self.report(self.message(waited))
                self._continue_stopped()
                self.end(1)
                return

    def message(self, waited_s: float) -> str:
        """One line: which rank waits, and the last known position of every rank."""
        known = {**self.positions, self.rank: self.position.text}
        places = "; ".join(f"rank {rank}: {known[rank]}" for rank in sorted(known))
        return (
            f"rank {self.rank} has waited {waited_s:.0f} s, more than the limit of "
            f"{self.position.limit_s:.0f} s ({LIMIT_VARIABLE} sets that of a round); last "
            f"positions: {places}"
        )

    def stop(self) -> None:
        """Stop watching and wait for the threads: one inside the store at exit would abort."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=2 * STORE_TIMEOUT.total_seconds())

    def exchange(self) -> None:
        """Publish this rank's position and read those of the others."""
        position = f"{_HOST} {os.getpid()} {self.position.text}"
        self.store.set(f"position-{self.rank}", position)
        for other in self.positions:
            key = f"position-{other}"
            if self.store.check([key]):
                host, process, text = self.store.get(key).decode().split(" ", 2)
                self.positions[other] = text
                if host == _HOST:
                    self._processes.add(int(process))

    def _talk(self, every_s: float) -> None:
        """Exchange positions; if the store fails or stalls, the last ones remain."""
        while not self._stop.wait(every_s):
            try:
                self.exchange()
            except RuntimeError:
                return

    def _continue_stopped(self) -> None:
        """Let a stopped rank receive its launcher's SIGTERM; otherwise the launcher waits 30 s."""
        for process in self._processes:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGCONT)


@contextmanager
def watched(store: PositionStore, rank: int, ranks: int) -> Iterator[None]:
    """Within the body, end the run if this rank stays at one position for too long."""
    HERE.move("joined")
    watchdog = Watchdog(store, rank, ranks)
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()
