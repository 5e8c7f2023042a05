"""A runtime that takes the predicted times, with noise, instead of a GPU's."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from calibration.draw_cases import scenario_of
from calibration.step_cases import Case, CaseFile
from perfmodel import estimate


class TooLarge(Exception):
    """The expected error of a runtime whose memory is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeTimes:
    target_step_s: float
    verify_s: float
    draft_step_s: float
    round_s: float
    host_s: float
    spread: float = 0.01
    repeats: int = 15
    peak_memory_bytes: int = 0
    memory_bytes: Mapping[str, int] = field(default_factory=dict)


class FakeBench:
    """Predicted times, each off by a log-normal error of `noise`."""

    def __init__(self, owner: FakeRuntime) -> None:
        self.owner = owner

    def time(self, case: Any, *, repeats: int = 15) -> FakeTimes:
        owner = self.owner
        owner.now += owner.case_s
        if case.id in owner.too_large:
            raise TooLarge("no pages left")
        return predicted_times(case, owner.noise, owner.rng)

    def close(self) -> None:
        self.owner.open -= 1


class FakeRuntime:
    """Counts what is loaded; its clock moves by `load_s` a pair and `case_s` a case."""

    expected: type[Exception] = TooLarge

    def __init__(
        self,
        *,
        noise: float = 0.0,
        seed: int = 0,
        load_s: float = 0.0,
        case_s: float = 1.0,
        too_large: frozenset[str] = frozenset(),
    ) -> None:
        self.noise, self.rng = noise, random.Random(seed)
        self.load_s, self.case_s, self.too_large = load_s, case_s, too_large
        self.now, self.open = 0.0, 0
        self.loads: list[tuple[str, str | None, int]] = []

    def bench(self, models: CaseFile, pair: tuple[str, str | None, int]) -> FakeBench:
        assert self.open == 0, "two pairs at once"
        self.now += self.load_s
        self.open += 1
        self.loads.append(pair)
        return FakeBench(self)

    def case(self, case: Case) -> Any:
        return case

    def agree(self, value: bool) -> bool:
        return value

    def clock(self) -> float:
        return self.now


def predicted_times(case: Case, noise: float, rng: random.Random) -> FakeTimes:
    """The model's own times of a case, with noise; the round is made of the noisy parts."""

    def noisy(seconds: float) -> float:
        return seconds * math.exp(rng.gauss(0.0, noise))

    point = estimate(scenario_of(case, gpu="h200"))
    target, verify = noisy(float(point.target_step.total_s)), noisy(float(point.verify.total_s))
    draft = 0.0 if point.draft_step is None else noisy(float(point.draft_step.total_s))
    host = float(point.overhead_s)
    return FakeTimes(
        target_step_s=target,
        verify_s=verify,
        draft_step_s=draft,
        round_s=case.plan.gamma * draft + verify + host if case.plan.gamma else target,
        host_s=host,
        peak_memory_bytes=int(point.memory.total),
        memory_bytes={"weights": int(point.memory.weights + point.memory.draft_weights)},
    )
