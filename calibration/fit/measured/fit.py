"""Kernel curves and engine profile fitted to one GPU's measured records, as catalog files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import resources
from typing import Any

from calibration.fit.measured.attention import fit_attention, missing_attention
from calibration.fit.measured.collectives import (
    fit_collectives,
    missing_collectives,
    rank_gap,
)
from calibration.fit.measured.engine import (
    ProfileFit,
    fit_engine,
    layer_seconds,
    plain_host,
    profile_text,
    rank_round_overhead,
    round_overhead,
    round_overhead_errors,
    speedup_error,
)
from calibration.fit.measured.gemm import LIBRARY, fit_gemm, missing_gemm, split_by_rank
from calibration.fit.measured.steps import prompts, sums_in_steps, sustained_attention
from calibration.fit.report import FitReport
from calibration.measure.grid import TRITON_ROWS
from calibration.records.kernels import KernelRecords
from calibration.records.steps import StepRecord
from perfmodel import GPU, catalog
from perfmodel.catalog.kernels import efficiency
from perfmodel.kernels import AttentionCurve, Exchange, GemmCurve


def fit_measured(
    records: KernelRecords,
    steps: Sequence[StepRecord] = (),
    older: Sequence[StepRecord] = (),
) -> FitReport:
    """Fit everything for which there are enough records; `missing` of the report lists the rest.

    Parameters
    ----------
    steps : sequence of StepRecord
        Timed cases that validation does not use, for the round overhead; those of several ranks
        also for what an all-reduce takes longer in a step.
    older : sequence of StepRecord
        The same of an engine whose host works between all passes, for its work in a plain step. If
        `steps` has none, also for the error of rounds.
    """
    gpu = catalog.gpu(records.gpu)
    report = FitReport(gpu=gpu.name, source=records.source)
    gemm, gemm_of_ranks = _gemm(records, gpu, report)
    attention = _attention(records, gpu, report)
    exchange = _collectives(records, gpu, report)
    if attention is None:
        report.missing.append("engine: needs attention measured on this GPU")
    else:
        engine = fit_engine(records, gemm, attention, gpu)
        of_ranks = gemm
        if gemm.measured is not None and gemm_of_ranks and gemm_of_ranks.measured is not None:
            joined = gemm.measured.joined(gemm_of_ranks.measured)
            of_ranks = replace(gemm, measured=joined)
        values, kernels = engine.values, efficiency(gpu.efficiency, "specroof", "specroof")
        curves = replace(kernels, gemm=gemm, gemm_of_ranks=of_ranks, attention=attention)
        if exchange is not None:
            sums = replace(kernels.collectives, exchange=exchange)
            curves = replace(curves, collectives=sums)
            found = sums_in_steps(steps, curves, values, gpu)
            if not found:
                alone = partial(layer_seconds, values=values, gemm=of_ranks, attention=attention)
                gap = rank_gap(records, exchange, gpu, partial(alone, gpu=gpu))
                found = {} if gap is None else {"sum_gap_s": gap}
            values |= found
        longer = sustained_attention([*steps, *older], curves, values, gpu)
        values |= {} if longer is None else {"sustained_attention_factor": longer}
        values |= prompts(steps or older, curves, values, gpu)
        _engine(engine, steps, older, records, gpu, report)
    return report


def _gemm(
    records: KernelRecords, gpu: GPU, report: FitReport
) -> tuple[GemmCurve, GemmCurve | None]:
    """The fitted curve, or the public one if there are too few records, and that of ranks.

    Beyond `TRITON_ROWS` the runtime calls the library, so these times are also those of engines
    that do (`gemm-library.toml`).
    """
    table, curves = replace(efficiency(gpu.efficiency).gemm, measured=None), {}
    about: dict[str, Any] = {"source": records.source, "command": records.command}
    shapes = zip(("", "-ranks"), split_by_rank(records.of("gemm", path="runtime")), strict=True)
    for suffix, cells in shapes:
        if clause := missing_gemm(cells):
            report.missing += [] if suffix else [clause]
            continue
        fit = fit_gemm(cells, table, gpu, **about)
        report.files[f"efficiency/{gpu.name}/gemm-specroof{suffix}.toml"] = fit.toml()
        fit.errors.name = "GEMMs of ranks that share a model" if suffix else fit.errors.name
        report.errors.append(fit.errors)
        curves[suffix] = fit.curve
        of_library = [cell for cell in cells if cell["m"] > TRITON_ROWS]
        if missing_gemm(of_library) is None:
            fit = fit_gemm(of_library, table, gpu, table_rows=TRITON_ROWS, **about)
            report.files[f"efficiency/{gpu.name}/gemm-library{suffix}.toml"] = fit.toml(LIBRARY)
    return curves.get("", table), curves.get("-ranks")


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


def _collectives(records: KernelRecords, gpu: GPU, report: FitReport) -> Exchange | None:
    """The runtime's all-reduce; None if there are too few records."""
    if clause := missing_collectives(records):
        report.missing.append(clause)
        return None
    text, errors, exchange = fit_collectives(records, gpu)
    report.files[f"efficiency/{gpu.name}/collectives-specroof.toml"] = text
    report.errors.append(errors)
    return exchange


def _engine(
    engine: ProfileFit,
    steps: Sequence[StepRecord],
    older: Sequence[StepRecord],
    records: KernelRecords,
    gpu: GPU,
    report: FitReport,
) -> None:
    alone = [step for step in steps if step.case.tp == 1]
    by_hosts = [step for step in older if step.case.tp == 1]
    overhead, by_host = round_overhead(alone), round_overhead(by_hosts)
    rounds = round_overhead_errors(alone if overhead else by_hosts)
    shared = [step for step in steps if step.case.tp > 1]
    if by_host:
        engine.values.update(plain_host(by_host))
    if not overhead:
        engine.missing.append(
            "round overhead: no rounds of this engine; those of another GPU apply"
        )
    engine.timed_tp.update(step.case.tp for step in shared)
    engine.values.update(overhead | rank_round_overhead(shared, overhead))
    if (error := speedup_error(engine.errors, rounds)) is not None:
        engine.values["speedup_error"] = error
    report.missing += engine.missing
    report.parameters = dict(engine.values)
    report.errors += [engine.errors, rounds] if rounds.cells else [engine.errors]
    if shared:
        report.errors.append(
            round_overhead_errors(shared, "round overhead of several ranks", alone=overhead)
        )
    shipped = resources.files("perfmodel") / "catalog" / "engines" / "specroof.toml"
    report.files["engines/specroof.toml"] = profile_text(
        shipped.read_text(encoding="utf-8"),
        engine,
        f"microbenchmarks: {records.source}",
        gpu.name,
    )
