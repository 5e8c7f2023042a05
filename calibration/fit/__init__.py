"""Efficiency curves and engine profiles fitted to measured and published times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibration import lazy_names

if TYPE_CHECKING:
    from calibration.fit.errors import Errors as Errors
    from calibration.fit.errors import by_numbers as by_numbers
    from calibration.fit.inputs import fit_inputs as fit_inputs
    from calibration.fit.inputs import fit_public_tables as fit_public_tables
    from calibration.fit.magicdec import bare as bare
    from calibration.fit.magicdec import fit_published_engine as fit_published_engine
    from calibration.fit.magicdec import fit_rows as fit_rows
    from calibration.fit.report import FitReport as FitReport

__getattr__ = lazy_names(
    __name__,
    errors=("Errors", "by_numbers"),
    inputs=("fit_inputs", "fit_public_tables"),
    magicdec=("bare", "fit_published_engine", "fit_rows"),
    report=("FitReport",),
)
