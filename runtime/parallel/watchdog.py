"""Ends a run in which a rank waits too long, and says where every rank stood.

A rank that dies closes its connections, but one that stalls leaves the others inside a collective
for good. Each rank states where it is as it goes; a thread passes that on through the ranks' store
and keeps the last word of all others, so that a store that stalls as well takes nothing away.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from runtime.errors import InputError

LIMIT_VARIABLE = "SPECROOF_STALL_S"
STALL_S = 20.0  # a round of a run that is under way
START_S = 1800.0  # a first round, which compiles; a chunk of a prompt; a round on a CPU
_EVERY_S = 1.0


class PositionStore(Protocol):
    """What a watchdog needs of the ranks' store."""

    def set(self, key: str, value: str) -> None: ...
    def check(self, keys: list[str]) -> bool: ...
    def get(self, key: str) -> bytes: ...


def stall_limit_s(device_type: str) -> float:
    """Seconds that a round may last: what SPECROOF_STALL_S states, or `STALL_S` on GPUs.

    Raises
    ------
    InputError
        If the variable is not a number of seconds.
    """
    stated = os.environ.get(LIMIT_VARIABLE)
    if not stated:
        return STALL_S if device_type == "cuda" else START_S
    try:
        return float(stated)
    except ValueError:
        raise InputError(f"{LIMIT_VARIABLE}={stated!r}: give a number of seconds") from None


@dataclass(slots=True)
class Position:
    """Where this rank is, since when, and how long it may stay there [s]."""

    text: str = "joining"
    since: float = field(default_factory=time.monotonic)
    limit_s: float = math.inf

    def move(self, text: str, *, limit_s: float = math.inf) -> None:
        """Go on to `text`."""
        self.text, self.limit_s, self.since = text, limit_s, time.monotonic()

    @contextmanager
    def at(self, text: str, *, limit_s: float) -> Iterator[None]:
        """Be there within, then back."""
        before = self.text, self.limit_s
        self.move(text, limit_s=limit_s)
        try:
            yield
        finally:
            self.move(before[0], limit_s=before[1])


HERE = Position()  # of this process


def _end(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)  # the main thread waits inside a library and cannot be interrupted


class Watchdog:
    """Watches one rank's position and passes it on."""

    def __init__(
        self,
        store: PositionStore,
        rank: int,
        ranks: int,
        *,
        position: Position = HERE,
        end: Callable[[str], None] = _end,
    ) -> None:
        self.store, self.rank, self.ranks = store, rank, ranks
        self.position, self.end = position, end
        self.last_said = {other: "nothing heard" for other in range(ranks) if other != rank}
        self._stop = threading.Event()

    def run(self, every_s: float = _EVERY_S) -> None:
        """Pass on and watch until stopped, or until this rank has waited too long."""
        talk = threading.Thread(target=self._talk, args=(every_s,), daemon=True)
        talk.start()
        while not self._stop.wait(every_s):
            here = self.position
            waited = time.monotonic() - here.since
            if waited > here.limit_s:
                self.end(self.report(waited))
                return

    def report(self, waited_s: float) -> str:
        """One line: who waits, and where every rank was last heard to be."""
        said = {**self.last_said, self.rank: self.position.text}
        places = "; ".join(f"rank {rank}: {said[rank]}" for rank in sorted(said))
        return (
            f"rank {self.rank} has waited {waited_s:.0f} s where {self.position.limit_s:.0f} s are "
            f"the limit (of a round: {LIMIT_VARIABLE}); last positions: {places}"
        )

    def stop(self) -> None:
        """No longer watch."""
        self._stop.set()

    def _talk(self, every_s: float) -> None:
        """Exchange positions; a store that fails or stalls leaves what was said last."""
        while not self._stop.wait(every_s):
            try:
                self.store.set(f"position-{self.rank}", self.position.text)
                for other in self.last_said:
                    key = f"position-{other}"
                    if self.store.check([key]):
                        self.last_said[other] = self.store.get(key).decode()
            except RuntimeError:
                return


@contextmanager
def watched(store: PositionStore, rank: int, ranks: int) -> Iterator[None]:
    """Within, this rank ends the run if it waits longer than its position may last."""
    HERE.move("joined")
    watchdog = Watchdog(store, rank, ranks)
    threading.Thread(target=watchdog.run, daemon=True).start()
    try:
        yield
    finally:
        watchdog.stop()
