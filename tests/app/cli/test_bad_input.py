"""Bad input prints one line and exits with 2; an infeasible scenario exits with 3."""

import json
import shlex
from pathlib import Path

import pytest

import perfmodel
from app.cli.main import run

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
CASES |= {
    f"simulate {flags}": (f"simulate --draft self --tp 8 --acceptance 0.85 {flags}", hint)
    for flags, hint in {
        "--schedule": "--rate",
        "--rate -1": "rate",
        "--rate 1 --arrivals never": "never",
        "--rate 1 --token-budget 10": "budget",
        "--finished never": "compaction, padding or graphs",
        "--acceptance-spread 0.9": "0.9",
        "--rate 1 --eos 1.5": "1.5",
        "--rate 1 --csv - --json": "--csv -",
        "--traffic absent.csv": "absent.csv",
        "--rate 1 --requests 0": "requests",
    }.items()
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
