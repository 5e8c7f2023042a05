"""Commands and Python of pages print the documented output, and pictures are up to date."""

import doctest
import json
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest

from app.cli.main import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# "..." stands for omitted lines; long lines are wrapped.
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def shown_commands(page: Path) -> list[tuple[str, str]]:
    """Each command after a `$` prompt of a page, and the output shown below it."""
    blocks = re.findall(
        r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.S | re.M
    )
    text = "".join(block for language, block in blocks if not language).replace("\\\n", " ")
    shown = [part.partition("\n") for part in re.split(r"^\$ ", text, flags=re.M)[1:]]
    return [(command, output) for command, _, output in shown]


@pytest.mark.parametrize(
    ("command", "output"),
    [
        each
        for page in (ROOT / "README.md", ROOT / "docs/how-to/recommend.md")
        for each in shown_commands(page)
    ],
)
def test_commands_print_what_a_page_shows(
    command: str,
    output: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With exit code 0, or that of a remark such as `# exit 3`, whose error is shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    command, _, code = command.partition("  # exit ")
    program, *arguments = shlex.split(command)
    assert program == "specroof" and run(arguments) == int(code or 0)
    captured = capsys.readouterr()
    printed = captured.err if code else captured.out
    assert output and doctest.OutputChecker().check_output(output, printed, FLAGS), printed


def test_the_python_of_the_readme_prints_what_it_shows() -> None:
    pytest.importorskip("pandas")
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    test = doctest.DocTestParser().get_doctest(block, {}, "README", "README.md", None)
    outcome = doctest.DocTestRunner(optionflags=FLAGS).run(test)
    assert outcome.attempted >= 4 and outcome.failed == 0


def test_the_page_on_architectures_shows_todays_tables() -> None:
    """`python examples/architectures.py` prints them."""
    page = (ROOT / "docs" / "results" / "architectures.md").read_text(encoding="utf-8")
    tables = runpy.run_path(str(ROOT / "examples" / "architectures.py"))["tables"]()
    for table in tables.split("\n\n"):
        assert table in page


def test_the_picture_of_the_readme_shows_todays_speedups() -> None:
    """`python examples/speedup_map.py docs/speedup-map.svg` redraws it."""
    pytest.importorskip("plotly")
    (text,) = re.findall("<desc>(.*?)</desc>", (ROOT / "docs" / "speedup-map.svg").read_text())
    drawn = np.array([float(value) for value in text.split()])
    today = runpy.run_path(str(ROOT / "examples" / "speedup_map.py"))["speedups"]().speedup
    np.testing.assert_allclose(drawn, today.ravel(), atol=0.0051)


def test_the_table_of_two_gpus_shows_the_records() -> None:
    page = (ROOT / "docs/results/engine.md").read_text(encoding="utf-8")
    section = page.partition("## Step times, two H200")[2].partition("\n## ")[0]
    records = (ROOT / "calibration/measured/rounds-between-h200.jsonl").read_text().splitlines()
    times: dict[str, list[list[float]]] = {}
    for record in map(json.loads, records):
        if record.get("session") == 5 and "batch" in record:  # those of the commit before first
            keys = ("target_step_s", "verify_s", "draft_step_s", "round_s", "between_s")
            found = [1e3 * record[key] for key in keys]
            row = f"{record['batch']} x {record['context_tokens']:,}"
            times.setdefault(row, []).append([*found, 100 * found[4] / found[3]])
    assert len(times) == 5
    for row, pair in times.items():
        (shown,) = re.findall(rf"^\| {row} \|(.*)\|$", section, flags=re.M)
        cells = [[float(word.strip(" %")) for word in cell.split(",")] for cell in shown.split("|")]
        rounding = 0.0051 * np.array([1, 1, 1, 1, 1, 10])[:, None]
        assert np.allclose(cells, np.transpose(pair), rtol=0, atol=rounding), row


def test_the_table_of_scaling_shows_the_records() -> None:
    page = (ROOT / "docs/results/engine.md").read_text(encoding="utf-8")
    section = page.partition("## Scaling from one to two H200")[2].partition("\n## ")[0]
    records = (ROOT / "calibration/measured/rounds-h200-scaling.jsonl").read_text().splitlines()
    times: dict[str, list[list[float]]] = {}  # of two GPUs, then of one
    for record in map(json.loads, records):
        if "batch" in record:
            row = f"{record['batch']} x {record['context_tokens']:,}"
            keys = ("target_step_s", "verify_s", "draft_step_s", "round_s")
            times.setdefault(row, []).append([1e3 * record[key] for key in keys])
    assert len(times) == 5
    for row, (two, one) in times.items():
        (shown,) = re.findall(rf"^\| {row} \|(.*)\|$", section, flags=re.M)
        cells = [[float(x) for x in re.findall(r"[\d.]+", cell)] for cell in shown.split("|")]
        expected = [[a, b, a / b] for a, b in zip(one, two, strict=True)]
        assert np.allclose(cells, expected, rtol=0, atol=0.0051), row
