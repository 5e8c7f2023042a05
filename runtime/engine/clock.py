"""How long each phase of a run took.

A clock is asked for its times only once the run is over: one that records events on a device
resolves them then, and never makes the host wait in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

PHASES = ("prefill", "draft_prefill", "draft", "verify", "accept", "host")


class PhaseClock(Protocol):
    """Times named phases."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """The time from entry to exit belongs to `name`, one of `PHASES`."""
        ...

    def seconds(self) -> Mapping[str, list[float]]:
        """Seconds of every occurrence of every phase, in order."""
        ...


class HostClock:
    """Wall time on the host: right where work is done when its call returns, as on a CPU."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the body."""
        start = time.perf_counter()
        yield
        self._seconds.setdefault(name, []).append(time.perf_counter() - start)

    def seconds(self) -> Mapping[str, list[float]]:
        """Seconds of every occurrence of every phase, in order."""
        return self._seconds


class CudaClock:
    """Device time between events; what the host does while the device is idle counts as it passes.

    Nothing is resolved before `seconds`, so that no phase waits for another.
    """

    def __init__(self) -> None:
        self._marks: dict[str, list[tuple[Any, Any]]] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record an event on either side of the body."""
        import torch

        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        yield
        end.record()
        self._marks.setdefault(name, []).append((start, end))

    def seconds(self) -> Mapping[str, list[float]]:
        """Seconds of every occurrence of every phase, in order; waits for the last."""
        import torch

        torch.cuda.synchronize()
        return {
            name: [start.elapsed_time(end) * 1e-3 for start, end in marks]
            for name, marks in self._marks.items()
        }
