"""Output files are complete or absent, and a failure to write prints one line."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.main import run
from app.cli.output import atomic_text, progress

SPECROOF = [sys.executable, "-m", "app.cli.main"]


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_text(path) as file:
        file.write("half of the ne")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


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


def test_an_ascii_terminal_gets_the_table() -> None:
    result = subprocess.run(
        [*SPECROOF, "recommend", "--scenario", "default", "--tp", "8"],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and "TP 8" in result.stdout and result.stderr == ""


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
