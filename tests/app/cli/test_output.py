"""Output files are complete or absent, and a failure to write prints one line."""

import io
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from documented import coverage_of_two_models
from rich.cells import cell_len

from app.cli.main import run
from app.cli.output import progress, write_files
from calibration.traffic import compare_runs, read_traffic_records
from calibration.validate import validate_published
from perfmodel import ConfigError

SPECROOF = [sys.executable, "-m", "app.cli.main"]


def test_a_closed_pipe_prints_no_traceback() -> None:
    arguments = ["sweep", "--gamma", "1:16", "--batch", "1:200", "--draft", "self", "--csv", "-"]
    with subprocess.Popen(
        [*SPECROOF, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("batch,")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == -signal.SIGPIPE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [["predict", "--tp", "8"], ["sweep", "--batch", "1:200", "--gamma", "0:9", "--csv", "-"]],
    ids=["at the end", "on the way"],
)
def test_a_full_device_is_one_line(arguments: list[str]) -> None:
    flags = ["--draft", "self"] if "sweep" in arguments else []
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*SPECROOF, *arguments, *flags], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert result.returncode == 2
    assert os.strerror(28) in result.stderr and result.stderr.count("\n") == 1


def test_a_closed_stdout_is_one_line() -> None:
    command = " ".join([*SPECROOF, "predict", "--tp", "8", "1>&-"])
    result = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_closed_streams_do_not_change_the_outcome() -> None:
    for tp, code, closed in (
        (8, 0, "2>&-"),
        (8, 0, "0<&-"),
        (8, 0, "0<&- 2>&-"),
        (800, 2, "2>&-"),
        (800, 2, "0<&- 2>&-"),
    ):
        command = " ".join([*SPECROOF, f"predict --tp {tp} --json", closed])
        result = subprocess.run(command, shell=True, stdout=subprocess.PIPE)
        assert result.returncode == code and result.stdout[:1] == (b"" if code else b"{")


