"""From records of one GPU to catalog files: products, attention, collectives, the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from calibration.fit_errors import Errors
from calibration.kernel_records import KernelRecords
from calibration.own_attention_fit import fit_own_attention, missing_attention
from calibration.own_collective_fit import fit_own_collectives
from calibration.own_engine_fit import (
    fit_engine,
    profile_text,
    round_overhead,
    round_overhead_errors,
    speedup_error,
    with_sampling,
)
from calibration.own_gemm_fit import fit_own_gemm, gemm_records, missing_gemm
from calibration.step_cases import StepRecord
from perfmodel import catalog, efficiency


@dataclass(eq=False, slots=True, kw_only=True)
class FitReport:
    """Files to write by their path in a catalog, errors, what was found, and what is missing."""

    gpu: str
    source: str
    files: dict[str, str] = field(default_factory=dict)
    errors: list[Errors] = field(default_factory=list)
    parameters: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report in a terminal."""
        lines = [f"{self.gpu}: {self.source}"]
        for errors in self.errors:
            lines += errors.lines()
        lines += [f"  {name} = {value:.4g}" for name, value in self.parameters.items()]
        lines += self.notes
        return lines + [f"not fitted: {clause}" for clause in self.missing]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data (docs/json.md)."""
        return {
            "gpu": self.gpu,
            "source": self.source,
            "files": sorted(self.files),
            "errors_percent": {errors.name: errors.to_dict() for errors in self.errors},
            "parameters": self.parameters,
            "notes": self.notes,
            "missing": self.missing,
        }


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


def write_files(report: FitReport, folder: Path) -> list[Path]:
    """Write a report's files under `folder`, each whole or not at all; their paths."""
    written = []
    for name, text in report.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
        written.append(path)
    return written
