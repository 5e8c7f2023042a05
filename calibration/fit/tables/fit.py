"""aiconfigurator's tables of one GPU, or of all in a folder, as the catalog's own files."""

from __future__ import annotations

from pathlib import Path

from calibration.fit.report import FitReport
from calibration.fit.tables.attention_fit import (
    WAYS,
    errors,
    fit_gpu,
    prefill_errors,
    prefill_summary,
)
from calibration.fit.tables.attention_report import summary, toml_text
from calibration.fit.tables.attention_tables import GPUS, read_prefill
from calibration.fit.tables.collective_fit import fit_gpu as fit_collectives
from calibration.fit.tables.collective_fit import toml_text as collectives_toml
from calibration.fit.tables.gemm_fit import fit_curve, gemm_toml
from calibration.fit.tables.gemm_fit import report as gemm_report
from calibration.fit.tables.gemm_tables import read_gemm_table
from calibration.records.jsonl import RecordError

TABLES = ("gemm.parquet", "generation_attention.parquet", "context_attention.parquet",
          "nccl.parquet", "custom_allreduce.parquet")  # fmt: skip


def fit_tables(folder: Path, gpu: str | None = None) -> FitReport:
    """Fit the GPU whose tables `folder` holds; with `gpu`, the one of that name inside it.

    Raises
    ------
    RecordError
        If the GPU is not one of those whose tables are known, or a table is missing.
    """
    names = {GPUS[name].folder: name for name in GPUS}
    name = gpu or names.get(folder.name)
    if name not in GPUS:
        raise RecordError(
            f"{folder}: holds no tables of {name or 'a known GPU'}; use --gpu with one of "
            f"{', '.join(GPUS)}"
        )
    data = folder.parent if folder.name == GPUS[name].folder else folder
    for file in TABLES:
        if not (data / GPUS[name].folder / file).is_file():
            raise RecordError(f"{data / GPUS[name].folder}: {file} is missing")
    report = FitReport(gpu=name, source=f"aiconfigurator's tables, {GPUS[name].folder}")
    target = f"efficiency/{name}"
    sheet = GPUS[name].sheet
    gemm = fit_curve(read_gemm_table(data / GPUS[name].folder / "gemm.parquet"), sheet)
    report.files[f"{target}/gemm.toml"] = gemm_toml(name, gemm, sheet)
    report.notes += gemm_report(name, gemm).splitlines()
    curve, fits = fit_gpu(data, GPUS[name])
    decode = errors(curve, fits, GPUS[name])
    ways = ["in_sample", *(f"{way}_out" for way in WAYS)]
    prefill = prefill_errors(curve, read_prefill(data, GPUS[name]), GPUS[name])
    figures = {**summary(decode, ways), **prefill_summary(prefill)}
    report.files[f"{target}/attention.toml"] = toml_text(name, curve, figures)
    report.notes += [f"attention: {key} = {value:g}" for key, value in figures.items()]
    table, left = fit_collectives(data, GPUS[name])
    report.files[f"{target}/collectives.toml"] = collectives_toml(name, table, left)
    size = left.error.abs() * 100
    report.notes.append(f"collectives: a size left out, median {size.median():.1f} %")
    return report
