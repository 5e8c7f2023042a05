"""Ends a run in which a rank waits too long, and reports the last position of every rank.

A rank that dies closes its connections, but one that stalls leaves the others inside a collective
forever. Each rank records its position as it goes. A thread publishes it through the ranks' store
and keeps the last position of every other rank, so that nothing is lost if the store stalls too.
It also counts its turns: a process that is suspended sends no new count. `launch_ranks` sees that
and more from outside (`processes`); this is for ranks that torchrun started, also on other hosts.
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
from runtime.parallel.processes import WAITS, is_suspended

LIMIT_VARIABLE = "SPECROOF_STALL_S"
STALL_S = 20.0  # longest round of a run that is under way, or time without another rank's count
JOIN_S = 300.0  # longest wait for another rank to start Python and join
START_S = 1800.0  # longest first round, which compiles, chunk of a prompt, or round on a CPU
_TEXT_BYTES = 80
_AFTER = ", after "
_EVERY_S = 1.0
STORE_TIMEOUT = timedelta(seconds=10)  # of one call of the store
_MISSED = 5  # counts after which a rank is named
_LEFT = 0  # the count of a rank that has left its group


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
        If the variable is not a positive number of seconds.
    """
    text = os.environ.get(LIMIT_VARIABLE)
    if not text:
        return STALL_S if device_type == "cuda" else START_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise InputError(
            f"{LIMIT_VARIABLE}={text!r} is not a positive number of seconds; use one such as 20"
        )
    return seconds


def silence_limit_s(every_s: float = _EVERY_S) -> float:
    """Seconds without a sign of life from another rank: at least five of its counts."""
    return max(_MISSED * every_s, stall_limit_s("cuda"))


def idle_limit_s() -> float:
    """Seconds for which a rank may be idle; shorter, so that it is named before others give up."""
    return 0.75 * stall_limit_s("cuda")


@dataclass(slots=True)
class Position:
    """What this rank is doing, since when, and how long that may take [s]."""

    text: str = "starting"
    since: float = field(default_factory=time.monotonic)
    limit_s: float = math.inf
    _phase: str = "starting"  # the text before that of `at`
    _mark: str = " "
    _file: mmap.mmap | None = None

    def move(self, text: str, *, limit_s: float = math.inf) -> None:
        """Set a new position."""
        self.limit_s, self.since = limit_s, time.monotonic()
        self.note(text)

    def note(self, text: str) -> None:
        """Name the next part of the current position."""
        self.text = self._phase = text
        if self._file is not None:
            self._file[1:] = text.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES)

    @contextmanager
    def waiting(self, mark: str = WAITS) -> Iterator[None]:
        """Within the body, this rank may be idle, since it waits for others."""
        outer = self._mark
        self._set_mark(mark)
        try:
            yield
        finally:
            self._set_mark(outer)

    def _set_mark(self, mark: str) -> None:
        self._mark = mark
        if self._file is not None:
            self._file[:1] = mark.encode()

    @contextmanager
    def at(self, text: str, *, limit_s: float) -> Iterator[None]:
        """Set this position within the body; after it, restore the previous one, with this one."""
        phase, before_s = self._phase, self.limit_s
        self.move(text, limit_s=limit_s)
        try:
            yield
        except BaseException:
            self.limit_s = before_s  # the text still names where the error was raised
            raise
        else:
            self.move(phase + _AFTER + text, limit_s=before_s)
        finally:
            self._phase = phase

    def write_to(self, path: Path) -> None:
        """From now on, also write to this file, which remains if the process is killed."""
        path.write_bytes(b" " * (1 + _TEXT_BYTES))
        with path.open("r+b") as file:
            self._file = mmap.mmap(file.fileno(), 1 + _TEXT_BYTES)
        self.note(self.text)


