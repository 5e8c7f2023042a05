"""Runs of a plan against a fake vLLM: times, continued runs, and failures."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import ROUND_MS, SEQUENCE_MS, write_fake_vllm
from hypothesis import given
from hypothesis import strategies as st

from calibration.engines.drivers import vllm_offline
from calibration.engines.drivers import vllm_process as vllm
from calibration.engines.plan import LONG_ROUNDS, SHORT_ROUNDS, Plan, PlanOptions, plan_run
from calibration.engines.reading import read_engine_records
from calibration.engines.records import EngineRecords, Point, PointRecord, Setup
from calibration.engines.run import point_record, run_plan
from perfmodel import ConfigError

HEADER = {"engine": "vllm", "version": "0.26.0", "gpu": "NVIDIA H200", "torch": "2.11.0"}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_run(PlanOptions(gpu="h200", minutes=10, context=(1024, 4096), start_s=60.0))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(write_fake_vllm(tmp_path / "site")))
    return tmp_path


def measured(fake: Path, plan: Plan, name: str = "a.jsonl", **options: Any) -> list[str]:
    def start(setup: Setup, points: Sequence[Point]) -> vllm.Process:
        return vllm.start(sys.executable, setup, points, fake / "work")

    return run_plan(plan, fake / name, HEADER, start, **options)


def results(records: EngineRecords) -> dict[str, tuple[float, ...]]:
    return {r.point.id: (r.seconds, r.context_tokens, r.tokens_per_round) for r in records.points}


def step_s(record: PointRecord) -> float:
    """Seconds of a step or round of the fake."""
    return (ROUND_MS + SEQUENCE_MS * record.point.batch) / 1e3


def test_every_point_has_the_time_of_the_fake(fake: Path, plan: Plan) -> None:
    seen: list[tuple[int, str]] = []
    lines = measured(fake, plan, show=lambda done, label: seen.append((done, label)))
    assert lines == [f"{len(plan.points)} of {len(plan.points)} points timed"]
    records = read_engine_records([fake / "a.jsonl"])
    assert [r.point for r in records.points] == list(plan.points)
    for record in records.points:
        gamma = record.point.setup.gamma
        assert record.seconds == pytest.approx(step_s(record), rel=1e-6)
        assert record.latency_s == pytest.approx(step_s(record), rel=1e-6)
        assert record.tokens_per_round == pytest.approx(gamma + 1)
        assert record.context_tokens == record.point.prompt_tokens + 1 + 32 * (gamma + 1)
        assert record.spread < 1e-6 and record.rounds == 48
        repeats = min(12, max(3, math.ceil(1.5 / 48 / step_s(record))))
        assert [len(each) for each in record.windows_s] == [6] * repeats
        assert record.disturbed_share == 0.0
    assert [s.setup for s in records.starts] == plan.setups
    assert records.facts("plain")["async_scheduling"] is True
    assert records.facts("draft") == records.facts("eagle3") | {"async_scheduling": False}
    assert seen[-1][0] == len(plan.points)


def test_a_continued_run_equals_an_uninterrupted_one(fake: Path, plan: Plan) -> None:
    measured(fake, plan)
    whole = (fake / "a.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    points = [line for line in whole if '"engine-point"' in line]
    # As if killed while the tenth point was being written.
    (fake / "b.jsonl").write_text("".join(whole[:1] + points[:9]) + points[9][:40])
    measured(fake, plan, "b.jsonl")
    first, again = (read_engine_records([fake / name]) for name in ("a.jsonl", "b.jsonl"))
    assert list(results(again)) == list(results(first))
    for point, values in results(first).items():
        assert results(again)[point] == pytest.approx(values)
    assert len(again.starts) == len(plan.setups) - 9 // len(plan.of(plan.setups[0]))
    measured(fake, plan, "b.jsonl")
    assert read_engine_records([fake / "b.jsonl"]) == again  # nothing is left, nothing is started


def test_a_failed_point_is_recorded_and_tried_again_by_the_next_run(
    fake: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = plan.points[0].batch
    failing = [p for p in plan.points if p.batch == batch]
    monkeypatch.setenv("FAKE_VLLM_FAILS", str(batch))
    lines = measured(fake, plan)
    assert len(lines) == len(failing) + 1 and "out of luck at this batch" in lines[0]
    records = read_engine_records([fake / "a.jsonl"])
    assert [f.point for f in records.failed] == failing
    monkeypatch.delenv("FAKE_VLLM_FAILS")
    measured(fake, plan)
    assert len(read_engine_records([fake / "a.jsonl"]).points) == len(plan.points)


@pytest.mark.parametrize("calls", ["2", "3 4"])
def test_windows_in_which_the_engine_compiles_are_left_out(
    fake: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, calls: str
) -> None:
    """Calls 2, 3, ... of an engine are the repeats of its first point."""
    monkeypatch.setenv("FAKE_VLLM_COMPILES", calls)
    measured(fake, plan)
    records = read_engine_records([fake / "a.jsonl"])
    first = [plan.of(setup)[0] for setup in plan.setups]
    assert len(records.points) == len(plan.points)
    for record in records.points:
        assert record.all_seconds == pytest.approx([step_s(record)] * len(record.windows_s))
        left_out = len(calls.split()) if record.point in first else 0
        assert record.disturbed_share == left_out / (6 * len(record.windows_s))


def test_repeats_on_a_slow_host_are_left_out(
    fake: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_SLOW", "2 4")
    measured(fake, plan)
    records = read_engine_records([fake / "a.jsonl"])
    for record in records.points:
        slow = 2 if record.point in [plan.of(setup)[0] for setup in plan.setups] else 0
        quiet = len(record.windows_s) - slow
        assert record.all_seconds == pytest.approx([step_s(record)] * quiet)
        assert record.disturbed == pytest.approx([1.7 * step_s(record)] * slow)
        assert record.disturbed_share == slow / len(record.windows_s)


def test_windows_count_only_if_the_host_was_as_fast_as_the_fastest(
    fake: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fixed loop takes 1 ms, and 1.1 or 1.3 ms while the same points are timed again."""
    measured(fake, plan)
    for name, loop_ms in (("b.jsonl", "1.1"), ("c.jsonl", "1.3")):
        monkeypatch.setenv("FAKE_VLLM_LOOP_MS", loop_ms)
        measured(fake, plan, name)
    for name, known in (("b.jsonl", True), ("c.jsonl", False)):
        alone = read_engine_records([fake / name])
        both = read_engine_records([fake / "a.jsonl", fake / name])
        repeats = [len(record.windows_s) for record in alone.points]
        assert min(repeats) > 0 and not alone.notes
        assert [len(r.windows_s) for r in both.points] == [n * (1 + known) for n in repeats]
        assert sum("loop took 1 ms at best, and 1.3 ms then" in n for n in both.notes) == (
            not known
        )


