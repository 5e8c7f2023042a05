"""A run of cases loads each pair once, resumes, and samples fairly."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from calibration_fakes import FakeRuntime

from app.cli.main import run as specroof
from calibration.records.jsonl import RecordError, RecordLog, read_lines
from calibration.records.steps import CaseFile, Pair, read_steps
from calibration.validate.run import (
    SAME_RUN,
    StepRuntime,
    ValidationRun,
    by_pair,
    case_ids,
    ranks_of,
    time_cases,
)
from calibration.validate.sample import CONTEXT, SampleOptions, sample_cases
from perfmodel import catalog

HEADER = {"gpu": "NVIDIA H200", "driver": "580", "torch": "2.11", "commit": "a"}


@pytest.fixture(scope="module")
def cases() -> CaseFile:
    return sample_cases(SampleOptions(seed=7, count=40, choices=4))


def run(
    runtime: FakeRuntime, cases: CaseFile, path: Path, seconds: float = 1e6
) -> tuple[ValidationRun, list[dict[str, Any]]]:
    """The run, and its records."""
    with RecordLog(path, HEADER, same=SAME_RUN) as log:
        work = ValidationRun(runtime, log, seconds=seconds, clock=runtime.clock)
        work.measure(cases.cases)
    return work, [line.value for line in read_lines(path)[1:]]


def test_each_pair_is_loaded_once_and_every_case_is_timed(cases: CaseFile, tmp_path: Path) -> None:
    runtime = FakeRuntime()
    work, _ = run(runtime, cases, tmp_path / "steps.jsonl")
    assert runtime.loads == list(by_pair(cases.cases)) and runtime.open == 0
    assert (work.done, work.failed) == (len(cases.cases), 0)
    header, records = read_steps(tmp_path / "steps.jsonl")
    assert header["gpu"] == "NVIDIA H200"
    assert {record.case.id for record in records} == {case.id for case in cases.cases}


def test_an_interrupted_run_has_the_same_share_of_every_pair(
    cases: CaseFile, tmp_path: Path
) -> None:
    seconds = len(cases.cases) / 2
    _, lines = run(FakeRuntime(case_s=1.0), cases, tmp_path / "steps.jsonl", seconds)
    timed = Counter((v["case"]["target"], v["case"]["plan"]["draft"]) for v in lines)
    asked = Counter((c.target, c.plan.draft) for c in cases.cases)
    for pair, count in asked.items():
        if count >= 6:
            assert 0.3 < timed[pair] / count < 0.7, pair
    assert sum(timed.values()) == pytest.approx(seconds, abs=1)


def test_a_pair_gets_back_the_time_that_loading_took(cases: CaseFile, tmp_path: Path) -> None:
    runtime = FakeRuntime(case_s=1.0, load_s=3.0)
    seconds = len(cases.cases) + 3.0 * 3 * len(by_pair(cases.cases))
    work, _ = run(runtime, cases, tmp_path / "steps.jsonl", seconds)
    assert work.done == len(cases.cases)


def test_a_case_that_does_not_fit_is_recorded_and_the_rest_timed(
    cases: CaseFile, tmp_path: Path
) -> None:
    victim = cases.cases[3].id
    path = tmp_path / "steps.jsonl"
    work, lines = run(FakeRuntime(too_large=frozenset({victim})), cases, path)
    failed = [v for v in lines if v["op"] == "failed"]
    assert [(v["case"]["id"], v["reason"]) for v in failed] == [(victim, "no pages left")]
    assert work.done == len(cases.cases) - 1 == len(read_steps(path)[1])


def test_a_run_continues_where_it_was_killed(cases: CaseFile, tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    _, lines = run(FakeRuntime(), cases, path, 5)
    assert 0 < len(lines) < len(cases.cases)
    path.write_text(path.read_text() + '{"op": "step", "ca')
    with RecordLog(path, HEADER, same=SAME_RUN) as log:
        assert case_ids(log.lines) == {v["case"]["id"] for v in lines}
    with pytest.raises(RecordError, match="line 1: measured with commit 'a', but this run has 'b'"):
        RecordLog(path, HEADER | {"commit": "b"}, same=SAME_RUN)


def test_a_command_continues_its_file_and_other_ranks_write_nothing(
    cases: CaseFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, path = replace(cases, cases=cases.cases[:6]), tmp_path / "steps.jsonl"
    monkeypatch.setattr("calibration.validate.run.StepRuntime", FakeRuntime)
    monkeypatch.setattr("runtime.provenance", lambda command: HEADER | {"command": command})

    def timed(cases: CaseFile) -> str:
        return time_cases(cases, path, command=["run"], seconds=60.0)[0]

    monkeypatch.setenv("RANK", "1")
    assert timed(few).startswith("6 cases timed") and not path.exists()
    monkeypatch.setenv("RANK", "0")
    assert timed(replace(few, cases=few.cases[:2])).startswith("2 cases timed")
    assert timed(few) == "4 cases timed, 0 failed, 0 left, 2 done before"
    header, records = read_steps(path)
    assert header["command"] == ["run"] and header["trials"] == "capturing stream"
    assert sorted(record.case.id for record in records) == sorted(c.id for c in few.cases)


def test_a_pair_is_benched_in_its_catalog_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []
    monkeypatch.setattr("runtime.StepBench", lambda *shapes, tp: made.append((*shapes, tp)))
    StepRuntime().bench(("llama-2-7b", "tinyllama-1.1b", 2))
    StepRuntime().bench(("qwen2.5-7b", None, 1))
    (target, draft, tp), (alone, no_draft, _) = made
    assert (target.name, draft.name, tp) == ("llama-2-7b", "tinyllama-1.1b", 2)
    assert draft.kv_heads == catalog.model("tinyllama-1.1b").kv_heads
    assert alone.qkv_bias and no_draft is None
    assert min(shape.max_context_tokens for shape in (target, draft, alone)) >= 2 * CONTEXT[1]


def test_the_cases_are_listed_without_a_gpu(
    cases: CaseFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cases.json"
    path.write_text(cases.text())
    assert specroof(["validate", "run", "--cases", str(path), "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert sum(int(line.split()[-2]) for line in listed) == len(cases.cases)
    assert specroof(["validate", "run", "--cases", str(path)]) == 2
    assert "--out FILE" in capsys.readouterr().err


def test_a_run_in_which_cases_failed_exits_with_4(
    cases: CaseFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cases.json"
    path.write_text(cases.text())
    failing = FakeRuntime(too_large=frozenset({cases.cases[0].id}))
    monkeypatch.setattr("calibration.validate.run.StepRuntime", lambda: failing)
    monkeypatch.setattr("runtime.provenance", lambda command: HEADER)
    words = ["validate", "run", "--cases", str(path), "--out", str(tmp_path / "out.jsonl")]
    assert specroof(words) == 4
    assert specroof(words) == 4  # what failed is tried again, and fails again


class TwoRanks(FakeRuntime):
    """The first of two ranks; `other` is the answer of the second to each case."""

    def __init__(self, other: Callable[[int], str]) -> None:
        super().__init__()
        self.other, self.asked = other, 0

    def exchange(self, word: str, *, failed: bool = False) -> list[str]:
        self.asked += 1
        return [word, self.other(self.asked) if word == "" else word]


def test_a_case_that_fails_on_one_rank_only_ends_the_run(cases: CaseFile, tmp_path: Path) -> None:
    runtime = TwoRanks(lambda asked: "out of memory" if asked > 20 else "")
    with pytest.raises(RecordError, match="rank 1: out of memory, while other ranks succeeded"):
        run(runtime, cases, tmp_path / "steps.jsonl")
    assert 0 < len(read_steps(tmp_path / "steps.jsonl")[1]) < len(cases.cases)
    assert runtime.open == 0


def test_a_rank_that_fails_before_it_joins_ends_the_run(cases: CaseFile, tmp_path: Path) -> None:
    """The others wait for it in the join, where they exchange no word."""

    class Unjoined(FakeRuntime):
        def others_may_wait(self) -> bool:
            return True

        def bench(self, pair: Pair) -> Any:
            raise self.expected("no GPU 1")

    runtime = Unjoined()
    runtime.exchange = lambda word, failed=False: [word] if word else pytest.fail("waits")  # type: ignore[method-assign]
    with pytest.raises(runtime.expected, match="no GPU 1"):
        run(runtime, cases, tmp_path / "steps.jsonl")


@pytest.mark.parametrize(("gpus", "reason"), [(0, "has none"), (1, "needs 2 GPUs, but this ma")])
def test_too_few_gpus_for_the_ranks_are_refused_before_any_starts(
    gpus: int,
    reason: str,
    cases: CaseFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpus > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("runtime.launch_ranks", lambda *_: pytest.fail("a rank started"))
    file, out = tmp_path / "cases.json", tmp_path / "out.jsonl"
    two = tuple(replace(case, tp=2) for case in cases.cases)
    file.write_text(replace(cases, cases=two).text())
    assert specroof(["validate", "run", "--cases", str(file), "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and reason in said
    measure = ["calibrate", "measure", "--tp", "2", "--out", str(out)]
    assert specroof(measure) == 2 and reason in capsys.readouterr().err
    assert not out.exists()


def test_the_clock_of_the_first_rank_decides_for_all(cases: CaseFile, tmp_path: Path) -> None:
    runtime = TwoRanks(lambda asked: "")
    runtime.exchange = lambda word, failed=False: ["False", word]  # type: ignore[method-assign]
    work, lines = run(runtime, cases, tmp_path / "steps.jsonl")
    assert work.done == 0 and lines == []


def test_cases_of_different_ranks_are_refused(cases: CaseFile) -> None:
    two = tuple(replace(case, tp=2) for case in cases.cases)
    assert ranks_of(cases) == 1
    assert ranks_of(replace(cases, cases=two)) == 2
    with pytest.raises(RecordError, match="one file"):
        ranks_of(replace(cases, cases=(*cases.cases, *two)))
