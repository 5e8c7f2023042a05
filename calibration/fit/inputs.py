"""Read the inputs of `calibrate fit` by their kind, and fit them.

JSON lines hold measured kernels (`calibrate measure`) or timed steps (`calibration.validate.run`);
a folder is aiconfigurator's, of one GPU or of all; CSV is a Vidur profile; anything else is taken
for nccl-tests' output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from calibration.fit.measured.fit import fit_measured
from calibration.fit.report import FitReport
from calibration.fit.tables.fit import fetch_missing, fit_tables
from calibration.fit.tables.gpus import GPUS
from calibration.fit.third_party import read_nccl_tests, read_vidur
from calibration.records.jsonl import RecordError, read_lines
from calibration.records.kernels import KernelRecord, KernelRecords, read_kernel_records
from calibration.records.steps import PASS_END, read_steps
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
    timed = [read_steps(path) for path in lines if path not in kernels]
    to_tokens = {
        s.case.id for header, steps in timed if PASS_END.items() <= header.items() for s in steps
    }
    measured = read_kernel_records(kernels, gpu) if kernels else None
    if measured is not None:
        gpu = measured.gpu
    others = [record for path in paths if path not in lines for record in _others(path, gpu)]
    if measured is None and not others:
        raise RecordError("no record of a kernel in what was given; only timed rounds")
    assert gpu is not None
    headers = measured.headers if measured else ()
    records = [*(measured.records if measured else ()), *others]
    return fit_measured(
        KernelRecords(gpu=gpu, headers=headers, records=records),
        [step for _, steps in timed for step in steps],
        to_tokens=to_tokens,
    )


def fit_public_tables(folder: Path, gpus: Sequence[str] = ()) -> Iterator[FitReport]:
    """Fit aiconfigurator's tables of some GPUs, or all; they are downloaded where missing.

    Raises
    ------
    RecordError
        If the download fails, a GPU has no tables, or one cannot be used.
    """
    fetch_missing(folder)
    for gpu in gpus or GPUS:
        yield fit_tables(folder, gpu)


def _holds_steps(path: Path) -> bool:
    """Whether a file's records are of whole steps."""
    return any("case" in line.value for line in read_lines(path))


def _others(path: Path, gpu: str | None) -> list[KernelRecord]:
    if gpu is None:
        raise RecordError(f"{path}: does not say of which GPU; give --gpu")
    if path.suffix == ".csv":
        return read_vidur(path, catalog.gpu(gpu))
    return read_nccl_tests(path, catalog.gpu(gpu))
