"""Fit aiconfigurator's tables of one GPU: GEMMs, attention and collectives as catalog files."""

from __future__ import annotations

from pathlib import Path

from calibration.fit.report import FitReport
from calibration.fit.tables import attention_errors, attention_fit, collective_fit, gemm_fit
from calibration.fit.tables.attention_tables import check_cells, read_prefill
from calibration.fit.tables.fetch import TABLES, fetch
from calibration.fit.tables.gemm_leave_out import leave_out_errors
from calibration.fit.tables.gemm_tables import gemm_table
from calibration.fit.tables.gpus import (
    GPUS,
    MeasuredGpu,
    check_table,
    read_table,
    table_path,
)
from calibration.records.jsonl import RecordError


def fit_tables(folder: Path, gpu: str | None = None) -> FitReport:
    """Fit the tables of one GPU in `folder`, which may hold those of several GPUs.

    Parameters
    ----------
    folder : Path
        aiconfigurator's folder of the GPU, or with `gpu` the folder that contains it.
    gpu : str, optional
        Catalog name of the GPU.

    Raises
    ------
    RecordError
        If the GPU is not supported, or a table is missing, too small or from another GPU.
    """
    by_folder = {measured.folder: measured for measured in GPUS.values()}
    measured = GPUS.get(gpu) if gpu else by_folder.get(folder.name)
    if measured is None:
        raise RecordError(
            f"{folder} has no tables of {gpu or 'a supported GPU'}; use --gpu with one of "
            f"{', '.join(GPUS)}"
        )
    data = folder.parent if folder.name == measured.folder else folder
    for table in TABLES:
        table_path(data, measured, table)
    for table in TABLES:
        check_table(data, measured, table)
    report = FitReport(gpu=measured.name, source=f"aiconfigurator's tables, {measured.folder}")
    _gemm(data, measured, report)
    _attention(data, measured, report)
    _collectives(data, measured, report)
    return report


def fetch_missing(folder: Path) -> None:
    """Download the tables into `folder` if any is missing."""
    paths = [folder / g.folder / f"{table}.parquet" for g in GPUS.values() for table in TABLES]
    if not all(path.is_file() for path in paths):
        fetch(folder)


def _gemm(data: Path, gpu: MeasuredGpu, report: FitReport) -> None:
    table = gemm_table(read_table(data, gpu, "gemm"))
    fit = gemm_fit.fit_gemm_table(table, gpu.sheet)
    errors = leave_out_errors(fit.table, fit.log_multiplier, fit.log_base)
    text = gemm_fit.catalog_text(gpu.name, fit, errors, gpu.sheet)
    report.files[f"efficiency/{gpu.name}/gemm.toml"] = text
    report.errors.append(errors)
    report.notes.append(gemm_fit.report_line(fit))


def _attention(data: Path, gpu: MeasuredGpu, report: FitReport) -> None:
    check_cells(data, gpu)
    curve, fits = attention_fit.fit_attention_tables(data, gpu)
    decode = attention_errors.decode_errors(curve, fits, gpu)
    prefill = attention_errors.prefill_errors(curve, read_prefill(data, gpu), gpu)
    figures = {"decode": decode.flat(), "prefill": prefill.flat()}
    text = attention_fit.catalog_text(gpu.name, curve, figures)
    report.files[f"efficiency/{gpu.name}/attention.toml"] = text
    report.errors += [decode, prefill]


def _collectives(data: Path, gpu: MeasuredGpu, report: FitReport) -> None:
    table, left_out = collective_fit.fit_collective_tables(data, gpu)
    text = collective_fit.catalog_text(gpu.name, table, left_out)
    report.files[f"efficiency/{gpu.name}/collectives.toml"] = text
    report.notes += collective_fit.report_lines(left_out)
