"""Clocks for the phases of a run.

"draft" and "verify" are the passes alone, without the host's planning of them. Times are read only
after the run: a clock that records events on a device resolves them then, so that the host never
waits in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

PHASES = ("prefill", "draft_prefill", "draft", "verify", "accept")


class PhaseClock(Protocol):
    """Times named phases."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time the body as one occurrence of `name`."""
        ...

    def seconds(self) -> Mapping[str, list[float]]:
        """Seconds of every occurrence of every phase, in order."""
        ...

    def clear(self) -> None:
        """Forget every occurrence so far."""
        ...


class HostClock:
    """Wall time on the host, for a CPU, where a call returns when its work is done."""

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

    def clear(self) -> None:
        """Forget every occurrence so far."""
        self._seconds.clear()


class CudaClock:
    """Device time between events, idle time of the device included.

    Events are resolved only in `seconds`, so that no phase waits for another.
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

    def clear(self) -> None:
        """Forget every occurrence so far."""
        self._marks.clear()
