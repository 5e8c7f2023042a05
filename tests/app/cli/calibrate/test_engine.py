"""`specroof calibrate engine` from plan to profile, against a fake vLLM."""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from documented import documented_keys
from engine_samples import HEADER, a_plan, records_of
from fake_vllm import write_fake_vllm

from app.cli.main import run
from calibration.records.jsonl import write_records


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    known = records_of(a_plan(minutes=12.0))[0]
    path = tmp_path_factory.mktemp("records") / "vllm.jsonl"
    write_records(path, HEADER, [*known.starts, *known.points])
    return path


def test_the_plan_is_listed_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["calibrate", "engine", "--list", "--gpu", "h100-sxm", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "llama-3.1-8b, plain" in out and out.splitlines()[-1].endswith("minutes")


def test_the_plan_names_methods_that_are_not_timed(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--list", "--target", "gemma-3-1b", "--method", "eagle3,mtp,ngram"]
    assert run(["calibrate", "engine", *flags]) == 0
    out, err = capsys.readouterr()
    assert "ngram" in out and "eagle3" not in out and "mtp" not in out
    assert [line.split(":")[1] for line in err.splitlines()] == [
        f" {method} of gemma-3-1b is not timed" for method in ("eagle3", "mtp")
    ]


def test_plain_decoding_of_a_server_needs_no_gamma(capsys: pytest.CaptureFixture[str]) -> None:
    """The command of docs/how-to/calibrate-engine.md; a method does need its gamma."""
    command = ["calibrate", "engine", "--list", "--url", "http://localhost:8000", "--gpu", "h200"]
    assert run([*command, "--method", "plain"]) == 0
    assert "llama-3.1-8b, plain" in capsys.readouterr().out
    assert run([*command, "--method", "eagle3"]) == 2
    assert "give --target, --method and --gamma one value each" in capsys.readouterr().err


def test_a_profile_is_fitted_to_records_and_used_to_predict(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["calibrate", "engine", str(records), "--output", str(tmp_path), "--json"])
    answer = json.loads(capsys.readouterr().out)
    profile = tmp_path / "engines" / "vllm-0.26.toml"
    assert code == 0 and answer["outside_tolerance"] == []
    assert answer["written"] == [str(profile)]
    assert list(answer) == documented_keys("calibrate: engine")
    predict = ["predict", "--gpu", "h200", "--engine", str(profile), "--draft", "eagle3", "--json"]
    assert run([*predict, "--gamma", "3", "--batch", "8", "--prompt-tokens", "4096"]) == 0
    point = json.loads(capsys.readouterr().out)
    assert point["overhead_s"] > 0 and point["acceptance"]["origin"] == "measured"


def test_records_of_another_seed_are_used_for_validation(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = records_of(a_plan(minutes=12.0, seed=5), lambda index: 1.5)[0]
    other = tmp_path / "other.jsonl"
    write_records(other, HEADER, [*known.starts, *known.points])
    arguments = ["calibrate", "engine", str(records), "--check", str(other)]
    code = run([*arguments, "--output", str(tmp_path)])
    out, error = capsys.readouterr()
    assert code == 4 and "exceeds 3 %" in error
    assert (tmp_path / "engines" / "vllm-0.26.toml").is_file() and "fitted    plain" in out


def test_a_profile_that_nothing_validates_is_noted(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fitted.jsonl"
    known = records_of(a_plan(minutes=12.0))[0]
    write_records(path, HEADER, [*known.starts, *known.fitted])
    for file, noted in ((path, True), (records, False)):
        assert run(["calibrate", "engine", str(file), "--output", str(tmp_path)]) == 0
        error = capsys.readouterr().err
        assert ("note: the profile is not validated" in error) is noted
        assert ("--check FILE" in error) is noted


def test_a_host_that_other_machines_disturb_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, path = records_of(a_plan(minutes=12.0))[0], tmp_path / "vllm.jsonl"
    points = [
        replace(r, windows_s=((*4 * (r.seconds,), 1.6 * r.seconds), (1.6 * r.seconds,)))
        for r in known.points
    ]
    disturbed = [replace(r, disturbed=(1.6 * r.seconds,)) for r in points]
    write_records(path, HEADER, [*known.starts, *disturbed])
    assert run(["calibrate", "engine", str(path), "--output", str(tmp_path)]) == 0
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("note: the cores of this host are shared") and "1.6 times" in last


def test_an_engine_is_measured_and_fitted_in_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(write_fake_vllm(tmp_path / "site")))
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.1'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}{os.pathsep}{os.environ['PATH']}")
    out = tmp_path / "vllm.jsonl"
    code = run(
        [
            *("calibrate", "engine", "--out", str(out), "--python", sys.executable),
            *("--minutes", "8", "--method", "ngram", "--context", "1024:2048"),
            *("--output", str(tmp_path)),
        ]
    )
    printed, error = capsys.readouterr()
    header = json.loads(out.read_text().splitlines()[0])["header"]
    assert code in (0, 4)  # the step times of the fake are not those of an H200
    assert ("exceeds" in error) == (code == 4)
    assert (header["gpu"], header["gpu_name"], header["version"]) == (
        "NVIDIA H200",
        "h200",
        "0.26.0",
    )
    assert header["command"][1:3] == sys.argv[1:3]
    assert "held back plain" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "nothing to fit"),
        (["--list", "--batch", "1:2:3"], "--batch '1:2:3' is not valid"),
        (["--list", "--gamma", "few"], "--gamma 'few' is not valid"),
        (["--list", "--method", "medusa"], "unknown method 'medusa'"),
        (["--list", "--json"], "leave out --json"),
        (["--out", "a.jsonl", "--python", "/nonexistent"], "cannot be run"),
        (["--out", "a.jsonl", "--python", shutil.which("true")], "is not a Python"),
        (["--out", "a.jsonl", "--python", shutil.which("echo")], "is not a Python"),
        (["--out", "a.jsonl", "--url", "localhost"], "must begin with http"),
        (["missing.jsonl"], "missing.jsonl"),
    ],
)
def test_invalid_input_is_a_one_line_error_with_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["calibrate", "engine", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
