"""`specroof calibrate`: from a model and a text to a curve for predictions."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from documented import documented_keys
from tiny_folder import write_model, write_text, write_tokenizer

from app.cli.main import run
from calibration.records.acceptance import read_acceptance
from calibration.records.counted import CountedLine, CountedRun
from calibration.records.jsonl import write_records


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_model(tmp_path / "model")
    write_text(tmp_path / "a.txt", 900)
    monkeypatch.chdir(tmp_path)
    return tmp_path


MEASURE = shlex.split(
    "calibrate acceptance --model model --text a.txt --output r.jsonl --kv-budget 48,64:128:32 "
    "--prompt-tokens 128:256:x2 --windows 3 --scored-tokens 32"
)


def test_from_text_to_a_prediction(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*MEASURE, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert {cell["kv_budget"] for cell in measured["cells"]} == {48, 64, 96, 128}
    assert all(c["low"] <= c["alpha"] <= c["high"] for c in measured["cells"])
    before = (place / "r.jsonl").read_bytes()
    assert run(MEASURE) == 0
    assert (place / "r.jsonl").read_bytes() == before
    capsys.readouterr()
    fit = "calibrate fit-acceptance r.jsonl --output c.toml --target llama-3.1-8b"
    assert run(fit.split()) == 0
    capsys.readouterr()
    predict = shlex.split("predict --draft self --gpu h200 --tp 8 --prompt-tokens 4000 --json")
    alphas = {}
    for name, more in {"own": ["--acceptance-curve", "c.toml"], "catalog": []}.items():
        assert run([*predict, *more]) == 0
        alphas[name] = json.loads(capsys.readouterr().out)["acceptance"]
    assert alphas["own"]["origin"] == "extrapolated"  # 4,000 tokens exceed the measured windows
    assert alphas["own"]["alpha"] != alphas["catalog"]["alpha"]
    lent = [*predict, "--target", "llama-3.1-70b", "--acceptance-curve", "c.toml"]
    assert run(lent) == 0
    borrowed = json.loads(capsys.readouterr().out)["acceptance"]
    assert borrowed["origin"] == "borrowed"
    assert "llama-3.1-8b" in borrowed["source"] and "llama-3.1-70b" in borrowed["source"]


def test_a_page_with_charts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(MEASURE) == 0
    assert run(["calibrate", "acceptance-report", "r.jsonl", "--html", "r.html"]) == 0
    page = (place / "r.html").read_text(encoding="utf-8")
    assert "<table>" in page and "plotly" in page


def test_imported_acceptance_is_printed_as_a_flag(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "m.json").write_text('{"num_drafts": 10, "num_accepted_tokens_per_pos": [8, 4]}')
    assert run(["calibrate", "import-acceptance", "m.json"]) == 0
    flag = capsys.readouterr().out.splitlines()[-1]
    assert flag == "--acceptance-per-position 0.8,0.5"
    assert run(["predict", "--draft", "self", "--tp", "8", *flag.split()]) == 0


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
        (["--prompt-tokens", "2000"], "2,033"),
        (["--prompt-tokens", "5000"], "5000"),
        (["--draft-policy", "quest"], "full, streamingllm, snapkv"),
        (["--kv-budget", "many"], "'many'"),
        (["--kv-budget", "8"], "8"),
        (["--gamma", "5"], "gamma"),
        (["--temperature", "0"], "temperature"),
        (["--positions", "odd"], "absolute, relative"),
        (["--device", "tpu"], "tpu"),
        (["--dtype", "int4"], "float32"),
        (["--draft-model", "other"], "90"),
        (["--text", "wide.txt"], "wide"),
    ],
)
def test_bad_input_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], change: list[str], hint: str
) -> None:
    if "other" in change:
        write_model(place / "other", vocab=90)
        write_tokenizer(place / "other", vocab=61)
    if "wide.txt" in change:
        write_text(place / "wide.txt", 400, vocab=90)
        write_tokenizer(place / "model", vocab=90)
    words = list(MEASURE)
    if change[0] in words:
        at = words.index(change[0])
        del words[at : at + 2]
    assert run([*words, *change]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert hint in error


def test_documented_keys_match_the_output(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(MEASURE) == 0
    record = read_acceptance(place / "r.jsonl").records[0]
    counted = CountedRun(
        text="a", context_tokens=128, windows=(3,), view=record.view, gamma=4, temperature=1.0,
        seed=1, accepted=((4, 2), (3, 1)),
    )  # fmt: skip
    write_records(place / "counted.jsonl", {}, [CountedLine(counted=counted)])
    capsys.readouterr()
    words = "calibrate acceptance-report r.jsonl --counted counted.jsonl --json"
    assert run([*words.split(), "--tolerance", "100"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert documented_keys("calibrate: report") == list(printed)
    assert documented_keys("calibrate: cell") == list(printed["cells"][0])
    assert documented_keys("calibrate: compared") == list(printed["compared"][0])
    assert run([*words.split(), "--tolerance", "0"]) == 4
    capsys.readouterr()
    (place / "m.json").write_text('{"num_drafts": 10, "num_accepted_tokens_per_pos": [8, 4]}')
    assert run(["calibrate", "import-acceptance", "m.json", "--json"]) == 0
    assert documented_keys("calibrate: import") == list(json.loads(capsys.readouterr().out))


def test_another_measurement_into_the_same_file_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(MEASURE) == 0
    assert run([*MEASURE, "--temperature", "0.7"]) == 2
    assert "r.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "x = [", "target = 3", "curves = 5", "[[curves]]\nx=1"])
def test_a_file_that_is_not_a_curve_is_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (place / "c.toml").write_text(content)
    assert run(["predict", "--draft", "self", "--tp", "8", "--acceptance-curve", "c.toml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; from app.cli.main import run\n"
        "try: run(['calibrate', 'acceptance', '--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
