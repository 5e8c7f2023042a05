"""Errors, regret and coverage of timed cases agree with runs of known truth."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from calibration_fakes import FakeRuntime
from documented import documented_keys

from app.cli.main import run as specroof
from calibration.records.jsonl import RecordError, RecordLog
from calibration.records.published import PHASES
from calibration.records.steps import TRIALS, CaseFile, StepRecord, case_scenario, read_steps
from calibration.validate.errors import QUANTITIES, ROOFLINE, Comparison, compare, measured_speedup
from calibration.validate.peers import read_peers
from calibration.validate.predict import datasheet_times
from calibration.validate.report import comparison_markdown
from calibration.validate.run import ValidationRun
from calibration.validate.sample import SampleOptions, sample_cases
from perfmodel import catalog, estimate
from perfmodel.catalog.engines import engine_profile

HEADER = {"gpu": "NVIDIA H200", "driver": "580", "torch": "2.11",
          "date": "2026-11-23", "commit": "abc", "command": "run", **TRIALS}  # fmt: skip


@pytest.fixture(scope="module")
def cases() -> CaseFile:
    return sample_cases(SampleOptions(seed=3, count=24, choices=4))


def write_run(path: Path, cases: CaseFile, *, parts: bool = False, **fake: Any) -> Path:
    runtime = FakeRuntime(**fake)
    path.unlink(missing_ok=True)
    with RecordLog(path, HEADER, same=()) as log:
        work = ValidationRun(runtime, log, seconds=1e6, parts=parts, clock=runtime.clock)
        work.measure(cases.cases)
    return path


def compared(path: Path, cases: CaseFile, **fake: Any) -> Comparison:
    return compare(*read_steps(write_run(path / "steps.jsonl", cases, **fake)))


def test_curves_of_another_gpu_are_named_in_the_report(cases: CaseFile, tmp_path: Path) -> None:
    path = write_run(tmp_path / "steps.jsonl", cases)
    header, records = read_steps(path)
    same = compare(header, records, curves_of="h200")
    assert max(abs(spread.worst) for spread in same.spreads().values()) < 0.3
    assert max(abs(s.worst) for s in same.peers["specroof with h200's curves"].values()) < 1e-6
    assert "curves of h200" in comparison_markdown(same)
    h100 = dict(header) | {"gpu": "NVIDIA H100 80GB HBM3"}
    other = compare(h100, records, curves_of="h200")
    assert other.gpu == "h100-sxm" and "specroof with h100-sxm's curves" in other.peers
    # Times of an H200 at an H100's bandwidth: what memory bounds is predicted slower by the ratio.
    assert 20.0 < other.spreads()["target_step_s"].median < 100.0 * (4.8 / 3.35 - 1.0)


def test_a_prefill_is_compared_if_it_was_timed(cases: CaseFile, tmp_path: Path) -> None:
    path = write_run(tmp_path / "steps.jsonl", cases)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    drawn = [v for v in lines if v.get("case", {}).get("purpose") == "scenario"]
    assert {v["prefill_tokens"] for v in drawn} == {
        min(8192, v["case"]["context_tokens"]) for v in drawn
    }
    for value in drawn:
        value["prefill_s"] *= 2.0
    path.write_text("".join(json.dumps(v) + "\n" for v in lines))
    spread = compare(*read_steps(path)).spreads()["prefill_s"]
    assert (spread.cases, spread.worst) == (len(drawn), pytest.approx(-50.0))
    for value in lines[1:]:
        del value["prefill_s"], value["prefill_tokens"]
    path.write_text("".join(json.dumps(v) + "\n" for v in lines))
    assert "prefill_s" not in compare(*read_steps(path)).spreads()
    lines[1] |= {"prefill_tokens": 512, "prefill_s": -1.0}
    path.write_text("".join(json.dumps(v) + "\n" for v in lines))
    with pytest.raises(RecordError, match=r"line 2: prefill_s=-1\.0 "):
        read_steps(path)
    lines[1] |= {"prefill_tokens": 10**15, "prefill_s": 1.0}
    path.write_text("".join(json.dumps(v) + "\n" for v in lines))
    with pytest.raises(RecordError, match="exceeds the context of"):
        read_steps(path)


@pytest.mark.parametrize(
    ("impossible", "says"),
    [
        ({"peak_memory_bytes": 1e-320}, "is below the"),
        ({"peak_memory_bytes": 5e9, "memory_bytes": {"a": 4e9, "b": 2e9}}, "6,000,000,000 bytes"),
        ({"peak_memory_bytes": 1e308}, "peak_memory_bytes"),
        ({"memory_bytes": {"weights": -1.0}}, "memory_bytes"),
        ({"host_s": 1e308}, "host_s"),
    ],
)
def test_impossible_memory_and_host_times_are_refused(
    cases: CaseFile, tmp_path: Path, impossible: dict[str, object], says: str
) -> None:
    path = write_run(tmp_path / "steps.jsonl", cases)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1] |= impossible
    path.write_text("".join(json.dumps(v) + "\n" for v in lines))
    with pytest.raises(RecordError, match=f"line 2: .*{says}"):
        read_steps(path)


def test_a_speculative_case_without_the_time_of_a_round_is_refused(
    cases: CaseFile, tmp_path: Path
) -> None:
    path = write_run(tmp_path / "steps.jsonl", cases)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    case = next(v for v in lines[1:] if v["case"]["plan"]["gamma"])
    case["round_s"] = 0.0
    path.write_text("".join(json.dumps(v) + "\n" for v in lines))
    with pytest.raises(RecordError, match="round_s=0 with gamma="):
        read_steps(path)


def test_without_noise_every_error_and_regret_is_zero(cases: CaseFile, tmp_path: Path) -> None:
    comparison = compared(tmp_path, cases)
    for name, spread in comparison.spreads().items():
        assert abs(spread.worst) < 1e-6, name
    assert set(comparison.spreads()) == set(QUANTITIES)
    assert len(comparison.decisions) == 4
    assert comparison.regret() == pytest.approx((0.0, 0.0), abs=1e-9)
    assert comparison.coverage == 1.0 and comparison.outside() == []


def test_a_known_error_is_found_with_its_sign(cases: CaseFile, tmp_path: Path) -> None:
    header, records = read_steps(write_run(tmp_path / "steps.jsonl", cases))
    slow = [replace(r, verify_s=r.verify_s / 1.25) for r in records]
    comparison = compare(header, slow)
    spread = comparison.spreads()["verify_s"]
    assert (spread.median, spread.worst) == pytest.approx((25.0, 25.0))
    assert any("T_V median 25.0 % > 3 %" in clause for clause in comparison.outside())


def test_intervals_have_their_stated_coverage(cases: CaseFile, tmp_path: Path) -> None:
    """With errors of the engine's standard error, 90 % of the intervals are right."""
    header, records = read_steps(write_run(tmp_path / "steps.jsonl", cases))
    error, rng = engine_profile("specroof", catalog.gpu("h200")).speedup_error, random.Random(0)

    def off(record: StepRecord) -> StepRecord:
        seconds = record.round_s * math.exp(rng.gauss(0.0, error))
        return replace(record, round_s=seconds)

    drawn = [record for record in records if record.case.purpose == "scenario"]
    many = [off(record) for _ in range(50) for record in drawn]
    assert compare(header, many).coverage == pytest.approx(0.90, abs=0.03)


