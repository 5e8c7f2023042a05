"""`specroof calibrate traffic` checks its flags before it looks for an engine."""

from pathlib import Path

import pytest

from app.cli.main import run

TIMED = "arrival_s,prompt_tokens,output_tokens\n0,1000,20\n1,500,30\n"
PLAN = {"--target": "llama-3.1-8b", "--gpu": "h200", "--engine": "vllm", "--out": "out.jsonl"}


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ({"--traffic": "trace.csv", "--rate": "2"}, 2, "already has arrival times; remove --rate"),
        ({"--traffic": "trace.csv", "--prompt-cv": "0.5"}, 2, "--prompt-cv has no effect"),
        ({"--traffic": "trace.csv", "--output-cv": "0.5"}, 2, "--output-cv has no effect"),
        ({"--engine": "specroof"}, 2, "add --engine vllm"),
        ({"--out": "folder"}, 2, "folder cannot be written: it is a folder"),
        ({"--out": "trace.csv"}, 2, "trace.csv, line 1"),
        ({"--out": "out.jsonl.gz"}, 2, "use another suffix"),
        ({"--target": "llama-3.1-70b"}, 3, "h200"),
        ({}, 2, "cannot be run"),
    ],
)
def test_flags_are_checked_before_the_engine(
    flags: dict[str, str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "trace.csv").write_text(TIMED, encoding="utf-8")
    words = [word for pair in (PLAN | flags).items() for word in pair]
    assert run(["calibrate", "traffic", *words, "--python", "/nonexistent"]) == code
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert (tmp_path / "trace.csv").read_text(encoding="utf-8") == TIMED
    assert not (tmp_path / "out.jsonl").exists()
