"""The import contracts of pyproject.toml hold, and importing the model drags in nothing heavy."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "flashinfer", "streamlit", "plotly", "pandas", "transformers", "scipy")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_every_import_contract_holds() -> None:
    """import-linter over the repository: packages, purity, public API, calculation order."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    found = run(code)
    assert found.returncode == 0, found.stdout + found.stderr
    assert re.search(r"\b[1-9]\d* kept, 0 broken", found.stdout)


@pytest.mark.parametrize(
    "package", ["perfmodel", "runtime", "app.cli.main", "app.cli.commands.run"]
)
def test_importing_it_loads_nothing_heavy(package: str) -> None:
    code = (
        f"import sys, {package}; "
        f"print(*sorted({set(HEAVY)!r} & {{name.partition('.')[0] for name in sys.modules}}))"
    )
    found = run(code)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == []
