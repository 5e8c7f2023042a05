"""The public names of each folder exist, and none is also the name of a module."""

import ast
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import calibration

ROOT = Path(calibration.__file__).parent
FOLDERS = ("acceptance", "fit", "measure", "records", "validate")


def declared(folder: str) -> dict[str, str]:
    """Public names and their modules, as type checkers see them."""
    tree = ast.parse((ROOT / folder / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {
        name.name: f"calibration.{folder}.{node.module}" for node in imports for name in node.names
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_declared_name_is_found_when_it_is_used(folder: str) -> None:
    names = declared(folder)
    page = import_module(f"calibration.{folder}")
    assert names
    for name, module in names.items():
        assert getattr(page, name) is getattr(import_module(module), name)
        assert not (ROOT / folder / f"{name}.py").exists(), name
    with pytest.raises(AttributeError, match="absent"):
        page.absent  # noqa: B018


def test_a_command_needs_only_the_packages_of_its_part() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'scipy', 'pandas', 'pyarrow', 'plotly'): sys.modules[name] = None\n"
        "from calibration.records import read_acceptance, read_cases, read_steps\n"
        "from calibration.validate import compare, comparison_lines, sample_cases, time_cases\n"
        "from calibration.measure import chosen_groups\n"
        "from calibration.acceptance import import_acceptance\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_data_file_that_the_wheel_should_hold_exists() -> None:
    settings = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = settings["tool"]["setuptools"]["package-data"]["calibration"]
    assert all(list(ROOT.glob(pattern)) for pattern in shipped)
