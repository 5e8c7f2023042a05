"""What would be misread or ignored is refused, and what a prediction does not satisfy is noted."""

import json
from pathlib import Path

import pytest

import perfmodel
from app.cli.main import run

TINY = ("--model", "llama-68m", "--random-weights", "--write-plan", "plan.json")
SNAPKV = str(Path(perfmodel.__file__).parent / "catalog/acceptance/llama-3.1-8b--self--snapkv.toml")


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "--tp", "8", "--arrivals", "bursty"],
        ["simulate", "--tp", "8", "--rate", "2", "--finished", "padding"],
        ["simulate", "--tp", "8", "--traffic", "timed.csv", "--rate", "2"],
        ["simulate", "--tp", "8", "--rate", "1_0"],
        ["simulate", "--tp", "8", "--rate=nan"],
        ["simulate", "--tp", "8", "--rate", "2", "--requests", "\uff15"],
        ["calibrate", "measure", "--seconds", "nan", "--list"],
        ["validate", "published", "--tolerance", "inf"],
        ["sweep", "--tp", "8", "--batch", "1,,2"],
        ["sweep", "--tp", "8", "--batch", "1,"],
        ["sweep", "--tp", "8", "--batch", "\uff18,9"],
        ["sweep", "--tp", "8", "--kv-budget", "64:4096:x2"],
        ["recommend", "--tp", "8", "--slo", "tpot<1ms; tpot<30ms"],
        ["recommend", "--tp", "8", "--slo", "memory<900%"],
        ["predict", "--tp", "8", "--acceptance", "0.8"],
        ["predict", "--target", "x" * 100],
        ["predict", "--slo", "9" * 5000],
        ["predict", "--slo", "/" * 5000],
        ["predict", "--tp", "8", "9"],
        ["predict", "--batch"],
        ["predict", "--draft", "self:snapkv"],
        ["predict", "--draft", "self", "--draft-policy", "full", "--kv-budget", "512"],
        ["predict", "--draft", "self", "--gamma", "9" * 400],
        ["predict", "--tp", "8", "--ring-hop-us", "5", "--ring-gb-s", "1e-320"],
        ["predict", "--scenario", "./s.yaml"],
        ["sweep", "--tp", "8", "--slo", "tpot<1us"],
        ["sweep", "--tp", "8", "--draft", "self:snapkv", "--draft-policy", "streamingllm"],
        ["simulate", "--tp", "8", "--draft", "self", "--acceptance-trace", "99.txt"],
        ["simulate", "--tp", "8", "--traffic", "twice.jsonl"],
        ["simulate", "--tp", "8", "--traffic", "epoch.csv"],
        ["simulate", "--tp", "8", "--traffic", "."],
        ["calibrate", "import-acceptance", "twice.jsonl"],
        ["calibrate", "fit-tables", "missing", "--output", "out", "--gpu", "h1000"],
        ["predict", "--draft-policy", "snapkv"],
        ["predict", "--tp", "8", "--draft-tp", "4"],
        ["predict", "--tp", "8", "--draft", "ngram", "--draft-kv-dtype", "int8"],
        ["predict", "--tp", "8", "--draft", "suffix", "--draft-dtype", "int8"],
        ["sweep", "--tp", "8", "--prefill", "disaggregated"],
        ["sweep", "--tp", "8", "--prefix-hit-rate", "0.5"],
        ["sweep", "--draft", "self", "--tp", "1", "--ring-hop-us", "5", "--ring-gb-s", "20"],
        ["sweep", "--tp", "8", "--draft", "self:full,eagle3", "--kv-budget", "64:256:x2"],
        ["sweep", "--tp", "8", "--draft", "self", "--acceptance-curve", SNAPKV],
        ["recommend", "--tp", "8", "--requests", "10"],
        ["recommend", "--tp", "8", "--draft", "self", "--draft-tp", "2"],
        ["recommend", "--tp", "8", "--draft", "eagle3", "--acceptance-curve", SNAPKV],
        ["recommend", "--tp", "8", "--acceptance", "0.8"],
        ["simulate", "--tp", "8", "--token-budget", "0"],
        ["simulate", "--tp", "8", "--slo", "tpot<1us"],
        ["simulate", "--tp", "8", "--prefill", "disaggregated"],
        ["simulate", "--tp", "8", "--prefix-hit-rate", "0.5"],
        ["simulate", "--tp", "8", "--rate", "2", "--burst-s", "3"],
        ["simulate", "--tp", "8", "--rate", "2", "--burst-factor", "3"],
        ["simulate", "--tp", "8", "--rate", "2", "--acceptance-spread", "0.1"],
        ["simulate", "--tp", "8", "--acceptance-trace", "3.txt"],
        ["simulate", "--tp", "8", "--traffic", "timed.csv", "--prompt-cv", "0.5"],
        ["simulate", "--tp", "8", "--traffic", "timed.csv", "--output-cv", "0.5"],
        ["export", "--to", "vllm", "--tp", "8", "--slo", "tpot<1us"],
        ["export", "--to", "vllm", "--tp", "8", "--prefix-hit-rate", "0.5"],
        ["export", "--to", "specroof", "--tp", "8", "--max-model-len", "9"],
        ["export", "--to", "specroof", "--tp", "8", "--draft-checkpoint", "a/b"],
        ["export", "--matrix", "--draft", "self"],
        ["export", "--matrix", "--to", "vllm"],
        ["explain", "--draft", "ngram", "--gamma", "3", "--round-ms", "9", "--slo", "tpot<1us"],
        ["run", "baseline", *TINY, "--gamma", "3"],
        ["run", "baseline", *TINY, "--draft-policy", "snapkv"],
        ["run", "baseline", *TINY, "--check"],
        ["run", "baseline", *TINY, "--top-p", "0.9"],
        ["run", "selfspec", *TINY, "--draft-tp", "1"],
        ["run", "selfspec", *TINY, "--snapkv-pool", "3"],
        ["run", "selfspec", *TINY, "--draft-policy", "snapkv", "--sink", "8"],
        ["run", "selfspec", *TINY, "--draft-policy", "full", "--kv-budget", "64"],
    ],
    ids=lambda words: " ".join(words)[:70],
)
def test_what_would_be_misread_or_ignored_is_refused_in_a_short_line(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("timed.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,100,10\n")
    Path("epoch.csv").write_text("arrival_s,prompt_tokens,output_tokens\n1700000000000,9,9\n")
    Path("99.txt").write_text("1\n99\n")
    Path("3.txt").write_text("3\n")
    Path("twice.jsonl").write_text('{"input_length": 1, "input_length": 2, "output_length": 3}\n')
    Path("s.yaml").write_text("tp: 8\n")
    assert run(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and len(err) < 300


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--slo", "tpot<1us; ttft<9s"], "tpot is"),
        (["--slo", "memory<5%"], "memory is"),
        (["--kv-budget", "20"], "the runtime needs 32"),
        (["--slo", "tpot<9s"], ""),
        (["--prefill", "shared"], "prefill has no effect, as predict"),
        (
            ["--prefix-hit-rate", "0.5"],
            "prefix_hit_rate has no effect but on the time to the first token",
        ),
        (["--gamma", "0"], "gamma=0 is plain decoding"),
        (["--tp", "1", "--batch", "1", "--ring-hop-us", "5", "--ring-gb-s", "9"], "no all-reduce"),
        (["--acceptance-curve", SNAPKV], "its curves are for self:snapkv"),
        (["--acceptance-curve", SNAPKV, "--draft-policy", "snapkv"], ""),
        (
            ["--acceptance-curve", SNAPKV, "--acceptance", "0.7"],
            "acceptance of this draft is given",
        ),
    ],
)
def test_what_a_prediction_does_not_satisfy_is_noted(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = [] if "--tp" in flags else ["--tp", "8"]
    assert run(["predict", *base, "--draft", "self", "--json", *flags]) == 0
    notes = [n for n in json.loads(capsys.readouterr().out)["notes"] if "all-reduce among" not in n]
    assert len(notes) == bool(says) and says in "".join(notes)


@pytest.mark.parametrize("command", ["predict", "sweep", "recommend", "simulate", "explain"])
@pytest.mark.parametrize(("engine", "factor"), [("kernels", "1.6"), ("vllm", "0.05")])
def test_a_host_factor_that_cannot_be_is_refused(
    command: str, engine: str, factor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"simulate": ["--rate", "1"], "explain": ["--round-ms", "9"]}.get(command, [])
    given = ["--gpu", "h200", "--engine", engine, "--host-factor", factor]
    assert run([command, *given, *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: host_factor=") and error.count("\n") == 1


@pytest.mark.parametrize("command", ["predict", "sweep", "recommend", "simulate", "explain"])
def test_the_first_lines_of_an_answer_state_the_host_factor(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"simulate": ["--rate", "1", "--requests", "9"], "explain": ["--round-ms", "4"]}
    drafts = ["--draft", "eagle3", *([] if command == "recommend" else ["--gamma", "3"])]
    given = ["--target", "llama-3.2-1b", "--gpu", "h200", "--engine", "vllm", "--batch", "4"]
    lengths = ["--prompt-tokens", "2000", *drafts, "--host-factor", "1.6"]
    assert run([command, *given, *lengths, *more.get(command, [])]) == 0
    printed = capsys.readouterr()
    lines = (printed.err if command == "explain" else printed.out).splitlines()[:4]
    stated = {"predict": "host_factor=1.6", "simulate": "host_factor=1.6"}
    said = stated.get(command, "host times are 1.6" if command == "explain" else "host times 1.6x")
    assert said in "\n".join(lines)
