"""The documents hold: modules stand in DESIGN.md, README's commands run and print what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from app.cli import run
from calibration.step_cases import read_records
from calibration.step_errors import compare, read_peers
from calibration.step_report import readme_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STEPS = ROOT / "calibration" / "measured" / "h200-steps.jsonl"
DESIGN = (ROOT / "DESIGN.md").read_text(encoding="utf-8")


def modules(package: str) -> list[str]:
    names = [path.stem for path in (ROOT / package).glob("*.py")]
    return sorted(name for name in names if not name.startswith("_"))


PACKAGES = ("perfmodel", "runtime", "calibration", "app")


@pytest.mark.parametrize("name", [name for package in PACKAGES for name in modules(package)])
def test_every_module_stands_in_the_design(name: str) -> None:
    assert f"`{name}`" in DESIGN


def test_readme_has_under_a_hundred_lines() -> None:
    assert len(README.splitlines()) < 100


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


@pytest.mark.skipif(not STEPS.is_file(), reason="no timed steps are committed yet")
def test_the_readme_shows_the_committed_steps() -> None:
    header, records = read_records(STEPS)
    comparison = compare(header, records, peers=read_peers(STEPS.with_name("h200-peers.csv")))
    assert readme_table(comparison) in README


def test_the_readme_table_is_what_validate_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "published"]) == 0
    printed = capsys.readouterr().out
    rows = {
        "MagicDec T6": "table T6",
        "MagicDec T3a": "table T3a",
        "MagicDec T3b": "table T3b",
        "one H200": "table H200",
        "**held out**: a draft": "all held-out rows of a known GPU",
        "**never fitted on**: gpt-fast": "table gpt-fast bf16",
    }
    for in_readme, in_report in rows.items():
        line = next(x for x in README.splitlines() if x.startswith(f"| {in_readme}"))
        stated = re.findall(r"(\d+\.\d) \(([+-]\d+\.\d)\)", line)
        report = next(x for x in printed.splitlines() if in_report in x)
        figures = report.split(in_report)[1].split()[1:]
        found = [(figures[i + 1], figures[i + 2]) for i in range(0, len(figures), 3)]
        assert stated == found
