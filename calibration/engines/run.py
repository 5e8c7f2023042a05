"""Run a plan: start one engine process per setup, and append each point to a file once timed.

An existing file is continued: its points are not timed again, and a setup without remaining points
is not started. A point that fails is recorded with the reason; the next run tries it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from calibration.engines.plan import Plan
from calibration.engines.records import FailedPoint, Point, PointRecord, Setup, StartRecord
from calibration.engines.undisturbed import repeat_seconds
from calibration.records.jsonl import LEAST, MOST, RecordLog
from perfmodel import ConfigError

SAME_RUN = ("engine", "version", "gpu", "driver", "torch")  # constant within a file
POLL_S = 0.2
MOST_START_S = 900.0  # an engine without output for this long is considered stuck
MOST_POINT_S = 600.0


class Adapter(Protocol):
    """A process that times points; `vllm_process.Process` is one."""

    def lines(self) -> list[dict[str, Any]]: ...
    def stop(self) -> None: ...

    @property
    def ended(self) -> bool: ...
    @property
    def failure(self) -> str: ...


Start = Callable[[Setup, Sequence[Point]], Adapter]
Show = Callable[[int, str], None]  # number of points done, and the current activity


def run_plan(
    plan: Plan,
    out: Path,
    header: Mapping[str, Any],
    start: Start,
    *,
    show: Show = lambda done, label: None,
    deadline: float | None = None,
) -> list[str]:
    """Time the points of a plan that are not in `out`; return lines on failed and remaining points.

    Raises `RecordError` if `out` cannot be written or has records of another engine, version or
    GPU, and `ConfigError` if the first engine does not start. If a later engine does not start,
    its points are recorded as failed.

    Parameters
    ----------
    header : mapping
        Header of a new file; an existing file must have the same engine, versions and GPU.
    start : callable
        Starts an adapter for a setup and some of its points.
    deadline : float, optional
        Value of `time.monotonic()` at which the run ends, even in the middle of a point. An engine
        is not started if it could not be ready by then. By default there is no deadline.
    """
    with RecordLog(out, header, same=SAME_RUN) as log:
        done = {
            line.decode(PointRecord).point.id
            for line in log.lines
            if line.value.get("op") == "engine-point"
        }
        work = _Run(plan, log, done, show, deadline)
        for setup in plan.setups:
            left = [point for point in plan.of(setup) if point.id not in work.done]
            if left and work.has_time_to_start:
                work.time_setup(setup, left, start)
    return work.report()


class _Run:
    """The state of one run: timed and failed points."""

    def __init__(
        self, plan: Plan, log: RecordLog, done: set[str], show: Show, deadline: float | None
    ) -> None:
        self.plan, self.log, self.done, self.show, self.deadline = plan, log, done, show, deadline
        self.failed: list[str] = []
        self.any_started = False

    @property
    def out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    @property
    def has_time_to_start(self) -> bool:
        """Whether an engine that is started now would be ready before the deadline."""
        start_s = self.plan.options.start_cost_s
        return self.deadline is None or time.monotonic() + start_s < self.deadline

    def time_setup(self, setup: Setup, points: Sequence[Point], start: Start) -> None:
        """Start an engine and record its results until it has ended or the deadline has passed."""
        self.show(len(self.done), f"starting {setup.label}")
        left = {point.id: point for point in points}
        adapter, started = start(setup, points), False
        heard = time.monotonic()
        try:
            while left:
                ended, lines = adapter.ended, adapter.lines()
                for line in lines:
                    started |= self._take(line, setup, left)
                    heard = time.monotonic()
                if (ended and not lines) or self.out_of_time:
                    break
                if time.monotonic() - heard > (MOST_POINT_S if started else MOST_START_S):
                    raise ConfigError(
                        f"{setup.label}: the engine has stopped responding; run the command again"
                    )
                if not lines:
                    time.sleep(POLL_S)
        finally:
            adapter.stop()
        if not started and not self.out_of_time and not self.any_started:
            raise ConfigError(f"{setup.label}: the engine did not start: {adapter.failure}")
        if left and not self.out_of_time:
            why = adapter.failure or "the engine ended early"
            for point in left.values():
                self._fail(point, why)

    def _take(self, line: dict[str, Any], setup: Setup, left: dict[str, Point]) -> bool:
        """Record one line of the adapter; return whether it reports that the engine has started."""
        if "start" in line:
            self.log.append(
                StartRecord(setup=setup, seconds=line["start"], facts=line.get("facts", {}))
            )
            self.show(len(self.done), setup.label)
            self.any_started = True
            return True
        point = left.pop(line["id"])
        try:
            if "error" in line:
                raise ConfigError(line["error"])
            record = point_record(point, line)
        except ConfigError as error:
            self._fail(point, str(error))
            return False
        self.log.append(record)
        self.done.add(point.id)
        self.show(len(self.done), setup.label)
        return False

    def _fail(self, point: Point, reason: str) -> None:
        self.log.append(FailedPoint(point=point, reason=reason))
        self.failed.append(f"failed: {point.id}: {reason}")

    def report(self) -> list[str]:
        """One line per failure, and the number of timed points."""
        total = len(self.plan.points)
        timed = sum(point.id in self.done for point in self.plan.points)
        lines = [*self.failed, f"{timed} of {total} points timed"]
        if timed + len(self.failed) < total:
            lines.append(
                "the time limit was reached; run the same command again for the remaining points"
            )
        return lines


def point_record(point: Point, line: Mapping[str, Any]) -> PointRecord:
    """The record of a result from an adapter, which has the times of windows or of repeats.

    Raises `ConfigError` if a window is not positive, or the median of repeats, which happens if a
    run was disturbed.
    """
    windows = tuple(map(tuple, line.get("windows_s", ())))
    seconds = tuple(float(s) for s in line.get("all_seconds", ()))
    disturbed = tuple(line.get("disturbed", ()))
    if not all(repeat and all(LEAST <= s <= MOST for s in repeat) for repeat in windows):
        every = [list(repeat) for repeat in windows]
        raise ConfigError(f"{point.id}: {every} are not valid times of windows; run it again")
    if windows:
        seconds, disturbed = repeat_seconds(windows)
    if not seconds or median(seconds) <= 0:
        raise ConfigError(f"{point.id}: {list(seconds)} are not valid step times; run it again")
    return PointRecord(
        point=point,
        seconds=median(seconds),
        all_seconds=seconds,
        rounds=line["rounds"],
        context_tokens=line["context_tokens"],
        tokens_per_round=line["tokens_per_round"],
        latency_s=line.get("latency_s", 0.0),
        prefill_s=line.get("prefill_s", 0.0),
        wall_s=line.get("wall_s", 0.0),
        disturbed=disturbed,
        windows_s=windows,
        loop_s=tuple(line.get("loop_s", ())),
    )
