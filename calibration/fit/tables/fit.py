"""Fit aiconfigurator's tables of one GPU as catalog files.

Tables of GEMMs, attention and collectives in bf16 are required. Tables of quantised GEMMs, experts,
latent attention and fp8 caches are optional.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from calibration.fit.errors import Errors
from calibration.fit.report import FitReport
from calibration.fit.tables import (
    attention_errors,
    attention_fit,
    collective_fit,
    latent_fit,
)
from calibration.fit.tables.attention_tables import check_cells, read_prefill
from calibration.fit.tables.experts.fit import fit_experts
from calibration.fit.tables.fetch import MORE_TABLES, TABLES, fetch, later_members
from calibration.fit.tables.gemm import fit as gemm_fit
from calibration.fit.tables.gemm.leave_out import leave_out_errors
from calibration.fit.tables.gemm.quantised import fit_formats
from calibration.fit.tables.gemm.tables import gemm_table
from calibration.fit.tables.gpus import (
    GPUS,
    MeasuredGpu,
    check_table,
    data_folder,
    has_table,
    read_table,
    table_path,
)
from calibration.fit.tables.kv_fp8_fit import fit_kv_fp8
from calibration.records.jsonl import RecordError

# Text of the catalog file, errors, and notes.
_Fit = Callable[[Path, MeasuredGpu], tuple[str, list[Errors], list[str]]]


def fit_tables(folder: Path, gpu: str | None = None) -> FitReport:
    """Fit the tables of one GPU in `folder`, which may hold those of several GPUs.

    Parameters
    ----------
    folder : Path
        aiconfigurator's folder of the GPU, or with `gpu` the folder that contains it, or the
        package or its parent.
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
    data = data_folder(folder, measured)
    paths = [table_path(data, measured, table) for table in TABLES]
    for table in TABLES:
        check_table(data, measured, table)
    report = FitReport(gpu=measured.name, source=f"aiconfigurator's tables, {measured.folder}")
    versions = [path.parent.relative_to(data / measured.folder) for path in paths]
    if any(version.parts for version in versions):
        report.notes.append(f"read {', '.join(dict.fromkeys(map(str, versions)))}")
    _gemm(data, measured, report)
    _attention(data, measured, report)
    _collectives(data, measured, report)
    _optional(data, measured, report)
    return report


def fetch_missing(folder: Path) -> None:
    """Download the tables into `folder` if any is missing."""
    paths = [
        folder / gpu.folder / f"{table}.parquet"
        for gpu in GPUS.values()
        for table in (
            *TABLES,
            *MORE_TABLES[gpu.folder],
            *later_members().get(gpu.folder, ()),
        )
    ]
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
    report.notes += attention_errors.window_lines(curve, data, gpu)
    _add(report, *fit_kv_fp8(data, gpu, curve))


def _collectives(data: Path, gpu: MeasuredGpu, report: FitReport) -> None:
    table, left_out = collective_fit.fit_collective_tables(data, gpu)
    text = collective_fit.catalog_text(gpu.name, table, left_out)
    report.files[f"efficiency/{gpu.name}/collectives.toml"] = text
    report.notes += collective_fit.report_lines(left_out)
    report.notes.append(collective_fit.all_to_all_line(data, gpu))


def _optional(data: Path, gpu: MeasuredGpu, report: FitReport) -> None:
    """Fit the optional tables, or note that they are missing."""
    for table in (*MORE_TABLES[gpu.folder], *later_members().get(gpu.folder, ())):
        if has_table(data, gpu, table):
            check_table(data, gpu, table)
    _add(report, *fit_formats(data, gpu))
    fits: dict[str, tuple[tuple[str, ...], _Fit]] = {
        "experts": (("moe",), fit_experts),
        "latent": (("generation_mla", "context_mla"), latent_fit.fit_latent),
    }
    for name, (tables, fit) in fits.items():
        if missing := [table for table in tables if not has_table(data, gpu, table)]:
            report.missing.append(f"{name}: no table {' or '.join(missing)}")
            continue
        text, errors, notes = fit(data, gpu)
        report.notes += notes
        _add(report, {f"efficiency/{gpu.name}/{name}.toml": text}, errors)


def _add(report: FitReport, files: Mapping[str, str], errors: Iterable[Errors]) -> None:
    report.files |= files
    report.errors += errors