def test_twice_the_stated_error_fails_the_coverage(cases: CaseFile, tmp_path: Path) -> None:
    header, records = read_steps(write_run(tmp_path / "steps.jsonl", cases))
    double = [
        replace(r, round_s=r.round_s * f)
        for r, f in zip(records, [1.2, 1 / 1.2] * len(records), strict=False)
    ]
    comparison = compare(header, double)
    assert comparison.coverage < 0.5
    assert any("intervals contain" in clause for clause in comparison.outside())


def test_regret_is_the_speedup_lost_by_the_predicted_choice(
    cases: CaseFile, tmp_path: Path
) -> None:
    header, records = read_steps(write_run(tmp_path / "steps.jsonl", cases))
    scenario = next(r.case.scenario for r in records if r.case.purpose == "choice")
    group = [r for r in records if r.case.scenario == scenario]
    chosen = max(group, key=measured_speedup)
    spoiled = replace(chosen, round_s=3 * chosen.round_s)
    again = [spoiled if r is chosen else r for r in records]
    decision = next(d for d in compare(header, again).decisions if d.scenario == scenario)
    best = max(1.0, *(measured_speedup(r) for r in [*group, spoiled] if r is not chosen))
    assert decision.regret == pytest.approx(1.0 - measured_speedup(spoiled) / best)
    assert f"γ {chosen.case.plan.gamma}" in decision.chosen


