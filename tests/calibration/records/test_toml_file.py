"""Catalog files read back, and an edit preserves comments."""

import tomllib
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

import perfmodel
from calibration.records.toml_file import compact, toml_text, with_table


def test_every_kind_of_value_reads_back() -> None:
    values = {
        "text": 'a "b"\n\\c \x07 é',
        "flag": True,
        "number": np.float64(0.25),
        "empty": [],
        "knots": np.array([1, 2]),
        "cube": np.arange(8).reshape(2, 2, 2),
        "origin": {"decode": "fitted"},
        "errors": {"median": 1.5, "by_region": {"small": {"p90": 2.0}}},
        "architecture": {"hopper": {"x": 1}},
        "curves": [{"name": "a", "points": [{"x": 1.0}, {"x": 2.0}]}, {"name": "b", "points": []}],
    }
    text = toml_text(values, header="First line.\nSecond line.")
    cube = [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    plain = {**values, "number": 0.25, "knots": [1, 2], "cube": cube}
    assert tomllib.loads(text) == plain
    assert text.startswith("# First line.\n# Second line.\n")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (33554432.0, 33554432),
        (0.1234567, 0.123457),
        (1e-7, 1e-7),
        ([1.0, 2.5], [1, 2.5]),
        (np.ones((1, 2)), [[1, 1]]),
        ("x", "x"),
    ],
)
def test_compact_keeps_whole_numbers_and_rounds_the_rest(value: object, written: object) -> None:
    assert compact(value) == written


def test_a_table_is_replaced_and_the_rest_stays() -> None:
    text = '# head\nname = "x"  # why\n\n[gpu.a]\n# old\nspeed = 1\n\n[gpu.b]\nspeed = 2  # fast\n'
    again = with_table(text, "gpu", "a", {"speed": 3}, note="new")
    assert again == text.replace("# old", "# new").replace("speed = 1", "speed = 3")
    added = with_table('name = "x"\n', "gpu", "a", {"speed": 3}, note="new")
    assert tomllib.loads(added) == {"name": "x", "gpu": {"a": {"speed": 3}}}


def test_every_shipped_curve_is_as_its_command_writes_it() -> None:
    """A file that was edited by hand would differ from what is written from its own content."""
    folder = Path(perfmodel.__file__).parent / "catalog" / "efficiency"
    texts = {path: path.read_text(encoding="utf-8") for path in folder.glob("*/*.toml")}
    written = {path: text for path, text in texts.items() if "Written by" in text[:400]}
    assert len(written) > 40 and {p.name for p in texts if p not in written} == {
        "attention-flashinfer.toml"
    }
    for path, text in written.items():
        lines = text.splitlines()
        header = "\n".join(line[2:] for line in takewhile(lambda x: x.startswith("#"), lines))
        assert toml_text(tomllib.loads(text), header=header) == text, path
