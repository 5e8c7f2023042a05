"""Recognise, read and fit the input files of `calibrate fit`.

JSON lines are kernel records (`calibrate measure`), step records (`validate run`) or rows of the
table of `run bench`, of which those of the last run are used. A folder holds
aiconfigurator's tables of one GPU or of several. Any other file is the output of nccl-tests.
"""

from __future__ import annotations

import filecmp
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calibration.fit.measured.fit import fit_measured
from calibration.fit.nccl_tests import gpu_of_nccl_tests, read_nccl_tests
from calibration.fit.report import FitReport
from calibration.fit.tables.fit import fetch_missing, fit_tables
from calibration.fit.tables.gpus import GPUS
from calibration.records.jsonl import RecordError, read_lines
from calibration.records.kernels import KernelRecords, read_kernel_records
from calibration.records.steps import StepRecord, has_older_rounds, read_rows, read_steps
from perfmodel import ConfigError, catalog

StepReader = Callable[[Path], tuple[Mapping[str, Any], list[StepRecord]]]


def fit_inputs(paths: Sequence[Path], gpu: str | None = None) -> FitReport:
    """Read every file and fit what the records suffice for.

    Raises
    ------
    RecordError
        If a file does not exist, cannot be used or is given twice, if records are of two GPUs, or
        if nccl-tests' output neither names its GPU nor is given with it.
    """
    for path in paths:
        if not path.exists():
            raise RecordError(f"{path}: no such file or folder")
    for one, other in itertools.combinations(paths, 2):
        if one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False):
            raise RecordError(f"{one} and {other} are the same; give a file once")
    folders = [path for path in paths if path.is_dir()]
    if folders:
        if len(paths) > 1:
            raise RecordError(
                f"{folders[0]} is a folder of tables, which must be the only input; "
                f"remove the others"
            )
        return fit_tables(folders[0], gpu)
    if gpu is not None:
        try:
            gpu = catalog.gpu(gpu).name
        except ConfigError as error:
            raise RecordError(str(error)) from error
    lines = [path for path in paths if path.suffix in (".jsonl", ".json")]
    readers = {path: _reader(path) for path in lines}
    kernels = [path for path, reader in readers.items() if reader is None]
    timed: dict[bool, list[StepRecord]] = {False: [], True: []}  # by an older engine or not
    for path, reader in readers.items():
        if reader is not None:
            header, steps = reader(path)
            timed[has_older_rounds(header)] += steps
    measured = read_kernel_records(kernels, gpu) if kernels else None
    gpu = measured.gpu if measured else gpu
    records = list(measured.records) if measured else []
    for path in paths:
        if path not in lines:
            gpu = gpu or gpu_of_nccl_tests(path)
            if gpu is None:
                raise RecordError(f"{path} does not name a GPU of the catalog; add --gpu NAME")
            records += read_nccl_tests(path, catalog.gpu(gpu))
    if gpu is None or not records:
        raise RecordError("the files have timed rounds but no kernel records; add kernel records")
    headers = measured.headers if measured else ()
    return fit_measured(
        KernelRecords(gpu=gpu, headers=headers, records=records),
        timed[False],
        timed[True],
    )


def fit_public_tables(folder: Path, gpus: Sequence[str] = ()) -> Iterator[FitReport]:
    """Fit aiconfigurator's tables of the given GPUs, or of all; missing tables are downloaded.

    Raises
    ------
    RecordError
        If the download fails, or a GPU has no tables or unusable ones.
    """
    for gpu in gpus:
        if gpu not in GPUS:
            raise RecordError(f"unknown GPU {gpu!r}; the tables have {', '.join(GPUS)}")
    fetch_missing(folder)
    for gpu in gpus or GPUS:
        yield fit_tables(folder, gpu)


def _reader(path: Path) -> StepReader | None:
    """What reads a file of whole steps; None if its records are of kernels."""
    found = read_lines(path)
    if any("case" in line.value for line in found):
        return read_steps
    return read_rows if any("plan" in line.value for line in found) else None