HERE = Position()  # of this process
known_places: Callable[[], str] = str  # positions of all ranks, as known here; "" if not watched
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
        self.peers = {other: _Peer() for other in range(ranks) if other != rank}
        self._turn = _LEFT
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, every_s: float = _EVERY_S) -> None:
        """Publish and watch in threads until stopped.

        From its first count, which is sent here, the other ranks expect more of this one.
        """
        with contextlib.suppress(RuntimeError):
            self.exchange()
        for work in (self.run, self.talk):
            thread = threading.Thread(target=work, args=(every_s,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def run(self, every_s: float = _EVERY_S) -> None:
        """Watch until stopped, or until this rank has waited too long.

        Turns are counted, since a clock also runs while the whole job is frozen, as in a container.
        """
        here, since, turns = self.position, math.nan, 0
        while not self._stop.wait(every_s):
            turns = turns + 1 if here.since == since else 0
            since, waited = here.since, turns * every_s
            if waited > here.limit_s:
                silent = ", ".join(
                    f"rank {other}" for other, peer in self.peers.items() if peer.silent > _MISSED
                )
                blame = f"{silent} sent no sign of life, and " if silent else ""
                self._give_up(
                    f"{blame}rank {self.rank} has waited {waited:.0f} s, more than the limit of "
                    f"{here.limit_s:.0f} s ({LIMIT_VARIABLE} sets that of a round)"
                )
                return

    def places(self) -> str:
        """The last known position of every rank."""
        known = {other: peer.text for other, peer in self.peers.items()}
        known[self.rank] = self.position.text
        return "; ".join(f"rank {rank}: {known[rank]}" for rank in sorted(known))

    def stop(self) -> None:
        """Stop watching and wait for the threads: one inside the store at exit would abort."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=2 * STORE_TIMEOUT.total_seconds())
        if not any(thread.is_alive() for thread in self._threads):
            with contextlib.suppress(RuntimeError):
                self._publish(_LEFT)

    def exchange(self) -> None:
        """Publish this rank's position and count, and read those of the others."""
        self._turn += 1
        self._publish(self._turn)
        for other, peer in self.peers.items():
            key = f"position-{other}"
            if self.store.check([key]):
                peer.hear(self.store.get(key).decode())

    def _publish(self, turn: int) -> None:
        place = f"{_HOST} {os.getpid()} {turn} {self.position.text}"
        self.store.set(f"position-{self.rank}", place)

    def talk(self, every_s: float = _EVERY_S) -> None:
        """Exchange positions until stopped, or until another rank has been silent for too long.

        If the store fails or stalls, the last positions remain.
        """
        limit_s = silence_limit_s(every_s)
        while not self._stop.wait(every_s):
            try:
                self.exchange()
            except RuntimeError:
                continue
            for other, peer in self.peers.items():
                if peer.silent * every_s > limit_s and not peer.only_busy():
                    self._give_up(
                        f"rank {other} has sent no sign of life for {limit_s:.0f} s, as after "
                        f"SIGSTOP or SIGKILL"
                    )
                    return

    def _give_up(self, reason: str) -> None:
        """Report, let stopped ranks receive their launcher's SIGTERM, and end this process."""
        self.report(f"{reason}; last positions: {self.places()}")
        for peer in self.peers.values():
            if peer.process is not None:  # otherwise the launcher waits 30 s for it
                with contextlib.suppress(OSError):
                    os.kill(peer.process, signal.SIGCONT)
        self.end(1)


@dataclass(slots=True)
class _Peer:
    """What was last heard from another rank."""

    text: str = "nothing heard"
    turn: int = _LEFT
    silent: int = 0  # exchanges of this rank since the last new count
    process: int | None = None  # if it is on this host

    def hear(self, place: str) -> None:
        """Read what the rank has published."""
        host, process, turn, self.text = place.split(" ", 3)
        same = int(turn) == self.turn and self.turn != _LEFT
        self.silent, self.turn = self.silent + 1 if same else 0, int(turn)
        self.process = int(process) if host == _HOST else None

    def only_busy(self) -> bool:
        """Whether it runs nevertheless, as in a long call that keeps its threads from counting."""
        return self.process is not None and is_suspended(self.process) is False


@contextmanager
def watched(store: PositionStore, rank: int, ranks: int) -> Iterator[None]:
    """Within the body, end the run if this rank waits, or another one is silent, for too long."""
    global known_places
    watchdog = Watchdog(store, rank, ranks)
    known_places = watchdog.places
    watchdog.start()
    try:
        yield
    finally:
        watchdog.stop()
