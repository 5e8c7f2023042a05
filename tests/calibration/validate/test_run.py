"""Cases are drawn fairly and fit; a run loads each pair once, resumes, and is fair when cut off."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from calibration_fakes import FakeRuntime

import calibration
import calibration.validate.run as validation_run
from calibration.records.steps import CaseFile, RecordError, read_cases, read_records
from calibration.validate.draw import (
    BATCH,
    BUDGET,
    CONTEXT,
    DRAFT_MODELS,
    TARGETS,
    DrawOptions,
    draw_cases,
    draw_rounds,
    scenario_of,
)
from calibration.validate.run import ValidationRun, by_pair, held_cases
from perfmodel import ConfigError, catalog, estimate
from runtime import DecoderConfig

HEADER = {"op": "provenance", "gpu": "NVIDIA H200", "driver": "580", "torch": "2.11", "commit": "a"}


@pytest.fixture(scope="module")
def cases() -> CaseFile:
    return draw_cases(DrawOptions(seed=7, count=40, choices=4))


def run(runtime: FakeRuntime, cases: CaseFile, seconds: float = 1e6) -> tuple[ValidationRun, str]:
    file = io.StringIO()
    work = ValidationRun(runtime, cases, file, seconds=seconds, clock=runtime.clock)
    work.measure(cases.cases)
    return work, file.getvalue()


def test_a_seed_draws_the_same_cases_and_another_seed_others(cases: CaseFile) -> None:
    assert draw_cases(DrawOptions(seed=7, count=40, choices=4)).text() == cases.text()
    other = draw_cases(DrawOptions(seed=8, count=40, choices=4))
    assert not {c.label for c in other.cases} & {c.label for c in cases.cases}


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("h200-cases.json", lambda: draw_cases(DrawOptions(seed=10, choices=3))),
        ("h200-cases-8.json", lambda: draw_cases(DrawOptions(seed=8))),
        ("h200-overhead-cases.json", lambda: draw_rounds(DrawOptions(seed=1003, count=12))),
        ("h100-cases.json", lambda: draw_cases(DrawOptions(seed=9, gpu="h100-sxm"))),
        (
            "h100-overhead-cases.json",
            lambda: draw_rounds(DrawOptions(seed=1004, count=12, gpu="h100-sxm")),
        ),
    ],
)
def test_the_committed_cases_were_drawn_and_not_chosen(
    name: str, cases: Callable[[], CaseFile]
) -> None:
    committed = Path(calibration.__file__).parent / "measured" / name
    assert committed.read_text() == cases().text()


def test_cases_lie_in_the_ranges_and_cover_models_and_drafts(cases: CaseFile) -> None:
    drawn = [case for case in cases.cases if case.purpose == "scenario"]
    assert len(drawn) == 40
    for case in drawn:
        assert BATCH[0] <= case.batch <= BATCH[1]
        assert CONTEXT[0] <= case.context_tokens <= CONTEXT[1]
        budget = case.plan.kv_budget_tokens
        assert budget is not None and budget % 16 == 0
        assert BUDGET[0] - 16 < budget <= min(BUDGET[1], case.context_tokens)
        assert 1 <= case.plan.gamma <= 8
        if case.plan.draft != "self":
            assert DRAFT_MODELS[case.target] == case.plan.draft
            tokenizers = {catalog.model(name).tokenizer for name in (case.target, case.plan.draft)}
            assert len(tokenizers) == 1
    assert set(TARGETS) == {case.target for case in drawn}
    assert len({(case.plan.draft, case.plan.policy) for case in drawn}) >= 3


def test_every_case_fits_the_memory_it_may_use(cases: CaseFile) -> None:
    for case in cases.cases:
        memory = estimate(scenario_of(case, gpu="h200")).memory
        assert float(memory.fraction) <= 0.85
    with pytest.raises(ConfigError, match="raise --memory-share"):
        draw_cases(DrawOptions(seed=7, memory_share=0.01))


def test_a_choice_has_every_gamma_of_its_scenario(cases: CaseFile) -> None:
    gammas: dict[str, set[int]] = {}
    for case in cases.cases:
        first = next(c for c in cases.cases if c.scenario == case.scenario)
        if case.plan.kv_budget_tokens == first.plan.kv_budget_tokens:
            gammas.setdefault(case.scenario, set()).add(case.plan.gamma)
    assert sum(found == set(range(1, 9)) for found in gammas.values()) == 4


def test_a_case_file_reads_back_and_its_shapes_build_the_runtimes_models(
    cases: CaseFile, tmp_path: Path
) -> None:
    path = tmp_path / "cases.json"
    path.write_text(cases.text())
    again = read_cases(path)
    assert list(again.cases) == list(cases.cases)
    for name, shape in again.models.items():
        config, spec = DecoderConfig(**shape), catalog.model(name)
        assert config.kv_heads == spec.kv_heads and config.rope_theta == spec.rope_theta


def test_each_pair_is_loaded_once_and_every_case_timed(cases: CaseFile, tmp_path: Path) -> None:
    runtime = FakeRuntime()
    work, text = run(runtime, cases)
    assert runtime.loads == list(by_pair(cases.cases)) and runtime.open == 0
    assert (work.done, work.failed) == (len(cases.cases), 0)
    path = tmp_path / "steps.jsonl"
    path.write_text(json.dumps(HEADER) + "\n" + text)
    header, records = read_records(path)
    assert header["gpu"] == "NVIDIA H200"
    assert {record.case for record in records} == set(cases.cases)


def test_a_run_cut_off_has_the_same_share_of_every_pair(cases: CaseFile) -> None:
    seconds = len(cases.cases) / 2
    _, text = run(FakeRuntime(case_s=1.0), cases, seconds)
    timed = Counter(
        (v["case"]["target"], v["case"]["plan"]["draft"])
        for v in map(json.loads, text.splitlines())
    )
    asked = Counter((c.target, c.plan.draft) for c in cases.cases)
    for pair, count in asked.items():
        if count >= 6:
            assert 0.3 < timed[pair] / count < 0.7, pair
    assert sum(timed.values()) == pytest.approx(seconds, abs=1)


def test_time_that_loading_took_from_a_pair_is_given_to_it_later(cases: CaseFile) -> None:
    runtime = FakeRuntime(case_s=1.0, load_s=3.0)
    pairs = len(by_pair(cases.cases))
    work, _ = run(runtime, cases, len(cases.cases) + 3.0 * 3 * pairs)
    assert work.done == len(cases.cases)


def test_a_case_that_does_not_fit_is_recorded_and_the_rest_timed(cases: CaseFile) -> None:
    victim = cases.cases[3].id
    work, text = run(FakeRuntime(too_large=frozenset({victim})), cases)
    failed = [v for v in map(json.loads, text.splitlines()) if v["op"] == "failed"]
    assert [v["case"]["id"] for v in failed] == [victim]
    assert failed[0]["reason"] == "no pages left"
    assert work.done == len(cases.cases) - 1


def test_a_run_goes_on_where_it_was_killed(cases: CaseFile, tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    assert held_cases(path, HEADER) == set()
    _, text = run(FakeRuntime(), cases, 5)
    path.write_text(path.read_text() + text + '{"op": "step", "ca')
    held = held_cases(path, HEADER)
    assert held == {v["case"]["id"] for v in map(json.loads, text.splitlines())}
    with pytest.raises(RecordError, match="line 1: measured with commit 'a', this is 'b'"):
        held_cases(path, HEADER | {"commit": "b"})


def test_the_run_is_listed_without_torch_or_pydantic(cases: CaseFile, tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    path.write_text(cases.text())
    code = (
        "import sys; "
        "[sys.modules.__setitem__(n, None) for n in ('torch', 'pydantic', 'plotly', 'perfmodel')]; "
        f"from calibration.validate.run import main; sys.exit(main(['--cases', {str(path)!r}, "
        "'--out', 'x', '--list']))"
    )
    root = Path(calibration.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sum(int(line.split()[-2]) for line in done.stdout.splitlines()) == len(cases.cases)


class TwoRanks(FakeRuntime):
    """This rank is the first of two; `other` is what the second says of each case."""

    def __init__(self, other: Callable[[int], str]) -> None:
        super().__init__()
        self.other, self.asked = other, 0

    def exchange(self, word: str) -> list[str]:
        self.asked += 1
        return [word, self.other(self.asked) if word == "" else word]


def test_a_case_that_fails_on_one_rank_alone_ends_the_run(cases: CaseFile) -> None:
    file = io.StringIO()
    runtime = TwoRanks(lambda asked: "out of memory" if asked > 20 else "")
    work = ValidationRun(runtime, cases, file, seconds=1e6, clock=runtime.clock)
    with pytest.raises(RecordError, match="rank 1: out of memory, where other ranks went on"):
        work.measure(cases.cases)
    assert 0 < work.done < len(cases.cases) and work.failed == 0
    assert runtime.open == 0


def test_the_clock_of_the_first_rank_decides_for_all(cases: CaseFile) -> None:
    runtime = TwoRanks(lambda asked: "")
    runtime.exchange = lambda word: ["False", word]  # type: ignore[method-assign]
    work = ValidationRun(runtime, cases, io.StringIO(), seconds=1e6, clock=runtime.clock)
    assert work.measure(cases.cases) == len(cases.cases) and work.done == 0


def test_a_run_in_which_cases_failed_does_not_end_well(
    cases: CaseFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cases.json"
    path.write_text(cases.text())
    failing = FakeRuntime(too_large=frozenset({cases.cases[0].id}))
    monkeypatch.setattr(validation_run, "StepRuntime", lambda: failing)
    monkeypatch.setattr(validation_run, "provenance", lambda command: HEADER)
    options = ["--cases", str(path), "--out", str(tmp_path / "out.jsonl"), "--seconds", "1e6"]
    assert validation_run.main(options) == 4
    assert validation_run.main(options) == 0  # all held: nothing fails any more


def test_cases_of_different_ranks_are_refused(cases: CaseFile) -> None:
    two = tuple(replace(case, tp=2) for case in cases.cases)
    assert validation_run.ranks_of(cases) == 1
    assert validation_run.ranks_of(replace(cases, cases=two)) == 2
    with pytest.raises(RecordError, match="one file"):
        validation_run.ranks_of(replace(cases, cases=(*cases.cases, *two)))
