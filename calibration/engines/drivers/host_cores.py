"""Keep an engine on cores of the host that nothing else slows down, and state how fast they are.

Where other machines share the host's cores, for example two virtual machines the two threads of a
core, a fixed piece of work takes up to twice as long on some cores, and others a second later. An
engine whose GPU waits for the host takes longer by as much. So the time of a fixed loop on each core
says on which cores an engine runs undisturbed, and whether it still did when its steps were timed.

`vllm_offline.py` uses this module in the user's Python; it only needs the standard library.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

ADDITIONS = 60_000  # of the fixed loop, about 2 ms
EQUAL = 1.25  # a core is undisturbed if its loop takes at most so many times the shortest
MOST_CORES = 32  # that are tried; more would take longer than the steps
LEAST_CORES = 4  # for the threads of an engine and of its process that takes requests


class HostCores:
    """The cores of this machine, and the shortest time of the fixed loop on any so far."""

    def __init__(self) -> None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._tried = cores[:: max(1, -(-len(cores) // MOST_CORES))]
        self._all, self._used, self._shortest_s = cores, cores, float("inf")

    def settle(self) -> float:
        """Have all threads of this process and its children run on undisturbed cores.

        All cores are used if none is disturbed. Returns the slowdown of those used.
        """
        if len(self._tried) < LEAST_CORES:
            return 1.0
        seconds = self._loops(self._tried)
        chosen = undisturbed(seconds, self._shortest_s)
        self._used = self._all if len(chosen) == len(seconds) else chosen
        pin(processes(os.getpid()), self._used)
        return self._slowdown({core: seconds[core] for core in chosen})

    def slowdown(self) -> float:
        """Mean time of the loop on the cores in use over the shortest time on any core so far."""
        used = [core for core in self._tried if core in self._used]
        return self._slowdown(self._loops(used)) if len(used) >= LEAST_CORES else 1.0

    def _loops(self, cores: Iterable[int]) -> dict[int, float]:
        """Seconds of the loop on each core, the shorter of two."""
        allowed, seconds = os.sched_getaffinity(0), {}
        try:
            for core in cores:
                os.sched_setaffinity(0, {core})
                seconds[core] = min(loop_s(), loop_s())
        finally:
            os.sched_setaffinity(0, allowed)
        self._shortest_s = min(self._shortest_s, *seconds.values())
        return seconds

    def _slowdown(self, seconds: Mapping[int, float]) -> float:
        return sum(seconds.values()) / len(seconds) / self._shortest_s


def undisturbed(seconds: Mapping[int, float], shortest_s: float) -> list[int]:
    """The cores whose loop takes at most `EQUAL` times the shortest time, at least `LEAST_CORES`.

    `seconds` are those of the loop by core; if fewer are undisturbed, the fastest are added.
    """
    order = sorted(seconds, key=lambda core: seconds[core])
    count = sum(s <= EQUAL * min(shortest_s, *seconds.values()) for s in seconds.values())
    return sorted(order[: max(LEAST_CORES, count)])


def loop_s() -> float:
    """Seconds of the fixed loop."""
    began, total = time.perf_counter(), 0
    for number in range(ADDITIONS):
        total += number
    return time.perf_counter() - began


def processes(root: int) -> list[int]:
    """A process and all that descend from it, as Linux lists them."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def pin(pids: Iterable[int], cores: Iterable[int]) -> None:
    """Have all threads of some processes run on some cores; one that has ended is left out."""
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("[0-9]*"):
            with suppress(OSError, ValueError):
                os.sched_setaffinity(int(thread.name), cores)
