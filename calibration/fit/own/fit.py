"""From records of one GPU to catalog files: products, attention, collectives, the engine."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from calibration.fit.own.attention import fit_own_attention, missing_attention
from calibration.fit.own.collectives import fit_own_collectives
from calibration.fit.own.engine import (
    fit_engine,
    profile_text,
    round_overhead,
    round_overhead_errors,
    speedup_error,
    with_sampling,
)
from calibration.fit.own.gemm import fit_own_gemm, gemm_records, missing_gemm
from calibration.fit.report import FitReport
from calibration.records.kernels import KernelRecords
from calibration.records.steps import StepRecord
from perfmodel import catalog, efficiency


def fit_own(records: KernelRecords, steps: Sequence[StepRecord] = ()) -> FitReport:
    """Fit all that the records allow; what they do not is named in `missing`.

    Parameters
    ----------
    steps : sequence of StepRecord
        Whole rounds of cases that validation does not use: for the round's overhead alone.
    """
    gpu = catalog.gpu(records.gpu)
    library = efficiency(gpu.efficiency)
    report = FitReport(gpu=gpu.name, source=records.source)
    folder = f"efficiency/{gpu.name}"
    gemm, attention = library.gemm, None
    products = gemm_records(records)
    if clause := missing_gemm(products):
        report.missing.append(clause)
    else:
        found = fit_own_gemm(products, gemm, gpu, source=records.source, command=records.command)
        gemm = found.curve
        report.files[f"{folder}/gemm-specroof.toml"] = found.toml()
        report.errors.append(found.errors)
    cells = records.of("attention")
    if clause := missing_attention(cells) if cells else "attention: no record":
        report.missing.append(clause)
    else:
        prefill = records.of("prefill_attention")
        if not prefill:
            report.missing.append("prefill: no chunk was timed; the library's attention stays")
        own = fit_own_attention(
            cells,
            library.attention,
            gpu,
            source=records.source,
            between=records.of("attention_between"),
            prefill=prefill,
        )
        attention = own.curve
        report.files[f"{folder}/attention-specroof.toml"] = own.toml()
        report.errors.append(own.errors)
    reduces = records.of("all_reduce")
    if reduces:
        text, errors = fit_own_collectives(reduces, gpu, source=records.source)
        report.files[f"{folder}/collectives-specroof.toml"] = text
        report.errors.append(errors)
    else:
        report.missing.append("all-reduce: no record (one GPU); the table of the GPU stays")
    if attention is None:
        report.missing.append("engine: needs attention of its own")
        return report
    engine = fit_engine(records, gemm, attention, gpu)
    steps = [with_sampling(step, engine.values, gpu) for step in steps]
    overhead = round_overhead(steps)
    if not overhead:
        engine.missing.append("round overhead: no timed rounds were given; the profile's stays")
    rounds = round_overhead_errors(steps)
    engine.values.update(overhead)
    if (error := speedup_error(engine.errors, rounds)) is not None:
        engine.values["speedup_error"] = error
    report.missing += engine.missing
    report.parameters = dict(engine.values)
    report.errors += [engine.errors, rounds] if overhead else [engine.errors]
    shipped = resources.files("perfmodel") / "catalog" / "engines" / "specroof.toml"
    report.files["engines/specroof.toml"] = profile_text(
        shipped.read_text(encoding="utf-8"),
        engine,
        f"microbenchmarks: {records.source}",
        gpu.name,
    )
    return report
