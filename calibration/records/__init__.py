"""What was measured, as data in one file format; published step times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibration import lazy_names

if TYPE_CHECKING:
    from calibration.records.acceptance import RecordFile as RecordFile
    from calibration.records.acceptance import RecordSet as RecordSet
    from calibration.records.acceptance import merged as merged
    from calibration.records.acceptance import read_acceptance as read_acceptance
    from calibration.records.counted import read_runs as read_runs
    from calibration.records.published import PublishedRow as PublishedRow
    from calibration.records.published import RowError as RowError
    from calibration.records.published import h200_rows as h200_rows
    from calibration.records.published import magicdec_rows as magicdec_rows
    from calibration.records.published import predict_row as predict_row
    from calibration.records.published import row_error as row_error
    from calibration.records.published import summarise as summarise
    from calibration.records.steps import read_cases as read_cases
    from calibration.records.steps import read_steps as read_steps

__getattr__ = lazy_names(
    __name__,
    acceptance=("RecordFile", "RecordSet", "merged", "read_acceptance"),
    counted=("read_runs",),
    published=(
        "PublishedRow",
        "RowError",
        "h200_rows",
        "magicdec_rows",
        "predict_row",
        "row_error",
        "summarise",
    ),
    steps=("read_cases", "read_steps"),
)
