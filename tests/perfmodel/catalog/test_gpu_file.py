"""A GPU that a user describes in a file predicts like one of the catalog, and is checked alike."""

import re
from pathlib import Path

import pytest

from perfmodel import catalog, estimate, parse_scenario, scenario_dict
from perfmodel.errors import ConfigError

FOLDER = Path(catalog.__file__).parent
NODE = """
[machine]
gpus_per_node = { value = 8, unit = "1", source = "assumed" }

[machine.link]
kind = "nvlink"
bandwidth = { value = 450, unit = "GB/s", source = "assumed" }
"""


def described(name: str) -> str:
    """The catalog's file of an extrapolated GPU, under another name and in another machine."""
    text = (FOLDER / "gpus" / f"{name}.toml").read_text()
    kept = [line for line in text.splitlines() if not re.match("default_machine|datasheet_", line)]
    return "\n".join(kept).replace(f'name = "{name}"', 'name = "mine"') + NODE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text(described("h100-nvl"))
    return file


@pytest.mark.parametrize("engine", ["specroof", "magicdec", "kernels"])
def test_the_figures_of_a_catalog_gpu_predict_the_same(path: Path, engine: str) -> None:
    plan = {"draft": "self", "batch": 8, "engine": engine}
    mine = parse_scenario(plan | {"gpu": str(path)}).scenario()
    same = parse_scenario(plan | {"gpu": "h100-nvl"}).scenario()
    assert mine.machine.name == "8xmine" and mine.machine.gpus_per_node == 8
    for name in ("target_step", "verify", "draft_step"):
        steps = (getattr(estimate(one), name).total_s for one in (mine, same))
        assert len(set(map(float, steps))) == 1, name
    assert estimate(mine).target_step.origin == "extrapolated"


def test_the_scenario_as_data_selects_the_file_again(path: Path) -> None:
    scenario = parse_scenario({"gpu": str(path), "ring_hop_us": 3, "ring_gb_s": 50}).scenario()
    values = scenario_dict(scenario)
    assert values["gpu"] == str(path) and values["ring_hop_us"] == 3
    assert parse_scenario(values).scenario() == scenario


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('name = "mine"', 'name = "H200"', "is a GPU of the catalog; use another"),
        ('name = "mine"', 'name = "a\\nb"', "is not one line"),
        ('of = "h100-sxm"', 'of = "h100-nvl"', "unknown efficiency.of 'h100-nvl'"),
        ('origin = "extrapolated"', 'origin = "fitted"', "contradicts efficiency.of"),
        ("[machine]", 'default_machine = "x"\n[machine]', "efficiency: unknown key"),
        ("value = 450", "value = 0", "link.bandwidth.value=0 is not valid"),
        ("value = 450", "value = 1e300", "must be at most 100 TB/s; check its unit"),
        ("value = 450", "value = 450000000", "must be at most 100 TB/s; check its unit"),
        (NODE, "", "machine is missing"),
    ],
)
def test_an_invalid_file_is_one_line(path: Path, old: str, new: str, reason: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
        parse_scenario({"gpu": str(path)}).scenario()
    assert str(caught.value).isprintable()
