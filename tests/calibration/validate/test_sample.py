"""Cases are drawn by seed within their ranges, and a file of cases reads back or is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import calibration
from app.cli.main import run as specroof
from calibration.records.jsonl import RecordError
from calibration.records.steps import CaseFile, case_scenario, read_cases
from calibration.validate import sample
from calibration.validate.sample import (
    BATCH,
    BUDGET,
    CONTEXT,
    DRAFT_MODELS,
    TARGETS,
    SampleOptions,
    sample_cases,
    sample_rounds,
)
from perfmodel import ConfigError, catalog, estimate


@pytest.fixture(scope="module")
def cases() -> CaseFile:
    return sample_cases(SampleOptions(seed=7, count=40, choices=4))


def test_a_seed_determines_the_cases(cases: CaseFile) -> None:
    assert sample_cases(SampleOptions(seed=7, count=40, choices=4)).text() == cases.text()
    other = sample_cases(SampleOptions(seed=8, count=40, choices=4))
    assert not {c.label for c in other.cases} & {c.label for c in cases.cases}


def two_ranks(seed: int, gpu: str) -> CaseFile:
    return sample_cases(SampleOptions(seed=seed, count=24, choices=2, gpu=gpu, tp=2))


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("cases-h200-seed10.json", lambda: sample_cases(SampleOptions(seed=10, choices=3))),
        ("cases-h200-seed8.json", lambda: sample_cases(SampleOptions(seed=8))),
        (
            "cases-h200-rounds-seed1003.json",
            lambda: sample_rounds(SampleOptions(seed=1003, count=12)),
        ),
        ("cases-h100-seed9.json", lambda: sample_cases(SampleOptions(seed=9, gpu="h100-sxm"))),
        (
            "cases-h100-rounds-seed1004.json",
            lambda: sample_rounds(SampleOptions(seed=1004, count=12, gpu="h100-sxm")),
        ),
        ("cases-h200-tp2-seed2114.json", lambda: two_ranks(2114, "h200")),
        ("cases-h200-tp2-seed2115.json", lambda: two_ranks(2115, "h100-sxm")),
        ("cases-h100-tp2-seed2117.json", lambda: two_ranks(2117, "h100-sxm")),
        ("cases-h200-seed31.json", lambda: sample_cases(SampleOptions(seed=31))),
        ("cases-h200-seed2914.json", lambda: sample_cases(SampleOptions(seed=2914))),
        ("cases-h200-tp2-seed2118.json", lambda: two_ranks(2118, "h200")),
        ("cases-h200-seed2922.json", lambda: sample_cases(SampleOptions(seed=2922))),
        ("cases-h200-seed2932.json", lambda: sample_cases(SampleOptions(seed=2932))),
        ("cases-h200-tp2-seed2921.json", lambda: two_ranks(2921, "h200")),
        ("cases-h200-tp2-seed2931.json", lambda: two_ranks(2931, "h200")),
        (
            "cases-h100-tp2-rounds-seed2119.json",
            lambda: sample_rounds(SampleOptions(seed=2119, count=12, tp=2, gpu="h100-sxm")),
        ),
        (
            "cases-h200-rounds-seed2920.json",
            lambda: sample_rounds(SampleOptions(seed=2920, count=24)),
        ),
        (
            "cases-h200-tp2-rounds-seed2920.json",
            lambda: sample_rounds(SampleOptions(seed=2920, count=16, tp=2)),
        ),
        (
            "cases-h200-tp2-rounds-seed2116.json",
            lambda: sample_rounds(SampleOptions(seed=2116, count=12, tp=2)),
        ),
    ],
)
def test_the_committed_cases_were_drawn_and_not_chosen(
    name: str, cases: Callable[[], CaseFile]
) -> None:
    committed = Path(calibration.__file__).parent / "measured" / name
    assert read_cases(committed).cases == cases().cases
    shapes = json.loads(committed.read_text()).get("models", {})
    assert shapes or committed.read_text("utf-8") == cases().text()
    for name, shape in shapes.items():  # older files hold the shapes that were timed
        spec = catalog.model(name)
        stated = {field: getattr(spec, field) for field in shape}
        assert stated | {"max_context_tokens": shape["max_context_tokens"]} == shape


def test_cases_are_in_the_ranges_and_cover_models_and_drafts(cases: CaseFile) -> None:
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
        memory = estimate(case_scenario(case, gpu="h200")).memory
        assert float(memory.fraction) <= 0.85
    with pytest.raises(ConfigError, match="raise --memory-share"):
        sample_cases(SampleOptions(seed=7, memory_share=0.01))


@pytest.mark.parametrize("gpu", ["h200", "h100-sxm"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_only_models_that_split_over_the_ranks_are_drawn(
    seed: int, gpu: str, tmp_path: Path
) -> None:
    path = tmp_path / "cases.json"
    draw = ["validate", "draw", "--gpu", gpu, "--tp", "8", "--count", "24", "--output", str(path)]
    assert specroof([*draw, "--seed", str(seed)]) == 0
    drawn = {case.target for case in read_cases(path).cases}
    assert drawn == {name for name in TARGETS if catalog.model(name).splits_over(8)}
    assert "qwen2.5-7b" not in drawn


def test_a_draft_that_does_not_split_over_the_ranks_is_not_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = SampleOptions(seed=1, count=24, tp=8)
    draft = "qwen2.5-7b"  # 28 query heads
    monkeypatch.setattr(sample, "DRAFT_MODELS", {"llama-3.1-8b": draft})
    ways = [("llama-3.1-8b", "self"), ("llama-3.1-8b", draft), (draft, "self")]
    monkeypatch.setattr(sample, "ROUND_WAYS", ways)
    cases = (*sample_cases(options).cases, *sample_rounds(options).cases)
    assert {case.plan.draft for case in cases} == {"self"}


@pytest.mark.parametrize("more", [[], ["--rounds"]])
def test_ranks_over_which_no_model_splits_are_refused_in_one_line(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cases.json"
    assert specroof(["validate", "draw", "--tp", "3", "--output", str(path), *more]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "no model of the cases splits over tp=3 ranks" in line and "use 1 or 2" in line
    assert not path.exists()


def test_a_choice_has_every_gamma_of_its_scenario(cases: CaseFile) -> None:
    gammas: dict[str, set[int]] = {}
    for case in cases.cases:
        first = next(c for c in cases.cases if c.scenario == case.scenario)
        if case.plan.kv_budget_tokens == first.plan.kv_budget_tokens:
            gammas.setdefault(case.scenario, set()).add(case.plan.gamma)
    assert sum(found == set(range(1, 9)) for found in gammas.values()) == 4


def test_a_case_file_reads_back(cases: CaseFile, tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    path.write_text(cases.text())
    assert read_cases(path).cases == cases.cases


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, r"cases\.0\.batch=0 "),
        ({"tp": True}, r"cases\.0\.tp=True "),
        ({"plan": {"draft": "self"}}, r"missing key 'cases\.0\.plan\.policy'"),
        ({"colour": 1}, r"unknown key 'cases\.0\.colour'"),
        ({"id": "s7-001"}, "two cases have the same id"),
    ],
)
def test_a_bad_case_file_is_refused(
    change: dict[str, Any], message: str, cases: CaseFile, tmp_path: Path
) -> None:
    value = json.loads(cases.text())
    value["cases"][0] |= change
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(value))
    with pytest.raises(RecordError, match=message):
        read_cases(path)
    path.write_text(cases.text().replace("{", '{"cases": [], ', 1))
    with pytest.raises(RecordError, match="'cases' appears twice"):
        read_cases(path)
    path.write_text('{"drawn": {}, "cases": []}')
    with pytest.raises(RecordError, match="has no cases"):
        read_cases(path)
