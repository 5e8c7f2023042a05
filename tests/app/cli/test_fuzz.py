"""Mutated files and flags end with exit code 0, 2 or 3 and at most one line of error.

CI runs `INPUTS=10000`, `make fuzz` a million; see `tests/soak/fuzz.py`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tests/soak/fuzz.py"
INPUTS = int(os.environ.get("INPUTS", "100"))


def fuzz(folder: Path, *flags: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the fuzz, after a statement that breaks something."""
    code = f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n{before}\n"
    words = [str(SCRIPT), "--folder", str(folder), "--jobs", "1", *flags]
    code += f"sys.argv = {words}; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_no_input_ends_in_a_traceback_a_hang_or_a_long_message(tmp_path: Path) -> None:
    done = fuzz(tmp_path, "--inputs", str(INPUTS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{INPUTS:,} of {INPUTS:,} inputs" in done.stdout


FAULTS = {
    "raise KeyError('x')": "KeyError at",
    "raise SystemExit(7)": "SystemExit at",
    "return 'x ' * 400": "a long line",
    "import sys; print('x', file=sys.stderr); return 'y'": "several lines",
    "while True: pass": "too slow",
    "return str(len(bytearray(3 * 10**9)))": "more than 1 GB",
}


@pytest.mark.slow
def test_the_fuzz_reports_each_kind_of_failure(tmp_path: Path) -> None:
    """A reader of metrics pages that breaks in turn is reported, with the input that shows it."""
    broken = "".join(f"def broken{n}():\n    {fault}\n" for n, fault in enumerate(FAULTS))
    (tmp_path / "broken.py").write_text(
        f"{broken}import itertools\nimport calibration.acceptance as a\n"
        "from perfmodel import ConfigError\n"
        f"faults = itertools.cycle([{', '.join(f'broken{n}' for n in range(len(FAULTS)))}])\n"
        "valid = [True]\n"
        "def read(path, *, gamma=None):\n"
        "    if valid and valid.pop(): return real(path, gamma=gamma)\n"
        "    raise ConfigError(next(faults)())\n"
        "real = a.import_acceptance\na.import_acceptance = read\n"
    )
    before = f"import os; os.environ['CPU_S'] = '1'; sys.path.insert(0, {str(tmp_path)!r})"
    flags = ["--inputs", "12", "--only", "report page"]
    done = fuzz(tmp_path / "out", *flags, before=f"{before}; import broken")
    assert done.returncode == 1, done.stdout + done.stderr
    assert [says for says in FAULTS.values() if says not in done.stdout] == []
    assert len([path for path in (tmp_path / "out").glob("*/report.txt")]) == len(FAULTS)