@pytest.mark.parametrize(
    ("delay_s", "number"),
    [
        (0.2, signal.SIGINT),
        (0.4, signal.SIGTERM),
        (0.4, signal.SIGINT),
        (0.8, signal.SIGHUP),
        (0.8, signal.SIGINT),
        (1.2, signal.SIGTERM),
    ],
)
def test_signals_end_it_quietly(tmp_path: Path, delay_s: float, number: signal.Signals) -> None:
    (tmp_path / "x.csv").write_text("old")
    axes = ["--batch", "1:2000", "--gamma", "0:16", "--draft", "self", "--tp", "8"]
    with subprocess.Popen(
        [*SPECROOF, "sweep", *axes, "--csv", str(tmp_path / "x.csv")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        time.sleep(delay_s)
        process.send_signal(number)
        assert process.communicate(timeout=300) == (b"", b"")
    assert process.returncode in (128 + number, -number, 0)  # 0: it was already finished
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
    text = (tmp_path / "x.csv").read_text()  # complete if the signal came after the last row
    assert (text == "old" and process.returncode) or text.count("\n") == 1 + 2000 * 17


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("swallows", [False, True])
def test_a_signal_that_a_library_turns_into_an_error_ends_it_quietly(
    number: signal.Signals, swallows: bool
) -> None:
    script = f"""
import os
import app.cli.application as application
from app.cli.main import main

class Destroyed:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})
        [None for _ in range(1000)]

def library(*_, **__):
    if {swallows}:  # as in a callback, whose exceptions Python prints and ignores
        Destroyed()
        return 0
    try:
        os.kill(os.getpid(), {int(number)})
        [None for _ in range(1000)]
    except BaseException as error:
        raise ValueError("a fault of the library") from error

application.app = library
main()
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (128 + number, b"", b"")


TRAFFIC = "arrival_s,prompt_tokens,output_tokens\n0,100,10\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "--to", "specroof", "--scenario", "s.toml", "--output", "s.toml"],
        ["sweep", "--scenario", "s.toml", "--batch", "1,2", "--csv", "s.toml"],
        ["sweep", "--scenario", "s.toml", "--batch", "1,2", "--csv", "link"],
        ["sweep", "--scenario", "link", "--batch", "1,2", "--csv", "./s.toml"],
        ["sweep", "--scenario", "model.toml", "--batch", "1,2", "--csv", "config.json"],
        ["sweep", "--target", ".", "--batch", "1,2", "--csv", "config.json"],
        ["simulate", "--tp", "8", "--traffic", "t.csv", "--csv", "t.csv"],
        ["simulate", "--tp", "8", "--traffic", "t.csv", "--html", "t.csv"],
        ["recommend", "--tp", "8", "--traffic", "t.csv", "--html", "t.csv"],
        ["simulate", "--tp", "8", "--csv", "same", "--html", "same"],
        ["calibrate", "fit", "t.csv", "--plot", "t.csv"],
    ],
    ids=" ".join,
)
def test_an_input_is_never_overwritten(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"s.toml": "tp = 8\n", "t.csv": TRAFFIC, "config.json": "{}"}
    for name, text in (files | {"model.toml": 'target = "config.json"'}).items():
        Path(name).write_text(text)
    Path("link").symlink_to("s.toml")
    assert run(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert {name: Path(name).read_text() for name in files} == files and not Path("same").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "--tp", "8", "--csv"],
        ["simulate", "--tp", "8", "--csv"],
        ["simulate", "--tp", "8", "--html"],
        ["recommend", "--tp", "8", "--html"],
        ["export", "--tp", "8", "--to", "specroof", "--output"],
        ["validate", "draw", "--output"],
        ["calibrate", "fit-published", "--output"],
        ["run", "baseline", "--model", "llama-68m", "--random-weights", "--write-plan"],
    ],
    ids=" ".join,
)
def test_folders_are_not_invented(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, str(tmp_path / "a" / "b")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and list(tmp_path.iterdir()) == []


TABLES = [
    ["recommend", "--scenario", "default", "--tp", "4"],
    ["predict", "--tp", "8", "--draft", "self"],
    ["sweep", "--tp", "8", "--draft", "self:snapkv,qwen3-8b:full", "--batch", "1,64"],
    ["simulate", "--tp", "8", "--draft", "self", "--rate", "2", "--requests", "9"],
    ["list", "models"],
    ["list", "gpus"],
    ["list", "engines"],
    ["list", "acceptance"],
    ["list", "flags"],
    ["list", "scenarios"],
    ["validate", "coverage"],
    ["validate", "published"],
    ["validate", "records", "calibration/measured/steps-h200-tp2-seed2114.jsonl"],
    ["validate", "traffic", "traffic.jsonl"],
]


@pytest.fixture
def measurements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of them, in the current folder and as the coverage of intervals."""
    monkeypatch.setattr("calibration.validate.validate_coverage", coverage_of_two_models)
    monkeypatch.setattr("calibration.validate.validate_published", cache(validate_published))
    compared = cache(lambda: compare_runs(read_traffic_records([Path("traffic.jsonl")])))
    monkeypatch.setattr("calibration.traffic.compare_runs", lambda *_, **__: compared())
    folder = Path("calibration/measured").resolve()
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration/measured").symlink_to(folder)
    lines = (folder / "traffic-vllm-0.26-h200-seed161.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "traffic.jsonl").write_text("".join(lines[:3]))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("arguments", TABLES, ids=" ".join)
@pytest.mark.usefixtures("measurements")
def test_no_cell_is_cut_at_any_width(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def words(width: int) -> tuple[list[str], set[str]]:
        monkeypatch.setenv("COLUMNS", str(width))
        assert run(arguments) in (0, 4)
        text = capsys.readouterr().out
        return text.partition("sources\n")[0].splitlines(), set(text.split())

    wide = words(500)[1]
    for columns in (60, 80, 160):
        lines, narrow = words(columns)
        assert "…" not in "".join(lines)
        cut = {word for word in narrow ^ wide if not any(c in word for c in "-/")}
        assert not cut, columns  # a hub id may be longer than a line
        if arguments[0] != "recommend":  # its sentence is one line, to be copied
            assert max(map(cell_len, lines)) <= columns


@pytest.mark.parametrize(
    ("arguments", "widths"),
    [
        (["list", "machines"], ["9" * 5000, "99999999", "0", "-5", "80.5", "\uff18\uff10", ""]),
        (["--help"], ["9" * 5000, "-5"]),
    ],
)
def test_a_width_that_is_none_is_ignored(arguments: list[str], widths: list[str]) -> None:
    def text(**size: str) -> str:
        env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | size
        done = subprocess.run([*SPECROOF, *arguments], env=env, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr
        return done.stdout

    usual = text()
    for columns in widths:
        assert text(COLUMNS=columns, LINES=columns) == usual, columns


def test_an_interrupt_is_handled_before_more_modules_are_loaded() -> None:
    script = (
        "import os, sys; old = {*sys.modules}; import app.cli.main; print(*{*sys.modules} - old)"
    )
    root = Path(__file__).parents[3]
    loaded = subprocess.check_output([sys.executable, "-S", "-c", script], text=True, cwd=root)
    assert {*loaded.split()} <= {"app", "app.cli", "app.cli.main", "__future__", "errno"}


def test_an_ascii_terminal_gets_the_table() -> None:
    result = subprocess.run(
        [*SPECROOF, "recommend", "--scenario", "default", "--tp", "8"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and "TP 8" in result.stdout and result.stderr == ""
    assert "gamma=" in result.stdout and "alpha 0." in result.stdout and "?" not in result.stdout


def test_too_little_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 3.1 GiB")

    monkeypatch.setattr("perfmodel.sweep", exhausted)
    assert run(["sweep", "--batch", "1,2"]) == 2
    err = capsys.readouterr().err
    assert "Unable to allocate 3.1 GiB" in err and err.count("\n") == 1


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_is_shown_only_on_a_terminals_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("requests", 10) as update:
        assert update is None
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    with progress("requests", 10) as update:
        assert update is not None
        print("a result")
        update(7, label="windows")
    assert capsys.readouterr().out == "a result\n"
    assert "windows" in stderr.getvalue() and "7/10" in stderr.getvalue()


def test_a_folder_in_one_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path / 'no'} does not exist; create that"):
        write_files({"a/b.toml": "x"}, tmp_path / "no" / "such")
    assert not list(tmp_path.iterdir())
    (tmp_path / "no").mkdir()
    (file,) = write_files({"a/b.toml": "x"}, tmp_path / "no" / "such")
    assert file.read_text() == "x"
