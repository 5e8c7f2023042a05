"""docs/reference/json.md lists exactly the keys that the commands print."""

import functools
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from documented import coverage_of_two_models, documented_keys

from app.cli.main import run

SPECULATING = ["--draft", "self", "--tp", "8", "--acceptance", "0.8"]
TRAFFIC = ["--traffic", str(Path(__file__).parent / "traffic.csv")]
RECORDS = "traffic.jsonl"  # two runs that `served` copies there
VALIDATED = ["validate", "traffic", RECORDS]
MEASURED = Path("calibration/measured/traffic-vllm-0.26-h200-seed161.jsonl").resolve()
# Section of the document: a command line, and where in its output the object lies.
SECTIONS: dict[str, tuple[list[str], list[str | int]]] = {
    "predict": (["predict", *SPECULATING], []),
    "predict: acceptance": (["predict", *SPECULATING], ["acceptance"]),
    "predict: types": (["predict", *SPECULATING], ["types"]),
    "predict: memory": (["predict", *SPECULATING], ["memory"]),
    "predict: experts": (["predict", *SPECULATING, "--target", "qwen3-30b-a3b"], ["experts"]),
    "predict: breakdown": (["predict", *SPECULATING], ["breakdown", "verify", "attention"]),
    "sweep": (["sweep", "--batch", "1,2"], []),
    "sweep: row": (["sweep", "--batch", "1,2"], ["rows", 0]),
    "recommend": (["recommend", "--scenario", "default"], []),
    "recommend: plan": (["recommend", "--scenario", "default"], ["best"]),
    "recommend: binding": (["recommend", "--scenario", "default", "--tp", "1,2,4,8"], ["binding"]),
    "recommend: traffic": (
        ["recommend", "--scenario", "default", "--tp", "8", *TRAFFIC],
        ["traffic"],
    ),
    "simulate": (["simulate", *SPECULATING], []),
    "simulate: rounds": (["simulate", *SPECULATING], ["runs", 1]),
    "simulate: requests": (["simulate", *SPECULATING, *TRAFFIC], ["runs", 1]),
    "simulate: timeline": (["simulate", *SPECULATING, *TRAFFIC], ["runs", 0, "timeline", 0]),
    "export": (["export", "--to", "specroof", *SPECULATING], []),
    "export: matrix": (["export", "--matrix"], []),
    "explain": (["explain", *SPECULATING, "--batch", "8", "--round-ms", "30"], []),
    "explain: term": (
        ["explain", *SPECULATING, "--batch", "8", "--round-ms", "30"],
        ["terms", "round_s"],
    ),
    "list: gpus": (["list", "gpus"], [0]),
    "list: machines": (["list", "machines"], [0]),
    "list: models": (["list", "models"], [0]),
    "list: engines": (["list", "engines"], [0]),
    "list: acceptance": (["list", "acceptance"], [0]),
    "list: flags": (["list", "flags"], [0]),
    "validate": (["validate", "published", "--tolerance", "100"], []),
    "validate: coverage": (["validate", "coverage"], []),
    "validate: group": (["validate", "published", "--tolerance", "100"], ["groups", 0]),
    "validate: traffic": (VALIDATED, []),
    "validate: traffic run": (VALIDATED, ["runs", 0]),
    "validate: traffic figures": (VALIDATED, ["runs", 0, "measured"]),
}


@pytest.fixture(autouse=True)
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of two runs in the current folder, and a coverage of few measurements."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("calibration.validate.validate_coverage", coverage_of_two_models)
    Path(RECORDS).write_text("".join(MEASURED.read_text().splitlines(keepends=True)[:3]))


@functools.cache
def printed(*arguments: str) -> Any:
    with redirect_stdout(io.StringIO()) as out:
        assert run([*arguments, "--json"]) == 0
    return json.loads(out.getvalue())


@pytest.mark.parametrize("section", SECTIONS)
def test_documented_keys_match_the_output(section: str) -> None:
    arguments, path = SECTIONS[section]
    value = printed(*arguments)
    for step in path:
        value = value[step]
    assert documented_keys(section) == list(value)


@pytest.mark.parametrize("figures", ["measured", "simulated", "error_percent"])
def test_every_run_of_traffic_has_the_documented_figures(figures: str) -> None:
    result = printed(*VALIDATED)
    names = documented_keys("validate: traffic figures")
    assert [list(run[figures]) for run in result["runs"]] == [names, names]
    assert set(result["tolerances_percent"]) <= set(names)
