"""A fake runtime that takes the predicted times, with noise."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from calibration.records.published import PHASES
from calibration.records.steps import CHUNK_TOKENS, Case, Pair, case_scenario
from calibration.validate import predict
from calibration.validate.memory import WorkspaceCount, torch_peak_bytes
from calibration.validate.predict import prefill_s, timed_pass
from perfmodel import estimate
from runtime import StepTimes


class TooLarge(Exception):
    """The error of a runtime that is out of memory."""


class FakeBench:
    """Predicted times with log-normal noise."""

    def __init__(self, owner: FakeRuntime) -> None:
        self.owner = owner

    def time(
        self, case: Any, *, repeats: int = 15, parts: bool = False, prompt: bool = False
    ) -> StepTimes:
        owner = self.owner
        owner.now += owner.case_s
        if case.id in owner.too_large:
            raise TooLarge("no pages left")
        times = predicted_times(case, owner.noise, owner.rng, owner.streams)
        if prompt:
            owner.streams.prefill()
            tokens = min(case.context_tokens, 8192)
            seconds = prefill_s(case_scenario(case, gpu="h200"), tokens)
            seconds *= math.exp(owner.rng.gauss(0.0, owner.noise))
            times = replace(times, prefill_s=seconds, prefill_tokens=tokens)
        return replace(times, parts_s=predicted_parts(case)) if parts else times

    def close(self) -> None:
        self.owner.open -= 1


class FakeRuntime:
    """A runtime with a clock that advances by `load_s` per pair and `case_s` per case."""

    expected: type[Exception] = TooLarge

    def check_device(self) -> None:
        """No device is needed."""

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
        self.streams = WorkspaceCount()
        self.loads: list[Pair] = []

    def bench(self, pair: Pair) -> FakeBench:
        assert self.open == 0, "two pairs at once"
        self.now += self.load_s
        self.open += 1
        self.loads.append(pair)
        return FakeBench(self)

    def case(self, case: Case) -> Any:
        return case

    def others_may_wait(self) -> bool:
        return False

    def exchange(self, word: str, *, failed: bool = False) -> list[str]:
        return [word]

    def clock(self) -> float:
        return self.now


def predicted_parts(case: Case) -> dict[str, dict[str, float]]:
    """The predicted parts as in a trace, where a draft phase includes all its steps."""
    point = estimate(case_scenario(case, gpu="h200"))
    steps = {
        "target_step": (timed_pass(point.target_step, False), 1),
        "verify": (timed_pass(point.verify, False), 1),
    }
    if point.draft_step is not None:
        steps["draft_phase"] = (point.draft_step, case.plan.gamma)
    groups = ("linear", "attention", "elementwise")
    return {
        name: {group: times * float(step.group_s(group)) for group in groups}
        for name, (step, times) in steps.items()
    }


def predicted_times(
    case: Case, noise: float, rng: random.Random, streams: WorkspaceCount
) -> StepTimes:
    """The predicted times of a case with noise; the round is the sum of the noisy parts."""

    def noisy(seconds: float) -> float:
        return seconds * math.exp(rng.gauss(0.0, noise))

    scenario = case_scenario(case, gpu="h200")
    engine = scenario.engine.changed(prefill_chunk_tokens=CHUNK_TOKENS)
    point = estimate(replace(scenario, engine=engine))
    times = predict.predicted_times(point, to_tokens=False)
    target, verify, draft = (noisy(times[name]) for name in PHASES)
    passes = case.plan.gamma * times["draft_step_s"] + times["verify_s"]
    host = times["round_s"] - passes if case.plan.gamma else 0.0
    return StepTimes(
        target_step_s=target,
        verify_s=verify,
        draft_step_s=draft,
        round_s=case.plan.gamma * draft + verify + host if case.plan.gamma else target,
        host_s=host,
        spread=0.01,
        repeats=15,
        peak_memory_bytes=int(torch_peak_bytes(point, case, streams)),
        memory_bytes={"weights": int(point.memory.weights + point.memory.draft_weights)},
    )
