"""Kernel curves and engine profile fitted to one GPU's measured records, as catalog files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib import resources

from calibration.fit.measured.attention import fit_attention, missing_attention
from calibration.fit.measured.collectives import (
    choice_time,
    fit_collectives,
    missing_collectives,
    rank_gap,
)
from calibration.fit.measured.engine import (
    ProfileFit,
    fit_engine,
    profile_text,
    rank_round_overhead,
    round_overhead,
    round_overhead_errors,
    speedup_error,
    with_sampling,
)
from calibration.fit.measured.gemm import fit_gemm, missing_gemm, split_by_rank
from calibration.fit.report import FitReport
from calibration.records.kernels import KernelRecords
from calibration.records.steps import StepRecord
from perfmodel import GPU, catalog
from perfmodel.catalog.kernels import efficiency
from perfmodel.kernels import AttentionCurve, GemmCurve


def fit_measured(
    records: KernelRecords,
    steps: Sequence[StepRecord] = (),
    *,
    to_tokens: Collection[str] = (),
) -> FitReport:
    """Fit everything for which there are enough records; `missing` of the report lists the rest.

    Parameters
    ----------
    steps : sequence of StepRecord
        Timed rounds of cases that validation does not use, only for the round overhead.
    to_tokens : collection of str
        Ids of cases whose verification time includes sampling; it is added to the others.
    """
    gpu = catalog.gpu(records.gpu)
    report = FitReport(gpu=gpu.name, source=records.source)
    gemm = _gemm(records, gpu, report)
    attention = _attention(records, gpu, report)
    of_ranks = _collectives(records, gpu, report)
    if attention is None:
        report.missing.append("engine: needs attention measured on this GPU")
    else:
        engine = fit_engine(records, gemm, attention, gpu)
        engine.values.update(of_ranks)
        timed = [
            step if step.case.id in to_tokens else with_sampling(step, engine.values, gpu)
            for step in steps
        ]
        _engine(engine, timed, records, gpu, report)
    return report


def _gemm(records: KernelRecords, gpu: GPU, report: FitReport) -> GemmCurve:
    """The fitted curve, or the public one if there are too few records."""
    table = efficiency(gpu.efficiency).gemm
    whole, of_ranks = split_by_rank(records.of("gemm", path="runtime"))
    about = {"source": records.source, "command": records.command}
    if missing_gemm(of_ranks) is None:
        fit = fit_gemm(of_ranks, table, gpu, **about)
        report.files[f"efficiency/{gpu.name}/gemm-specroof-ranks.toml"] = fit.toml()
        fit.errors.name = "GEMMs of ranks that share a model"
        report.errors.append(fit.errors)
    if clause := missing_gemm(whole):
        report.missing.append(clause)
        return table
    fit = fit_gemm(whole, table, gpu, **about)
    report.files[f"efficiency/{gpu.name}/gemm-specroof.toml"] = fit.toml()
    report.errors.append(fit.errors)
    return fit.curve


def _attention(records: KernelRecords, gpu: GPU, report: FitReport) -> AttentionCurve | None:
    cells, prefill = records.of("attention"), records.of("prefill_attention")
    if clause := missing_attention(cells) if cells else "attention: no record":
        report.missing.append(clause)
        return None
    if not prefill:
        report.missing.append("prefill: no chunk was timed; the public table is kept")
    fit = fit_attention(
        cells,
        efficiency(gpu.efficiency).attention,
        gpu,
        source=records.source,
        between=records.of("attention_between"),
        prefill=prefill,
    )
    report.files[f"efficiency/{gpu.name}/attention-specroof.toml"] = fit.toml()
    report.errors.append(fit.errors)
    return fit.curve


def _collectives(records: KernelRecords, gpu: GPU, report: FitReport) -> dict[str, float]:
    """The profile's values for several ranks; empty if no all-reduce was timed."""
    if clause := missing_collectives(records):
        report.missing.append(clause)
        return {}
    text, errors, exchange = fit_collectives(records, gpu)
    report.files[f"efficiency/{gpu.name}/collectives-specroof.toml"] = text
    report.errors.append(errors)
    values: dict[str, float] = {}
    if exchange is not None and (gap := rank_gap(records, exchange, gpu)) is not None:
        values["sum_gap_s"] = gap
    if choice := choice_time(records, gpu):
        values["rank_choice_s"], values["rank_choice_factor"] = choice
    return values


def _engine(
    engine: ProfileFit,
    steps: Sequence[StepRecord],
    records: KernelRecords,
    gpu: GPU,
    report: FitReport,
) -> None:
    alone = [step for step in steps if step.case.tp == 1]
    shared = [step for step in steps if step.case.tp > 1]
    overhead, rounds = round_overhead(alone), round_overhead_errors(alone)
    if not overhead:
        engine.missing.append(
            "round overhead: no timed rounds were given; the profile's value is kept"
        )
    engine.timed_tp.update(step.case.tp for step in shared)
    engine.values.update(overhead | rank_round_overhead(shared, overhead))
    if (error := speedup_error(engine.errors, rounds)) is not None:
        engine.values["speedup_error"] = error
    report.missing += engine.missing
    report.parameters = dict(engine.values)
    report.errors += [engine.errors, rounds] if overhead else [engine.errors]
    if shared:
        report.errors.append(round_overhead_errors(shared, "round overhead of several ranks"))
    shipped = resources.files("perfmodel") / "catalog" / "engines" / "specroof.toml"
    report.files["engines/specroof.toml"] = profile_text(
        shipped.read_text(encoding="utf-8"),
        engine,
        f"microbenchmarks: {records.source}",
        gpu.name,
    )
