"""Acceptance of drafts: measured on text, fitted, reported, imported from engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibration import lazy_names

if TYPE_CHECKING:
    from calibration.acceptance.cells import Cell as Cell
    from calibration.acceptance.engine_counters import import_acceptance as import_acceptance
    from calibration.acceptance.engine_counters import vllm_metrics as vllm_metrics
    from calibration.acceptance.fit import curves_text as curves_text
    from calibration.acceptance.fit import fit_records as fit_records
    from calibration.acceptance.published_fit import fit_published_curves as fit_published_curves
    from calibration.acceptance.report import AcceptanceReport as AcceptanceReport
    from calibration.acceptance.report import acceptance_report as acceptance_report
    from calibration.acceptance.report import report_dict as report_dict
    from calibration.acceptance.run import Job as Job
    from calibration.acceptance.run import check_same_tokens as check_same_tokens
    from calibration.acceptance.run import draft_views as draft_views
    from calibration.acceptance.run import exact_float32 as exact_float32
    from calibration.acceptance.run import header as header
    from calibration.acceptance.run import load_model as load_model
    from calibration.acceptance.run import read_text as read_text
    from calibration.acceptance.run import run_jobs as run_jobs
    from calibration.acceptance.run import windows_of as windows_of
    from calibration.acceptance.tables import report_lines as report_lines
    from calibration.acceptance.window import Task as Task

__getattr__ = lazy_names(
    __name__,
    cells=("Cell",),
    engine_counters=("import_acceptance", "vllm_metrics"),
    fit=("curves_text", "fit_records"),
    published_fit=("fit_published_curves",),
    report=("AcceptanceReport", "acceptance_report", "report_dict"),
    run=(
        "Job",
        "check_same_tokens",
        "draft_views",
        "exact_float32",
        "header",
        "load_model",
        "read_text",
        "run_jobs",
        "windows_of",
    ),
    tables=("report_lines",),
    window=("Task",),
)
