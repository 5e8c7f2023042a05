"""The documents hold: modules stand in DESIGN.md, README's commands run and print what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from app.cli import run
from calibration.step_cases import read_records
from calibration.step_errors import PHASES, Comparison, compare, read_peers
from calibration.step_report import cell, markdown, readme_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = ROOT / "calibration" / "measured"
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


def comparison_of(steps: str, peers: str | None = None, curves_of: str | None = None) -> Comparison:
    header, records = read_records(MEASURED / f"{steps}.jsonl")
    others = read_peers(MEASURED / f"{peers}.csv") if peers else None
    return compare(header, records, peers=others, curves_of=curves_of)


def test_the_readme_shows_the_committed_steps() -> None:
    assert readme_table(comparison_of("h200-steps", "h200-peers")) in README


@pytest.mark.parametrize(("curves_of", "start"), [(None, "59 cases:"), ("h200", "H200's curves:")])
def test_the_readme_states_the_steps_of_the_h100(curves_of: str | None, start: str) -> None:
    spreads = comparison_of("h100-steps", curves_of=curves_of).spreads()
    stated = ", ".join(cell(spreads[name]) for name in (*PHASES, "speedup"))
    assert f"{start} {stated}" in " ".join(README.split())


@pytest.mark.parametrize(
    ("report", "steps", "peers", "curves_of"),
    [
        ("h200", "h200-steps", "h200-peers", None),
        ("h200-8", "h200-steps-8", "h200-peers", None),
        ("h100", "h100-steps", "h100-peers", None),
        ("h100-carried", "h100-steps", "h100-peers", "h200"),
    ],
)
def test_the_reports_open_with_todays_errors(
    report: str, steps: str, peers: str, curves_of: str | None
) -> None:
    committed = (ROOT / "docs" / f"validation-{report}.md").read_text(encoding="utf-8")
    fresh = markdown(comparison_of(steps, peers, curves_of))
    assert committed.split("## Every case")[0] == fresh.split("## Every case")[0]


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