def test_the_datasheet_roofline_is_never_slower_than_a_prediction(cases: CaseFile) -> None:
    for case in cases.cases:
        point = estimate(case_scenario(case, gpu="h200"))
        floor = datasheet_times(point)
        assert floor["target_step_s"] < float(point.target_step.total_s)
        assert floor["verify_s"] < float(point.verify.total_s)


def test_an_error_in_one_part_is_attributed_to_it(cases: CaseFile, tmp_path: Path) -> None:
    path = write_run(tmp_path / "steps.jsonl", cases, parts=True)
    header, records = read_steps(path)
    traced = [r for r in records if r.parts_s]
    assert {r.case.purpose for r in traced} == {"scenario"}
    first = traced[0]
    slower = {**first.parts_s["verify"], "attention": 2 * first.parts_s["verify"]["attention"]}
    off = replace(first, parts_s={**first.parts_s, "verify": slower})
    error = next(iter(compare(header, [off]).errors))
    share = first.parts_s["verify"]["attention"] / first.times["verify_s"]
    assert error.parts["verify"]["attention"] == pytest.approx(-share)
    others = [v for name, parts in error.parts.items() for part, v in parts.items()
              if (name, part) != ("verify", "attention")]  # fmt: skip
    assert others == pytest.approx([0.0] * 8, abs=1e-9)
    assert "| verify | attention |" in comparison_markdown(compare(header, [off]))


def test_peers_are_compared_on_the_same_cases(cases: CaseFile, tmp_path: Path) -> None:
    steps = write_run(tmp_path / "steps.jsonl", cases)
    header, records = read_steps(steps)
    lines = ["# from elsewhere", "peer,id,target_step_s,verify_s,draft_step_s"]
    lines += [f"other,{r.case.id},{2 * r.times['target_step_s']},,"
              for r in records]  # fmt: skip
    path = tmp_path / "peers.csv"
    path.write_text("\n".join(lines) + "\n")
    peers = compare(header, records, peers=read_peers(path)).peers
    assert set(peers) == {ROOFLINE, "other"}
    assert peers["other"]["target_step_s"].median == pytest.approx(100.0)
    assert set(peers["other"]) == {"target_step_s"}
    assert peers[ROOFLINE]["target_step_s"].worst < 0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["peer,id,target_step_s,verify_s"], "column 'draft_step_s' is missing"),
        (["# a", "peer,id,target_step_s,verify_s,draft_step_s", "x,1,-1,,"],
         "line 3: target_step_s='-1' is not a positive time"),
        (["peer,id,target_step_s,verify_s,draft_step_s", "x,1,fast,,"], "line 2: .*'fast'"),
        (["peer,id,target_step_s,verify_s,draft_step_s", "x,1,inf,,"], "line 2: .*'inf'"),
        (["peer,id,target_step_s,verify_s,draft_step_s", "x,1,1"], "line 2: 3 cells"),
        (["peer,id,target_step_s,verify_s,draft_step_s", 'x,"1,1,,', "y,1,,,"], "line 2: not"),
        ([""], "column 'draft_step_s' is missing"),
    ],
)  # fmt: skip
def test_a_bad_prediction_of_a_peer_is_refused(
    lines: list[str], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "peers.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RecordError, match=message):
        read_peers(path)


def good_lines(cases: CaseFile, tmp_path: Path) -> list[dict[str, Any]]:
    path = write_run(tmp_path / "good.jsonl", cases)
    return [json.loads(line) for line in path.read_text().splitlines()[:3]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_step_s": -1e-3}, r"line 2: target_step_s=-0\.001 .* at least"),
        ({"verify_s": None}, "line 2: verify_s=None "),
        ({"verify_s": 0.0}, r"line 2: verify_s=0\.0 "),
        ({"draft_step_s": "fast"}, "line 2: draft_step_s='fast'"),
        ({"round_s": True}, "line 2: round_s=True"),
        ({"unit": "ms"}, "line 2: unit='ms' "),
        ({"unit": None}, "line 2: unit=None "),
        ({"case": {"id": "x"}}, r"line 2: missing key 'case\.scenario'"),
        ({"case": None}, "line 2: case=None "),
    ],
)
def test_a_bad_record_is_refused_with_its_line(
    change: dict[str, Any], message: str, cases: CaseFile, tmp_path: Path
) -> None:
    header, record, other = good_lines(cases, tmp_path)
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(json.dumps(v) for v in (header, record | change, other)) + "\n")
    with pytest.raises(RecordError, match=message):
        read_steps(path)


