"""What a fit is given: own records, timed rounds, or tables that others published.

Own files are JSON lines, told apart by what they hold: kernels (`calibrate measure`) or steps
(`calibration.validate.run`). A folder is aiconfigurator's, of one GPU or of all. CSV is Vidur's
profile; anything else is nccl-tests' output.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calibration.fit.foreign import read_nccl_tests, read_vidur
from calibration.fit.own.fit import fit_own
from calibration.fit.report import FitReport
from calibration.fit.tables.fit import fit_tables
from calibration.records.jsonl import RecordError, read_lines
from calibration.records.kernels import KernelRecord, KernelRecords, read_kernel_records
from calibration.records.steps import StepRecord, read_steps
from perfmodel import ConfigError, catalog


def fit_inputs(paths: Sequence[Path], gpu: str | None = None) -> FitReport:
    """Read every file by its kind and fit.

    Raises
    ------
    RecordError
        For a file that does not exist or cannot be used, records of two GPUs, or others' records
        without the name of their GPU.
    """
    for path in paths:
        if not path.exists():
            raise RecordError(f"{path}: no such file or folder")
    folders = [path for path in paths if path.is_dir()]
    if folders:
        if len(paths) > 1:
            raise RecordError(f"{folders[0]}: tables of others are fitted alone; give one folder")
        return fit_tables(folders[0], gpu)
    if gpu is not None:
        try:
            gpu = catalog.gpu(gpu).name
        except ConfigError as error:
            raise RecordError(str(error)) from error
    lines = [path for path in paths if path.suffix in (".jsonl", ".json")]
    kernels = [path for path in lines if not _holds_steps(path)]
    steps = [step for path in lines if path not in kernels for step in _steps(path)]
    own = read_kernel_records(kernels, gpu) if kernels else None
    if own is not None:
        gpu = own.gpu
    others = [record for path in paths if path not in lines for record in _others(path, gpu)]
    if own is None and not others:
        raise RecordError("no record of a kernel in what was given; only timed rounds")
    assert gpu is not None
    headers = own.headers if own else ()
    records = [*(own.records if own else ()), *others]
    return fit_own(KernelRecords(gpu=gpu, headers=headers, records=records), steps)


def _holds_steps(path: Path) -> bool:
    """Whether a file's records are of whole steps."""
    return any("case" in line.value for line in read_lines(path))


def _steps(path: Path) -> list[StepRecord]:
    return read_steps(path)[1]


def _others(path: Path, gpu: str | None) -> list[KernelRecord]:
    if gpu is None:
        raise RecordError(f"{path}: does not say of which GPU; give --gpu")
    if path.suffix == ".csv":
        return read_vidur(path, catalog.gpu(gpu))
    return read_nccl_tests(path, catalog.gpu(gpu))
