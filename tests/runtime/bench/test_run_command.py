"""`specroof run`: catalog shapes, scenarios, and errors in one line."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import FAMILIES, hf_config

from app.cli.main import run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def specroof(capfd: pytest.CaptureFixture[str]) -> Command:
    """`specroof run` in this process."""

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = run(["run", *arguments])
        return subprocess.CompletedProcess(arguments, code, *capfd.readouterr())

    return command


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(hf_config(FAMILIES["llama-3.2"])))
    return str(tmp_path)


def test_a_scenario_runs_as_it_was_predicted(specroof: Command, tiny: str, tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text(
        f'target = "{tiny}"\ndraft = "self"\ndraft_policy = "streamingllm"\nkv_budget = 48\n'
        f"gamma = 2\nbatch = 3\nprompt_tokens = 120\noutput_tokens = 12\n"
        f"acceptance_per_position = [1.0, 0.0]\n"
    )
    flags = ["--random-weights", "--ignore-eos", "--json", "--output-tokens", "20"]
    done = specroof("selfspec", "--scenario", str(scenario), *flags)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [len(s["generated"]) for s in report["sequences"]] == [20] * 3  # the flag wins
    assert report["acceptance_per_position"] == [1.0, 0.0]
    assert report["plan"]["kv_budget"] == 48
    assert report["provenance"]["torch"]
    refused = specroof("baseline", "--scenario", str(scenario), "--random-weights", "--json")
    assert json.loads(refused.stdout)["tokens_per_round"] == 1.0
    wrong = specroof("standalone", "--scenario", str(scenario), "--random-weights")
    assert wrong.returncode == 2 and "run it as `specroof run selfspec`" in wrong.stderr


def test_the_printed_table_includes_the_check(specroof: Command, tiny: str) -> None:
    flags = ["--random-weights", "--prefix-tokens", "80", "--output-tokens", "10"]
    flags += ["--kv-budget", "32", "--check"]
    done = specroof("selfspec", "--model", tiny, *flags)
    assert done.returncode == 0, done.stderr
    assert "same tokens as plain decoding   yes" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["selfspec"], "--model is missing"),
        (["selfspec", "--model", "M", "--gama", "3"], "--gama"),
        (["selfspec", "--model", "M", "--gamma", "0"], "--gamma"),
        (["standalone", "--model", "M"], "add --draft"),
        (["selfspec", "--model", "M", "--draft-tp", "2", "--tp", "4"], "runs on all ranks"),
        (["baseline", "--model", "llama-68m"], "add --random-weights"),
        (["baseline", "--model", "no-such", "--random-weights"], "unknown model"),
        (["selfspec", "--model", "M", "--check", "--temperature", "1"], "--check compares greedy"),
    ],
)
def test_bad_flags_are_reported_in_one_line(
    arguments: list[str], message: str, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["run", *(tiny if word == "M" else word for word in arguments)]) == 2
    out, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1 and out == ""


def test_a_run_that_does_not_fit_is_one_line_and_exit_3(specroof: Command, tiny: str) -> None:
    flags = ["--prefix-tokens", "200", "--random-weights", "--cache-pages", "3"]
    done = specroof("baseline", "--model", tiny, *flags)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert "out of pages" in done.stderr and done.stderr.count("\n") == 1


def test_a_run_beyond_the_maximum_context_prints_a_note(
    specroof: Command, tiny: str, tmp_path: Path
) -> None:
    short = hf_config(FAMILIES["llama-3.2"]) | {"max_position_embeddings": 128}
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "config.json").write_text(json.dumps(short))
    flags = [
        "--draft",
        str(tmp_path / "short"),
        "--random-weights",
        "--json",
        "--output-tokens",
        "4",
    ]
    notes = []
    for prompt, policy in ((508, "streamingllm"), (508, "full"), (509, "full")):
        sizes = ["--prefix-tokens", str(prompt), "--draft-policy", policy]
        sizes += [] if policy == "full" else ["--kv-budget", "64"]
        done = specroof("standalone", "--model", tiny, *flags, *sizes)
        assert done.returncode == 0, done.stderr
        notes.append(json.loads(done.stdout)["notes"])
        assert done.stderr == "".join(f"note: {note}\n" for note in notes[-1])
    draft = "tokens exceed the maximum context of short (128): acceptance may be lower"
    target = f"513 tokens exceed the maximum context of {tmp_path.name} (512)"
    assert notes[:2] == [[], [f"512 {draft}"]]
    assert notes[2] == [f"{target}: times are valid, the text may not be", f"513 {draft}"]


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, app.cli.main\n"
        "try: app.cli.main.run(['run', 'selfspec', '--help'])\n"
        "except SystemExit: pass\n"
        "import app.cli.commands.run\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--kv-budget" in done.stdout


def test_without_torch_one_line_says_how_to_install_it() -> None:
    words = ["run", "baseline", "--model", "llama-68m", "--random-weights"]
    for tp in ("1", "2"):
        code = (
            "import sys, app.cli.main\n"
            "sys.modules['torch'] = None\n"
            f"sys.exit(app.cli.main.run({[*words, '--tp', tp]!r}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 2, done.stderr
        assert "pip install 'specroof[runtime]'" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(specroof: Command, tiny: str) -> None:
    flags = f"baseline --model {tiny} --random-weights --device cpu --output-tokens 2 --tp 2"
    done = specroof(*flags.split(), "--output", "/dev/full")
    line = "error: rank 0: /dev/full cannot be written: no space left on device; use another"
    assert done.returncode == 2
    assert done.stderr == f"{line} --output\n"
