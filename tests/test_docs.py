"""The README's commands run and print the documented output."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from app.cli.main import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def readme_commands() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", README, flags=re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("specroof ")]


@pytest.mark.parametrize("command", readme_commands())
def test_every_command_of_the_readme_runs(
    command: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out


def test_the_readme_prints_todays_recommendation(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recommend", "--scenario", "default", "--tp", "1,2,4,8"]) == 0
    assert capsys.readouterr().out.splitlines()[0] in README
