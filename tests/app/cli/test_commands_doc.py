"""Every example of docs/reference/commands.md runs with the documented exit code."""

import dataclasses
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from documented import coverage_of_two_models

from app.cli.application import app
from app.cli.main import run
from app.cli.simulation_options import SimulationOptions

pytestmark = pytest.mark.slow

DOC = Path(__file__).parents[3] / "docs" / "reference" / "commands.md"
TEXT = DOC.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^\$ (.+)$", TEXT, flags=re.M)


def test_examples_run_in_order_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("calibration.validate.validate_coverage", coverage_of_two_models)
    for example in EXAMPLES:
        command, _, remark = example.partition("  # exit ")
        if command.startswith("specroof "):
            code = run(shlex.split(command)[1:])
            _, err = capsys.readouterr()
            assert code == int(remark or 0), f"{command}: {err}"
            assert bool(err) == bool(remark), f"{command}: {err}"
        else:
            subprocess.run(command, shell=True, check=True)
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    assert (tmp_path / "points.csv").read_text().startswith("gpu,engine,tp,batch,")


def test_every_command_has_a_section_with_an_example() -> None:
    commands = app.commands  # type: ignore[attr-defined]
    for name in commands:
        assert f"\n## {name}\n" in TEXT
        assert any(example.startswith(f"specroof {name}") for example in EXAMPLES), name


def test_the_flag_table_equals_list_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "flags"]) == 0
    table = capsys.readouterr().out
    assert TEXT.count(table) == 1


def test_simulate_documents_its_flags() -> None:
    section = re.split(r"^## ", TEXT, flags=re.M)
    body = next(part for part in section if part.startswith("simulate"))
    documented = re.findall(r"`--([a-z-]+)", "".join(re.findall(r"^\| (.+?) \|", body, flags=re.M)))
    assert [name.replace("-", "_") for name in documented] == [
        field.name for field in dataclasses.fields(SimulationOptions)
    ]
