"""Bad input prints one line and exits with 2; an infeasible scenario exits with 3."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

import perfmodel
from app.cli.main import run

TINY = ("--model", "llama-68m", "--random-weights", "--write-plan", "plan.json")
SNAPKV = str(Path(perfmodel.__file__).parent / "catalog/acceptance/llama-3.1-8b--self--snapkv.toml")
CASES = {
    "unknown GPU": ("predict --gpu h1000-sxm", "h100-sxm"),
    "unknown model": ("predict --target lama-3.1-8b", "llama-3.1-8b"),
    "unknown engine": ("predict --engine specrof", "specroof"),
    "unknown machine": ("predict --machine dgx-a100", "dgx-a100-80gb"),
    "unknown scenario": ("predict --scenario defalt", "default"),
    "unknown dtype": ("predict --kv-dtype fp3", "fp8"),
    "unknown policy": ("predict --draft self --draft-policy h2o", "snapkv"),
    "unknown flag": ("predict --kv-bugdet 64", "--kv-budget"),
    "run's former flag in another command": (
        "predict --gen-tokens 4",
        "did you mean --output-tokens?",
    ),
    "unknown command": ("predikt", "predikt"),
    "unknown list": ("list gpu", "gpus"),
    "missing value": ("predict --batch", "--batch"),
    "empty value": ("predict --gpu ''", "--gpu"),
    "blank value": ("predict '--gpu= '", "--gpu"),
    "empty path": ("sweep --csv ''", "--csv"),
    "empty argument": ("calibrate fit ''", "argument"),
    "no list": ("list", "gpus"),
    "a flag and its former name": (
        "predict --prompt-tokens 9 --prefix-tokens 9",
        "--prefix-tokens",
    ),
    "an engine flag and its former name": (
        "run baseline --prefix-tokens=9 --prompt-tokens=9",
        "--prefix-tokens",
    ),
    "TP that does not divide": ("predict --tp 3", "tp=3"),
    "TP beyond the node": ("predict --tp 16", "tp=16"),
    "GPU against machine": ("predict --gpu l40 --machine hgx-h100", "h100-sxm"),
    "negative batch": ("predict --batch -5", "batch='-5'"),
    "zero prefix": ("predict --prompt-tokens 0", "prompt_tokens='0'"),
    "half a GPU": ("predict --tp 0.5", "tp='0.5'"),
    "thousands comma": ("predict --batch 1,024", "batch='1,024'"),
    "thousands point": ("predict --batch 1.024", "it may be 1 or 1024"),
    "thousands point in a range": ("sweep --batch 1.000:2.000", "may be 1 or 1000"),
    "no trace": ("recommend --traffic absent.csv", "absent.csv cannot be read"),
    "NaN batch": ("predict --batch nan", "batch='nan'"),
    "infinite prefix": ("predict --prompt-tokens inf", "'inf'"),
    "huge batch": ("predict --batch 1e30", "batch='1e30'"),
    "NaN acceptance": ("predict --draft self --acceptance nan", "acceptance='nan'"),
    "acceptance over 1": ("predict --draft self --acceptance 1.01", "1.01"),
    "acceptance below 0": ("predict --draft self --acceptance -0.1", "-0.1"),
    "bad rate": ("predict --draft self --acceptance-per-position 0.9,2", "2"),
    "two acceptances": (
        "predict --draft self --acceptance 0.8 --tokens-per-round 3",
        "tokens_per_round",
    ),
    "too many tokens a round": ("predict --draft self --gamma 3 --tokens-per-round 4.5", "gamma=3"),
    "budget over the whole context": (
        "predict --draft self --kv-budget 120%",
        "share of the context",
    ),
    "experts of a dense model": ("predict --ep 2 --tp 2", "dense"),
    "experts on the engine": (
        "run baseline --model qwen3-30b-a3b --random-weights",
        "no step of it was measured",
    ),
    "budget over context": ("predict --draft self --kv-budget 64000", "32000"),
    "gamma without a draft": ("predict --gamma 3", "gamma=3"),
    "gamma too large": ("predict --draft self --gamma 65", "64"),
    "SnapKV on a standalone draft": (
        "predict --draft llama-3.2-1b --draft-policy snapkv",
        "snapkv",
    ),
    "SLO gibberish": ("predict --slo fast", "ttft<2s"),
    "missing scenario file": ("predict --scenario none/such.toml", "none/such.toml"),
    "missing CSV": ("predict --from none/such.csv", "none/such.csv"),
    "a directory as CSV": ("predict --from /tmp", "/tmp"),
    "endless CSV": ("predict --from /dev/zero", "10,000,000 bytes"),
    "endless scenario": ("predict --scenario /dev/zero", "1,000,000 bytes"),
    "sweep over unknown GPUs": ("sweep --gpu h100-sxm,l41", "l40"),
    "sweep without end": ("sweep --batch 1:1e12", "10,000"),
    "sweep of too many points": ("sweep --batch 1:10000 --prompt-tokens 1:10000", "50,000,000"),
    "range that falls": ("sweep --gamma 5:2", "'5:2'"),
    "range that stands still": ("sweep --batch 1:8:x1", "1:8:x1"),
    "range of words": ("sweep --batch a:b", "'a:b'"),
    "recommend without decoding": ("recommend --tp 8 --output-tokens 1", "at least 2"),
    "sweep where nothing is compared": ("sweep --tp 8 --where speedup", "speedup>1.2"),
    "a flag twice": ("predict --tp 8 --batch 1 --batch=8", "--batch is given twice"),
    "two objectives": ("recommend --slo 'tpot<30ms' --slo 'ttft<1s'", "--slo is given twice"),
    "a flag as the name of a file": ("sweep --tp 8 --csv --json", "--csv '--json' is a flag"),
    "dashes as the name of a file": ("sweep --tp 8 --csv=--", "is a flag"),
    "sweep where a number is NaN": ("sweep --tp 8 --where 'speedup>nan'", "not 'nan'"),
    "sweep where digits are full-width": ("sweep --tp 8 --where 'speedup>\uff11'", "is a number"),
    "sweep where neither true nor false": ("sweep --tp 8 --where feasible=maybe", "true or false"),
    "sweep where a column is unknown": ("sweep --tp 8 --where 'speed>1'", "speedup"),
    "best rows as Parquet": ("sweep --tp 8 --top 1 --parquet x.parquet", "--csv"),
    "sweep in two forms": ("sweep --batch 1,2 --csv - --json", "--csv"),
    "sweep where no TP divides": ("sweep --tp 3,5", "tp=3"),
    "recommend a given gamma": ("recommend --gamma 3", "gamma"),
    "one acceptance for all drafts": ("recommend --acceptance 0.8", "self:snapkv"),
    "nothing to recommend": ("recommend --draft none", "draft none"),
    "unknown objective": ("recommend --objective cheap", "throughput or latency"),
    "recommend over context": ("recommend --kv-budget 99999", "99999"),
    "word as a number": ("explore --port x", "--port 'x' is not valid"),
    "number below its least": ("simulate --seed -1", "--seed '-1' is not valid"),
    "missing option": ("validate draw", "`specroof validate draw --help`"),
    "unknown option": ("predict --frm x", "--from"),
    "unknown subcommand": ("validate all", "`specroof validate --help`"),
    "negative spread": ("simulate --tp 8 --prompt-cv -1", "prompt_cv=-1"),
    "export nowhere": ("export --tp 8", "--to"),
    "export to the unknown": ("export --to vlm", "vllm"),
    "export of a self-draft": ("export --to vllm --draft self --tp 8", "specroof"),
    "output into a file's inside": ("sweep --batch 1,2 --csv /dev/null/x.csv", "/dev/null/x.csv"),
    "output into a folder": ("sweep --batch 1,2 --csv new/", "'new/' is a folder"),
    "a page into a folder": ("recommend --html=new/", "'new/' is a folder"),
    "a page to stdout": ("recommend --html -", "does not write to stdout"),
    "a table to stdout": ("sweep --batch 1,2 --parquet=-", "does not write to stdout"),
    "two policies of one draft": (
        "recommend --draft self:snapkv --draft-policy streamingllm",
        "give one of them",
    ),
    "periods that never hold a request": (
        "simulate --tp 8 --rate 1 --arrivals bursty --burst-s 1e-9",
        "use arrivals=poisson",
    ),
    "more requests than memory holds": (
        "simulate --tp 8 --rate 1 --requests 1000000000000",
        "10,000,000",
    ),
    "a batch too long to simulate": (
        "simulate --target mistral-7b-v0.1 --batch 1 --output-tokens 100000000",
        "shorter outputs",
    ),
}


@pytest.mark.parametrize("command, hint", CASES.values(), ids=CASES.keys())
def test_bad_input_is_one_line_and_exit_2(
    command: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(shlex.split(command)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert hint in err


@pytest.mark.parametrize("group", ["run", "calibrate", "validate"])
def test_a_group_without_a_command_shows_its_commands_and_an_example(
    group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([group]) == 2
    out, err = capsys.readouterr()
    assert "Commands" in out and f"Example: specroof {group} " in out
    assert f"Example: specroof {group} " in err and err.count("\n") == 1


SCENARIOS = {
    "a name that is a number": b"target = 7",
    "thousands of hex digits": b"batch = 0x1" + b"0" * 5000,
    "a terminal escape": b'target = "\x1b[2J"',
    "an escaped newline": b'target = "a\\nb"',
}


@pytest.mark.parametrize("content", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_malformed_scenario_is_one_line_and_exit_2(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    assert run(["predict", "--scenario", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err[:-1].isprintable()


TABLES = {
    "empty": (b"", "target,batch"),
    "no header": (b"8,16\n", "'8'"),
    "header only": (b"batch\n", "rows.csv"),
    "semicolons": (b"batch;tp\n4;8\n", "separated by commas"),
    "unknown column": (b"batch,kv_bugdet\n1,2\n", "kv_budget"),
    "column twice": (b"batch,batch\n1,2\n", "'batch'"),
    "NUL": (b"batch\n\x00\n", "NUL"),
    "not UTF-8": (b"batch\n\xff\n", "UTF-8"),
    "open quote": (b'batch\n"1\n', "line 2"),
    "bad row": (b"batch\n1\n-1\n2\n", "1 bad"),
    "short rows": (b"batch,tp\n1\n2\n", "2 bad"),
}


@pytest.mark.parametrize("content, hint", TABLES.values(), ids=TABLES.keys())
def test_malformed_csv_is_one_line_and_exit_2(
    content: bytes, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(content)
    assert run(["predict", "--tp", "8", "--from", str(file)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and hint in err


def test_a_bad_row_does_not_stop_the_rows_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("batch,tp\n1,8\n-1,8\n2\n4,8\n")
    assert run(["predict", "--from", str(file)]) == 2
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["row"] for row in rows] == [1, 2, 3, 4]
    assert ["error" in row for row in rows] == [False, True, True, False]
    assert "batch='-1'" in rows[1]["error"]


INFEASIBLE = {
    "predict": ("predict --batch 4096 --tp 8", "GB"),
    "recommend": ("recommend --batch 4096", "memory"),
    "recommend under an SLO": ("recommend --slo 'tpot<1us'", "tpot"),
    "sweep": ("sweep --batch 4096,8192", "memory"),
    "export": ("export --to vllm --batch 4096", "GB"),
}


@pytest.mark.parametrize("command, hint", INFEASIBLE.values(), ids=INFEASIBLE.keys())
def test_what_does_not_fit_is_one_line_and_exit_3(
    command: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(shlex.split(command)) == 3
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and hint in err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> int:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("perfmodel.prediction_dict", broken)
    with pytest.raises(ZeroDivisionError):
        run(["predict"])


def test_ctrl_c_is_exit_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("perfmodel.prediction_dict", interrupted)
    assert run(["predict"]) == 130


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
    "command", ["predict", "sweep", "simulate", "export", "list", "run", "calibrate", "validate"]
)
def test_a_command_alone_says_how_to_begin(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command]) in (2, 3)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert any(way in err for way in ("specroof ", "one of", "try `--"))


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


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("round_overhead_us", "78.0", "-1.0"),
        ("compute_factor", "0.808", "1.4"),
        ("attention_factor", "0.9302", "1e308"),
        ("attention_kernels", '"specroof"', '"flash"'),
        ("all_reduce", '"exchange"', '"fast"'),
        ("speedup_error", "0.07", "1e5"),
    ],
)
def test_an_engine_profile_beyond_what_is_possible_is_refused(
    tmp_path: Path, key: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = Path(perfmodel.__file__).parent / "catalog/engines/specroof.toml"
    text = profile.read_text(encoding="utf-8")
    assert f"\n{key} = {old}" in text
    path = tmp_path / "e.toml"
    path.write_text(text.replace(f"\n{key} = {old}", f"\n{key} = {new}", 1), encoding="utf-8")
    # The A10 uses the general values, because the runtime was not measured on its architecture.
    assert run(["predict", "--gpu", "a10", "--batch", "1", "--engine", str(path)]) == 2
    assert key in capsys.readouterr().err
