"""Flags, scenario keys and CSV columns share names; cells override flags, and flags files."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from app.cli.axes import parse_axis
from app.cli.main import run
from perfmodel import ConfigError, ScenarioInput
from perfmodel.catalog.scenarios import FORMER_NAMES, scenario_names, scenario_values
from perfmodel.flat_values import override
from perfmodel.planning import SEARCHED

SELF = ["--draft", "self", "--tp", "8"]


def predicted(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run(["predict", *arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.parametrize(
    "command", ["predict", "sweep", "simulate", "recommend", "export", "explain"]
)
def test_help_shows_every_flag_with_its_default(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    assert run([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, field in ScenarioInput.model_fields.items():
        [line] = [
            line for line in lines if f" --{name.replace('_', '-')} " in line.replace(",", " ")
        ]
        assert str(field.description) in line
        if command == "recommend" and name in SEARCHED:
            assert "searched" in line.lower() and "Default" not in line
        elif command == "explain" and name == "engine":
            assert "Default: kernels." in line
        else:
            assert str(field.default or "").replace("32000", "32,000") in line


def test_a_flag_of_an_earlier_version_still_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert FORMER_NAMES
    for old, new in FORMER_NAMES.items():
        flags = [f"--{name.replace('_', '-')}" for name in (old, new)]
        former, present = (predicted(["--tp", "8", flag, "4000"], capsys) for flag in flags)
        assert former == present and present["scenario"][new] == 4000


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"specroof {version('specroof')}\n"


LIGHT = """
import os, sys
from app.cli.main import run
sys.stdout = open(os.devnull, "w")
for words, heavy in (
    ("--help", "torch numpy plotly pandas pydantic perfmodel"),
    ("list --help", "torch numpy plotly pandas perfmodel"),
    ("run selfspec --help", "torch numpy plotly pandas perfmodel"),
    ("calibrate acceptance --help", "torch numpy plotly pandas perfmodel"),
    ("predict --help", "torch plotly pandas scipy"),
    ("recommend --help", "torch plotly pandas scipy"),
    ("predict --tp 8 --json", "torch plotly pandas scipy pyarrow"),
):
    assert run(words.split()) == 0, words
    loaded = set(heavy.split()) & set(sys.modules)
    assert not loaded, (words, loaded)
"""


def test_help_and_predict_import_nothing_heavy() -> None:
    """In the order of what they may import."""
    result = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_flag_key_and_column_are_equivalent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"draft": "self", "kv_budget": 256, "gamma": 3, "tp": 8, "acceptance": 0.8}
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in values.items()]
    by_flags = predicted(flags, capsys)

    scenario = tmp_path / "scenario.toml"
    scenario.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in values.items()))
    assert predicted(["--scenario", str(scenario)], capsys) == by_flags

    rows = tmp_path / "rows.csv"
    cells = (",".join(values), ",".join(str(v) for v in values.values()))
    rows.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(cells).encode() + b"\r\n\r\n")
    assert run(["predict", "--from", str(rows)]) == 0
    assert json.loads(capsys.readouterr().out) == {"row": 1, **by_flags}


def test_cells_override_flags_and_flags_override_the_scenario(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("batch,gamma\n,\n8,2\n")
    arguments = ["--scenario", "default", "--from", str(rows), *SELF, "--batch", "16"]
    assert run(["predict", *arguments]) == 0
    first, second = (json.loads(line)["scenario"] for line in capsys.readouterr().out.splitlines())
    assert (first["batch"], first["gamma"], first["gpu"]) == (16, 4, "a100-sxm-80gb")
    assert (second["batch"], second["gamma"], second["gpu"]) == (8, 2, "a100-sxm-80gb")


def test_rows_come_from_stdin_too() -> None:
    script = (
        "import sys; from app.cli.main import main; "
        "sys.argv[1:] = ['predict', '--from', '-']; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], input="tp\n8\n", capture_output=True, text=True
    )
    assert result.returncode == 0 and json.loads(result.stdout)["scenario"]["tp"] == 8


def test_a_new_draft_drops_the_values_of_the_old_one() -> None:
    base = {"draft": "tinyllama-1.1b", "draft_tp": 4, "gamma": 3, "acceptance": 0.7, "batch": 8}
    assert override(base, {"draft": "none"}) == {"draft": "none", "batch": 8}
    assert override(base, {"draft": "tinyllama-1.1b"}) == base
    stated = {"gamma": 2, "kv_budget": 64}  # of no draft, so of the one that is added
    assert override(stated, {"draft": "self"}) == stated | {"draft": "self"}
    assert override(stated, {"draft": "none"}) == {"draft": "none"}


def test_a_new_gpu_drops_the_old_machine() -> None:
    assert override({"machine": "hgx-h100"}, {"gpu": "l40"}) == {"gpu": "l40"}


def test_another_form_of_acceptance_replaces_the_first() -> None:
    assert override({"acceptance": 0.7}, {"tokens_per_round": "2"}) == {"tokens_per_round": "2"}


@pytest.mark.parametrize("name", scenario_names())
def test_catalog_scenarios_are_valid(name: str) -> None:
    values = scenario_values(name)
    assert ScenarioInput(**values).scenario().workload.batch == values["batch"]


@pytest.mark.parametrize(
    "text, values",
    [
        ("1,8,64", [1, 8, 64]),
        ("1:4", [1, 2, 3, 4]),
        ("4000:32000:4000", [4000, 8000, 12000, 16000, 20000, 24000, 28000, 32000]),
        ("64:4096:x2", [64, 128, 256, 512, 1024, 2048, 4096]),
        ("1:9:3", [1, 4, 7]),
        ("10:100:x3", [10, 30, 90]),
        ("1,1:3,2", [1, 2, 3]),
        ("8", [8]),
    ],
)
def test_axis_lists_and_ranges(text: str, values: list[int]) -> None:
    assert parse_axis("batch", text) == values


def test_names_on_an_axis_keep_their_colons() -> None:
    assert parse_axis("draft", "self:snapkv, none") == ["self:snapkv", "none"]


@pytest.mark.parametrize("text", ["", ",", "1:2:3:4", "1:", "1:2:x", "2:1", "1:9:0", "1e999", "x"])
def test_invalid_axes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_axis("batch", text)