def test_a_file_of_two_gpus_or_none_or_cut_off_is_refused(cases: CaseFile, tmp_path: Path) -> None:
    header, record, _ = (json.dumps(v) for v in good_lines(cases, tmp_path))
    path = tmp_path / "bad.jsonl"
    other = json.dumps({"header": HEADER | {"gpu": "NVIDIA H100 80GB HBM3"}})
    for text, message in (
        (f"{header}\n{record}\n{other}\n", "line 3: GPU 'NVIDIA H100 80GB HBM3' after"),
        (f"{record}\n", "line 1: .*not a file of records"),
        (f"{header}\n{record}\n{record}\n", "line 3: case s3-000 is recorded twice"),
        (header.replace("NVIDIA H200", "Abacus") + f"\n{record}\n", "bad.jsonl, line 1: GPU 'Abac"),
        (f"{header}\n", "has no record"),
        (f"{header}\n{record[:-20]}", "line 2: the file is cut off"),
        (f"{header}\nplain\n{record}\n", "line 2: .*JSON"),
    ):
        path.write_text(text)
        with pytest.raises(RecordError, match=message):
            read_steps(path)


def test_a_gpu_that_the_catalog_lacks_is_refused(cases: CaseFile, tmp_path: Path) -> None:
    header, records = read_steps(write_run(tmp_path / "steps.jsonl", cases))
    with pytest.raises(RecordError, match="GPU 'NVIDIA B300'"):
        compare({**header, "gpu": "NVIDIA B300"}, records)


def test_the_command_writes_its_reports_and_says_what_is_outside(
    cases: CaseFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = write_run(tmp_path / "steps.jsonl", cases)
    reports = [f"--{kind}={tmp_path / name}"
               for kind, name in (("markdown", "r.md"), ("html", "r.html"))]  # fmt: skip
    assert specroof(["validate", "records", str(steps), *reports]) == 0
    assert "within tolerance" in capsys.readouterr().out
    assert (tmp_path / "r.html").read_text().count("<h3>") == 2
    page = (tmp_path / "r.md").read_text()
    assert all(case.label in page for case in cases.cases)
    bad = write_run(tmp_path / "bad.jsonl", cases, noise=0.2)
    assert specroof(["validate", "records", str(bad), "--json"]) == 4
    out, err = capsys.readouterr()
    assert json.loads(out)["outside"] and err.startswith("error: T_T median")
    assert set(json.loads(out)["spreads"]) >= set(PHASES)
    assert list(json.loads(out)) == documented_keys("validate: records")
