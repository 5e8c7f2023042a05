"""The study on a tiny model: every step runs, and another run goes on where it stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_folder import VOCAB, write_model, write_text, write_tokenizer

from calibration import acceptance_study
from calibration.acceptance_counted import read_runs
from calibration.acceptance_parts import merge_files
from calibration.acceptance_records import read_records
from calibration.acceptance_report import acceptance_report
from calibration.acceptance_run import (
    Text,
    check_same_tokens,
    draft_views,
    read_text,
    windows_of,
)
from calibration.acceptance_tables import report_lines
from calibration.acceptance_window import Task
from runtime import InputError, TextTokenizer

SMALL = [
    "--contexts",
    "128,96",
    "--budgets",
    "48,64",
    "--windows",
    "8",
    "--scored-tokens",
    "32",
    "--counted-budgets",
    "48,64,80",
    "--counted-windows",
    "2",
    "--counted-tokens",
    "40",
    "--ablation-context",
    "128",
    "--ablation-budgets",
    "96",
]
TASK = Task(gamma=16, scored_tokens=32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    texts = tmp_path / "texts"
    texts.mkdir()
    tokens = read_text(
        write_text(tmp_path / "a.txt", 900), TextTokenizer(tmp_path / "model"), vocab=VOCAB
    )
    np.save(texts / "a.npy", tokens.tokens.astype(np.uint16))
    (texts / "texts.json").write_text('{"a": {"sha256": "0", "tokens": 900}}')
    return tmp_path


def study(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *more: str,
    seconds: str = "600",
    out: str = "out",
) -> int:
    words = ["study", "--model", str(folder / "model"), "--texts", str(folder / "texts"),
             "--out", str(folder / out), "--seconds", seconds, *SMALL, *more]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    return acceptance_study.main()


def test_the_study_runs_every_step_and_is_not_repeated(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study(folder, monkeypatch, seconds="0") == 0
    assert "the time is up" in capsys.readouterr().err
    assert study(folder, monkeypatch, seconds="600") == 0
    assert "finished" in capsys.readouterr().err
    files = [folder / "out" / name for name in ("records.jsonl", "counted.jsonl")]
    before = [file.read_bytes() for file in files]
    assert study(folder, monkeypatch, seconds="600") == 0
    assert [file.read_bytes() for file in files] == before
    found, runs = read_records(files[0]), read_runs(files[1])
    texts = {record.window.text for record in found.records}
    assert texts == {"a", "a~sampled"}
    assert {run.temperature for run in runs} == {0.0, 1.0}
    full = [r for r in found.records if r.view.policy == "full"]
    assert full and all(r.mean_overlap == pytest.approx(1.0, abs=1e-6) for r in full)
    report = acceptance_report(found, runs)
    lines = report_lines(report)
    for title in ("Acceptance by KV budget", "Ablations", "Predicted against counted"):
        assert f"## {title}" in lines
    assert report.median_error(greedy=False) is not None


def test_processes_share_the_study_and_measure_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ("--contexts", "96", "--windows", "4", "--steps", "main,counted,heldout,sampled")
    assert study(folder, monkeypatch, *steps, out="alone") == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert study(folder, monkeypatch, *steps, "--workers", "2", out="shared") == 0
    alone, shared = (read_records(folder / out / "records.jsonl") for out in ("alone", "shared"))
    keys = [{(r.window, r.view) for r in found.records} for found in (alone, shared)]
    assert keys[0] == keys[1] and len(shared.records) == len(keys[1])
    of_alone = {(r.window, r.view): r for r in alone.records}
    for record in shared.records:
        assert record.overlap == pytest.approx(
            of_alone[record.window, record.view].overlap, abs=1e-4
        )
    runs = [
        {run.key: run.accepted for run in read_runs(folder / out / "counted.jsonl")}
        for out in ("alone", "shared")
    ]
    assert runs[0] == runs[1]
    parts = [read_records(f).records for f in folder.glob("shared/part-*/records.jsonl")]
    assert sum(map(len, parts)) == len(shared.records)  # nothing was measured twice


def test_known_files_are_not_measured_again_and_merge_with_the_rest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--contexts", "96", "--windows", "4", "--steps", "main,counted")
    assert study(folder, monkeypatch, *few, "--budgets", "48", out="old") == 0
    old = [folder / "old" / name for name in ("records.jsonl", "counted.jsonl")]
    known = ("--known", *map(str, old))
    assert study(folder, monkeypatch, *few, *known, out="new") == 0
    fresh = read_records(folder / "new" / "records.jsonl").records
    assert {record.view.kv_budget for record in fresh} == {64}
    assert not read_runs(folder / "new" / "counted.jsonl")
    together = folder / "all.jsonl.gz"
    count = merge_files([old[0], folder / "new" / "records.jsonl"], together)
    assert count == len(fresh) + len(read_records(old[0]).records)
    assert len(read_records(together).records) == count
    assert study(folder, monkeypatch, *few, *known, "--dtype", "bfloat16", out="bf16") == 2


def test_files_of_different_measurements_are_not_merged(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = ("--contexts", "96", "--windows", "4", "--steps", "main,counted")
    for out, dtype in (("a", "float32"), ("b", "bfloat16")):
        assert study(folder, monkeypatch, *few, "--dtype", dtype, out=out) == 0
    for name in ("records.jsonl", "counted.jsonl"):
        with pytest.raises(InputError, match="dtype is"):
            merge_files([folder / out / name for out in "ab"], folder / "c")
    assert not (folder / "c").exists()


def test_windows_are_spread_and_their_scored_parts_apart() -> None:
    text = Text("t", np.zeros(1000, dtype=np.int32), "")
    windows = windows_of(text, prefix_tokens=200, count=64, task=TASK)
    starts = [window.start for window in windows]
    assert starts[0] == 0 and starts[-1] + TASK.window_tokens(200) == 1000
    assert min(np.diff(starts)) >= TASK.scored_tokens
    assert len(windows) == (1000 - TASK.window_tokens(200)) // 32 + 1


def test_a_text_shorter_than_a_window_is_refused() -> None:
    text = Text("t", np.zeros(100, dtype=np.int32), "")
    with pytest.raises(InputError, match="100 tokens, but a window of 200"):
        windows_of(text, prefix_tokens=200, count=4, task=TASK)


def test_another_models_tokenizer_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_tokenizer(tmp_path / "model", vocab=90)
    tokenizer = TextTokenizer(tmp_path / "model")
    with pytest.raises(InputError, match="outside the model's vocabulary of 61"):
        read_text(write_text(tmp_path / "a.txt", 400, vocab=90), tokenizer, vocab=VOCAB)
    with pytest.raises(InputError, match="no text there"):
        read_text(write_text(tmp_path / "b.txt", 0), tokenizer, vocab=VOCAB)


def test_a_draft_that_cuts_text_differently_is_refused(tmp_path: Path) -> None:
    one, other = write_model(tmp_path / "one"), write_model(tmp_path / "other")
    check_same_tokens(one, other)
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(other / "tokenizer.json"))
    with pytest.raises(InputError, match="other tokens"):
        check_same_tokens(one, other)


def test_views_are_every_combination_that_differs() -> None:
    views = draft_views(["full", "streamingllm", "snapkv"], [64, 128], sinks=(0, 4),
                        snapkv_pools=(1, 5, 7), positions=("absolute", "relative"))  # fmt: skip
    assert len(views) == len(set(views)) == 1 + 2 * 2 * 2 + 2 * 3
    with pytest.raises(InputError, match="unknown draft policy"):
        draft_views(["quest"], [64])


def test_the_study_needs_no_more_than_torch_numpy_and_the_runtime() -> None:
    code = (
        "import sys\n"
        "for name in 'perfmodel pydantic app pandas scipy'.split(): sys.modules[name] = None\n"
        "import calibration.acceptance_study, calibration.acceptance_pack"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