def test_only_rounds_in_which_all_sequences_decode_are_timed(
    fake: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sequence starts a step after the one before it, so 48 wait for the last of 49."""
    monkeypatch.setenv("FAKE_VLLM_RAMP", "1")
    lines = measured(fake, plan)
    records = read_engine_records([fake / "a.jsonl"])
    together = [p for p in plan.points if LONG_ROUNDS + 1 - p.batch >= 8]
    assert [r.point for r in records.points] == together
    assert len(lines) == len(plan.points) - len(together) + 1 and "time a smaller batch" in lines[0]
    for record in records.points:
        first, per_round = max(SHORT_ROUNDS, record.point.batch - 1), record.point.setup.gamma + 1
        windows = (LONG_ROUNDS - first) // 8
        assert [len(each) for each in record.windows_s] == [windows] * len(record.windows_s)
        assert record.seconds == pytest.approx(step_s(record)) and record.rounds == 8 * windows
        lag = (record.point.batch - 1) / 2
        length = 1 + per_round * (first + 4 * windows - lag)
        assert record.context_tokens == pytest.approx(record.point.prompt_tokens + length)


@pytest.mark.parametrize("misses", [5, 10_000])
def test_rounds_without_drafts_are_counted(
    fake: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, misses: int
) -> None:
    """The first sequence misses its first rounds, or all of them."""
    monkeypatch.setenv("FAKE_VLLM_MISSES", str(misses))
    lines = measured(fake, plan)
    records = read_engine_records([fake / "a.jsonl"])
    for record in records.points:
        gamma, batch = record.point.setup.gamma, record.point.batch
        tokens = LONG_ROUNDS * (gamma + 1)
        rounds = misses + math.ceil((tokens - misses) / (gamma + 1)) if gamma else LONG_ROUNDS
        expected = batch * tokens / (rounds + (batch - 1) * LONG_ROUNDS)
        assert record.tokens_per_round == pytest.approx(expected)
        assert record.seconds == pytest.approx(step_s(record))
    if misses == 5:
        assert len(records.points) == len(plan.points)
        return
    assert [r.point for r in records.points] == plan.of(plan.setups[0])  # plain decoding
    assert sum("in 0 rounds, and 8 are needed; time a smaller" in line for line in lines[:-1]) == (
        len(plan.points) - len(records.points)
    )


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"drafts": 0.0, "accepted": 0.0}, "counted no drafts"),
        ({"drafts": 56.0, "accepted": 224.0}, "counted no rounds"),
    ],
)
def test_an_engine_that_counts_no_drafts_or_rounds_is_refused(
    counts: dict[str, float], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(llm: Any, requests: list[Any], tokens: int) -> dict[str, Any]:
        steps = [(0.01 * i, int(i == 56)) for i in range(57)]
        times = {"seconds": 1.0, "latency_sum": 0.0, "latency_count": 0.0}
        return {"tokens": float(tokens), "steps": steps, **times, **counts}

    monkeypatch.setattr(vllm_offline, "_generate", generate)
    setup = Setup(target="llama-3.1-8b", method="ngram", gamma=3)
    job = vllm.job(setup, [Point(setup=setup, batch=1, prompt_tokens=8)], tmp_path)
    with pytest.raises(RuntimeError, match=message):
        vllm_offline.time_point(None, vllm_offline.Prompts(8), job["points"][0], job)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), min_size=1, max_size=9),
    st.integers(1, 12),
)
def test_all_sequences_decode_in_the_steps_that_are_timed(
    sequences: list[tuple[int, int]], short: int
) -> None:
    """Each has its prefill in a step, and then some rounds more than others."""
    long, prefills = 40, [prefill for prefill, _ in sequences]
    ends = [prefill + long + more for prefill, more in sequences]
    finished = [ends.count(i) for i in range(max(ends) + 1)]
    try:
        start, end = vllm_offline.steady_steps(finished, short, long)
    except RuntimeError as error:
        assert max(ends) - min(ends) > long - vllm_offline.WINDOW_ROUNDS
        assert "decoded together" in str(error)
        return
    assert max(prefills) <= start <= end - vllm_offline.WINDOW_ROUNDS and end == min(ends)
    assert start >= min(prefills) + short


def test_an_engine_that_returns_several_rounds_at_once_is_refused() -> None:
    assert vllm_offline.steady_steps([0] * 56 + [3], 8, 56) == (8, 56)
    with pytest.raises(RuntimeError, match="56 rounds in 28 steps, not one in each"):
        vllm_offline.steady_steps([0] * 28 + [3], 8, 56)


@pytest.mark.parametrize("finished", [[], [0] * 100])
def test_an_engine_in_which_no_sequence_finishes_is_refused(finished: list[int]) -> None:
    with pytest.raises(RuntimeError, match="no step in which a sequence finished"):
        vllm_offline.steady_steps(finished, 8, 56)


def test_a_point_whose_times_are_mostly_negative_fails(plan: Plan) -> None:
    """They are differences of two runs on a server."""
    line = {"all_seconds": [-1.0, -0.5, 2.0], "rounds": 48.0}
    with pytest.raises(ConfigError, match="are not valid step times"):
        point_record(plan.points[0], line)


@pytest.mark.parametrize(
    "windows", [[[0.0]], [[]], [[0.01], []], [[-0.001, 0.01]], [[0.01, math.nan]], [[math.inf]]]
)
def test_a_point_with_a_window_that_has_no_time_fails(
    plan: Plan, windows: list[list[float]]
) -> None:
    line = {"rounds": 48.0, "context_tokens": 9000.0, "tokens_per_round": 1.0}
    with pytest.raises(ConfigError, match="are not valid times of windows"):
        point_record(plan.points[0], line | {"windows_s": windows})
    assert point_record(plan.points[0], line | {"windows_s": [[0.01]]}).seconds == 0.01


def test_a_run_ends_if_the_first_engine_does_not_start(
    fake: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_REFUSES", "0")
    with pytest.raises(ConfigError, match=r"did not start: RuntimeError: no such luck \(full log"):
        measured(fake, plan)


def test_if_one_method_does_not_start_the_others_are_measured(
    fake: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = plan.setups[1]
    same = [p for p in plan.points if p.setup.gamma == refused.gamma]
    monkeypatch.setenv("FAKE_VLLM_REFUSES", str(refused.gamma))
    lines = measured(fake, plan)
    assert len(lines) == len(same) + 1
    assert len(read_engine_records([fake / "a.jsonl"]).points) == len(plan.points) - len(same)


def test_an_engine_that_would_start_after_the_deadline_is_not_started(
    fake: Path, plan: Plan
) -> None:
    lines = measured(fake, plan, deadline=time.monotonic() + plan.options.start_s - 1.0)
    assert lines == [
        f"0 of {len(plan.points)} points timed",
        "the time limit was reached; run the same command again for the remaining points",
    ]


def test_a_stopped_adapter_leaves_no_process_behind(fake: Path, plan: Plan) -> None:
    setup = plan.setups[0]
    process = vllm.start(sys.executable, setup, plan.of(setup), fake / "work")
    process.stop()
    assert process.ended
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
