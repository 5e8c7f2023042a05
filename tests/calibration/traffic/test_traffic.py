"""Requests served by a fake vLLM, and recorded ones of a real vLLM against their simulation."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import ROUND_MS, SEQUENCE_MS, write_fake_vllm
from strategies import a_scenario

from calibration.records.jsonl import RecordError
from calibration.traffic import (
    PlacedRun,
    compare_runs,
    paired_runs,
    play_runs,
    read_traffic_records,
)
from perfmodel import ConfigError, Traffic

HEADER = {"engine": "vllm", "version": "0.26.0", "gpu": "NVIDIA H200", "torch": "2.11.0"}
MEASURED = Path("calibration/measured/traffic-vllm-0.26-h200-seed161.jsonl")


def scenario(**values: Any) -> Any:
    return a_scenario(
        **{"gpu": "h200", "engine": "vllm", "batch": 4, "prompt_tokens": 100, "output_tokens": 10}
        | values
    )


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(write_fake_vllm(tmp_path / "site")))
    return tmp_path


def played(fake: Path, traffic: Traffic, **values: Any) -> list[PlacedRun]:
    out = fake / "served.jsonl"
    runs = paired_runs(scenario(**values), traffic, seed=3)
    assert play_runs(runs, out, HEADER, python=sys.executable) == []
    return read_traffic_records([out])


def test_requests_at_once_have_the_times_of_the_fake(fake: Path) -> None:
    """One pass prefills all four prompts; nine plain rounds follow, or three with two drafts."""
    traffic = Traffic(requests=4, arrivals="at-once", prompt_tokens=100, output_tokens=10)
    plain, drafts = played(fake, traffic, draft="eagle3", gamma=2, acceptance=1.0)
    round_s = (ROUND_MS + 4 * SEQUENCE_MS) / 1e3
    for run, rounds in ((plain, 9), (drafts, 3)):
        assert [request.first_token_s for request in run.requests] == pytest.approx([0.4] * 4)
        assert [r.finish_s for r in run.requests] == pytest.approx([0.4 + rounds * round_s] * 4)
    assert (plain.drafts, drafts.drafts, drafts.accepted) == (0, 12, 24)
    assert drafts.rates == (1.0, 1.0)


def test_requests_wait_for_their_arrival(fake: Path) -> None:
    traffic = Traffic(requests=6, rate=0.5, prompt_tokens=100, output_tokens=2)
    (run,) = played(fake, traffic)
    assert [r.ttft_s for r in run.requests] == pytest.approx([0.1] * 6, abs=2e-6)


def test_a_served_run_is_not_served_again(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = Traffic(requests=2, arrivals="at-once", prompt_tokens=50, output_tokens=3)
    first = played(fake, traffic, draft="eagle3", gamma=1, acceptance=0.8)
    monkeypatch.setenv("FAKE_VLLM_REFUSES", "0")
    assert played(fake, traffic, draft="eagle3", gamma=1, acceptance=0.8) == first


def test_an_engine_that_does_not_start_is_named_with_its_log(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_REFUSES", "0")
    traffic = Traffic(requests=2, arrivals="at-once", prompt_tokens=50, output_tokens=3)
    with pytest.raises(ConfigError, match=r"no such luck \(full log: .*traffic-plain.log"):
        played(fake, traffic)


def test_acceptance_must_be_stated() -> None:
    traffic = Traffic(requests=2, arrivals="at-once", prompt_tokens=50, output_tokens=3)
    with pytest.raises(ConfigError, match="add --acceptance"):
        paired_runs(scenario(draft="llama-3.2-1b", draft_policy="full", gamma=1), traffic, seed=0)


def test_simulated_traffic_is_within_10_percent_of_vllm() -> None:
    """Plain decoding and EAGLE-3, at once and at a rate, as measured on one H200."""
    names = [
        f"chat-{draft}-{kind}" for draft in ("none", "eagle3") for kind in ("saturated", "rate")
    ]
    runs = [run for run in read_traffic_records([MEASURED]) if run.run in names]
    compared = compare_runs(runs)
    assert [run.run for run in compared] == names
    assert [clause for run in compared for clause in run.outside] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"requests": []}, "no requests"),
        ({"requests": [[1.0, 5, 5, 2.0, 3.0], [0.5, 5, 5, 2.0, 3.0]]}, "not in order"),
        ({"requests": [[1.0, 5, 5, 0.5, 3.0]]}, "not between"),
        ({"requests": [[0.0, 5, 5, 2.0, 1.0]]}, "not between"),
        ({"requests": [[0.0, 0, 5, 2.0, 3.0]]}, "requests"),
        ({"op": "request"}, "unknown operation"),
        ({"token_budget": -1}, "token_budget"),
        ({"rates": [1.5]}, "rates"),
        ({"scenario": {}}, "does not state target, gpu, engine"),
        ({"scenario": {"target": "llama-3.1-8b", "gpu": "h200", "batch": 8}}, "engine"),
    ],
)
def test_bad_records_are_refused_with_their_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "bad.jsonl"
    lines = MEASURED.read_text(encoding="utf-8").splitlines()[:2]
    path.write_text("\n".join([lines[0], json.dumps(json.loads(lines[1]) | change)]) + "\n")
    with pytest.raises(RecordError, match=f"line 2.*{message}"):
        read_traffic_records([path])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": [0.5]}, "gamma=0"),
        ({"token_budget": 1}, "token_budget=1"),
        ({"scenario": {"target": "nope"}}, "unknown model 'nope'"),
        ({"scenario": {"batch": "x"}}, "batch='x'"),
        ({"requests": [[0.0, 200_000, 5, 90.0, 91.0]]}, "1 requests exceed"),
        ({"requests": [[0.0, 5, 5, 2.0, 3.0], [0.5, 200_000, 5, 90.0, 91.0]]}, "1 of 2 requests"),
        ({"requests": [[0.0, 10**9, 5, 2.0, 3.0]]}, "request 1 needed 2.00 s for a prompt"),
        ({"requests": [[0.0, 4000, 5, 1e-5, 3.0]]}, "request 1 needed 10.0 us for a prompt"),
        ({"requests": [[0.0, 4000, 500, 0.2, 0.21]]}, "request 1 needed 10.00 ms for 500 output"),
    ],
)
def test_a_run_that_cannot_be_simulated_is_named_with_its_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "bad.jsonl"
    lines = MEASURED.read_text(encoding="utf-8").splitlines()[:2]
    run = json.loads(lines[1])
    change = change | {"scenario": run["scenario"] | change.get("scenario", {})}
    path.write_text("\n".join([lines[0], json.dumps(run | change)]) + "\n")
    with pytest.raises(ConfigError, match=f"bad.jsonl, line 2: .*{message}"):
        compare_runs(read_traffic_records([path]))


def test_times_in_other_units_than_seconds_are_refused() -> None:
    """Every shipped run, which is accepted in seconds, is refused in ms and in thousands of s."""
    for run in read_traffic_records([MEASURED]):
        for factor, message in ((1e3, "median time per output token"), (1e-3, "at least")):
            scaled = [
                r._replace(
                    arrival_s=factor * r.arrival_s,
                    first_token_s=factor * r.first_token_s,
                    finish_s=factor * r.finish_s,
                )
                for r in run.requests
            ]
            with pytest.raises(RecordError, match=message):
                compare_runs([replace(run, requests=tuple(scaled))])


def test_a_run_counts_once(tmp_path: Path) -> None:
    again = tmp_path / "again.jsonl"
    shutil.copyfile(MEASURED, again)
    with pytest.raises(RecordError, match=r"again.jsonl, line 2: .* is already in .*, line 2"):
        read_traffic_records([MEASURED, again])


def test_records_without_runs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    shutil.copyfile(MEASURED, path)
    path.write_text(path.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    with pytest.raises(RecordError, match="calibrate traffic"):
        read_traffic_records([path])


@pytest.mark.parametrize("device", ["NVIDIA B200", "NVIDIA H100 80GB HBM3"])
def test_requests_of_another_gpu_than_the_scenarios_are_refused(
    tmp_path: Path, device: str
) -> None:
    lines = MEASURED.read_text().splitlines(keepends=True)[:2]
    path = tmp_path / "served.jsonl"
    path.write_text(lines[0].replace("NVIDIA H200", device) + lines[1])
    with pytest.raises(RecordError, match=f"line 2 was measured on '{device}', not on h200"):
        read_traffic_records([path])
