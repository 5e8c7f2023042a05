"""A fitted engine profile as a catalog file, which `--engine` reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from calibration.engines.fitting.errors import fit_errors
from calibration.engines.report import EngineReport
from calibration.fit.magicdec import fit_rows
from calibration.records.published import PublishedRow
from calibration.records.toml_file import significant, toml_text, with_table
from perfmodel import catalog
from perfmodel.catalog.engines import engine_profile
from perfmodel.specs import EngineProfile, HostCosts
from perfmodel.speculation import OTHER_HOST_ERROR
from perfmodel.units import GB, US

NOTE = "Written by `specroof calibrate engine`."


def profile_text(report: EngineReport, shipped: str | None = None) -> str:
    """The catalog file of the profile, whose keys state their units.

    Parameters
    ----------
    shipped : str, optional
        The text of an existing file, of which only the table `[gpu.NAME]` is replaced.
    """
    timed = [error.record.point.setup for error in (*report.fitted, *report.held_back.errors)]
    of_gpu, of_host = _standard_errors(report)
    values = _entries(report.fit.profile)
    values |= {"speedup_error": significant(of_gpu, 3), "host_error": significant(of_host, 3)}
    values["timed_tp"] = sorted({setup.tp for setup in timed}) or [1]
    targets = {setup.target for setup in timed}
    if len(targets) == 1:  # no other one checks the fit
        values["timed_targets"] = sorted(targets)
    if shipped is None:
        general = {"name": report.name, **values, "origin": "assumed"}
        general.pop("attention_tail_share", None)  # of one kernel on one architecture
        header = f"{NOTE}\nValues for GPUs that were not measured; [gpu.NAME] overrides them."
        shipped = toml_text(general, header=header)
    return with_table(shipped, "gpu", report.gpu, values, note=_note(report))


def _standard_errors(report: EngineReport) -> tuple[float, float]:
    """The `speedup_error` and `host_error` of a profile.

    If too few points are held back, those of all points, which were fitted, say too little: the
    errors are then at least those of the kernels alone and of another machine's host.
    """
    profile, every = report.fit.profile, (*report.fitted, *report.held_back.errors)
    if report.validating:
        return fit_errors(report.validating, profile, report.gpu)
    of_gpu, of_host = fit_errors([error.record for error in every], profile, report.gpu)
    kernels = engine_profile("kernels", catalog.gpu(report.gpu))
    return max(of_gpu, kernels.speedup_error), max(of_host, OTHER_HOST_ERROR)


def _note(report: EngineReport) -> str:
    """What wrote a profile, and which of its host times and factors no point determined."""
    fit, clauses = report.fit, [NOTE[:-1]]
    of_host = [f"{t.method} {t.field}".strip() for t in fit.unresolved if t.is_host]
    if assumed := ", ".join([*of_host, *fit.not_timed]):
        usual = f"as in {fit.stand_in}, or the most that none sees"
        clauses.append(f"no point depended on {assumed}: {usual}")
    if others := [t.field for t in fit.unresolved if not t.is_host]:
        clauses.append(f"no point depended on {', '.join(others)}, whose values are the usual ones")
    if not report.validating:
        clauses.append("too few points were held back to validate it")
    return "; ".join(clauses) + "."


def refitted_text(rows: Sequence[PublishedRow], *, name: str) -> str:
    """The engine profile of the first row, refitted to all rows, as a file for `--engine`.

    Its `speedup_error` remains that of the profile, because no row was held back.
    """
    fit = fit_rows(rows)
    profile = fit.apply(engine_profile(rows[0].engine, catalog.gpu(rows[0].gpu)))
    entries = {"name": name} | _entries(profile)
    host = entries.pop("host")
    entries |= {
        "origin": "fitted",
        "source": f"{len(rows)} rows of {rows[0].gpu}, starting from engine {rows[0].engine}",
        "measured_on": fit.gpu,
        "timed_tp": list(fit.tp),
        "timed_targets": list(fit.targets),
        "speedup_error": profile.speedup_error,
    }
    entries |= {"host": host} if host else {}
    return toml_text(entries, header="Engine profile refitted to measured step times")


_STATED_APART = (
    "default_graphs", "name", "measured_on", "timed_tp", "timed_targets", "host", "speedup_error",
)  # fmt: skip


def _entries(profile: EngineProfile) -> dict[str, Any]:
    """The fields that differ from their defaults, by catalog key and in its unit."""
    plain = {f.name: f.default for f in fields(EngineProfile)}
    shown: dict[str, Any] = {}
    for name in (f.name for f in fields(EngineProfile)):
        value = getattr(profile, name)
        if name in _STATED_APART or value == plain[name]:
            continue
        shown |= _keyed(name, value)
    shown["reserved_GB"] = significant(profile.reserved_bytes / GB, 4)
    shown["host"] = [
        {
            key: value
            for f in fields(HostCosts)
            if f.name == "method" or getattr(costs, f.name) != f.default
            for key, value in _keyed(f.name, getattr(costs, f.name)).items()
        }
        for costs in profile.host
    ]
    return shown


def _keyed(name: str, value: Any) -> dict[str, Any]:
    if name.endswith("_s"):
        return {f"{name.removesuffix('_s')}_us": significant(value / US, 5)}
    if name.endswith("_bytes"):
        return {f"{name.removesuffix('_bytes')}_GB": significant(value / GB, 4)}
    if isinstance(value, float):
        return {name: significant(value, 5)}
    return {name: str(value) if isinstance(value, str) else value}
