"""Files of a sweep hold the rows of the sweep."""

import csv
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.main import run
from app.cli.table_files.sweep_files import number_texts, write_sweep_csv, write_sweep_parquet
from perfmodel import ConfigError, sweep
from perfmodel.planning import Block, Where

AXES: dict[str, list[Any]] = {
    "gpu": ["a100-sxm-80gb", "l40"],
    "draft": ["none", "self:snapkv"],
    "batch": [1, 64, 4096],
    "prompt_tokens": [500, 32_000],
    "kv_budget": [256, 4096],
}
LISTS = {name: ",".join(map(str, values)) for name, values in AXES.items()}
FLAGS = ["sweep", "--tp", "8"]
FLAGS += [word for name, text in LISTS.items() for word in (f"--{name.replace('_', '-')}", text)]


def rows(where: str = "") -> list[dict[str, Any]]:
    points = sweep({"tp": 8}, AXES)
    return list(points.rows(Where.parse(where) if where else Where()))


@pytest.fixture(autouse=True, params=[3, 20_000])
def small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perfmodel.planning.block.PIECE_POINTS", request.param)


@pytest.mark.parametrize("where", ["", "speedup>1", "feasible=false"])
def test_a_csv_file_has_every_row_to_the_last_digit(where: str, tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    flags = [*FLAGS, *(("--where", where) if where else ())]
    assert run([*flags, "--csv", str(file)]) == 0
    with file.open(newline="", encoding="utf-8") as opened:
        read = list(csv.DictReader(opened))
    expected = rows(where)
    assert expected and len(read) == len(expected)
    for line, row in zip(read, expected, strict=True):
        assert line == {k: "" if v is None else str(v) for k, v in row.items()}


@pytest.mark.parametrize("where", ["", "speedup>1"])
def test_a_parquet_file_has_every_row(where: str, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "points.parquet"
    flags = [*FLAGS, *(("--where", where) if where else ())]
    assert run([*flags, "--parquet", str(file)]) == 0
    assert parquet.read_table(file).to_pylist() == rows(where)


def test_the_top_rows_are_the_fastest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*FLAGS, "--top", "2", "--where", "batch<=64", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)["rows"]
    fast = [row["speedup"] for row in rows("batch<=64") if row["feasible"]]
    assert [row["speedup"] for row in shown] == sorted(fast, reverse=True)[:2]
    assert run([*FLAGS, "--top", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4  # header, and what the rows are based on


@given(st.lists(st.floats() | st.floats(1e-6, 1e12) | st.integers(-9, 1 << 60).map(float)))
def test_numbers_are_written_as_by_repr(values: list[float]) -> None:
    assert number_texts(np.array(values, float)) == list(map(repr, values))


@pytest.mark.parametrize("write", [write_sweep_csv, write_sweep_parquet])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError(28, "full")])
def test_a_file_that_is_interrupted_leaves_nothing(
    write: Any, error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)

    def pieces() -> Iterator[Block]:
        yield from sweep({"tp": 8}, {"batch": [1, 2]}).pieces()
        raise error

    path = tmp_path / "x"
    path.write_text("earlier")
    with pytest.raises((KeyboardInterrupt, SystemExit, ConfigError)):
        write(str(path), pieces(), Where())
    gc.collect()
    assert not printed
    assert [f.name for f in tmp_path.iterdir()] == ["x"] and path.read_text() == "earlier"
