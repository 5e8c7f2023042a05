"""Time the kernels of a GPU: which cells, how one is timed, the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibration import lazy_names

if TYPE_CHECKING:
    from calibration.measure.run import chosen_groups as chosen_groups
    from calibration.measure.run import listing as listing
    from calibration.measure.run import measure_groups as measure_groups

__getattr__ = lazy_names(
    __name__,
    run=("chosen_groups", "listing", "measure_groups"),
)
