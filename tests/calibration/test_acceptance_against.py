"""Two files of the same windows are compared window by window."""

from __future__ import annotations

from dataclasses import replace

import pytest
from acceptance_samples import record, view

from calibration.acceptance_against import cell_gaps, gap_lines
from calibration.acceptance_cells import cells

SHOWN = view("snapkv", 64)


def test_the_gap_is_taken_on_the_windows_that_both_have() -> None:
    here = cells(record(SHOWN, alpha=0.5 + 0.1 * i, index=i) for i in range(4))
    there = cells(record(SHOWN, alpha=0.49 + 0.1 * i, index=i) for i in (1, 2))
    (gap,) = cell_gaps(here, there)
    assert gap.windows == 2 and gap.alpha == pytest.approx(0.65)
    assert gap.difference == pytest.approx(0.01)
    assert gap.half_width == pytest.approx(0.0, abs=1e-9)
    assert gap_lines([gap], what="x")[-1].split(" | ")[3:] == ["2", "+0.0100 ±0.0000 |"]


def test_cells_that_only_one_file_has_are_left_out() -> None:
    here = cells([record(SHOWN, alpha=0.5)])
    assert cell_gaps(here, cells([record(view("snapkv", 128), alpha=0.5)])) == []
    assert cell_gaps(here, cells([record(SHOWN, alpha=0.5, index=9)])) == []


def test_another_setting_is_compared_where_the_file_has_only_one() -> None:
    here = cells([record(SHOWN, alpha=0.5)])
    odd = [replace(SHOWN, snapkv_pool=pool) for pool in (7, 9)]
    (gap,) = cell_gaps(here, cells([record(odd[0], alpha=0.4)]))
    assert gap.difference == pytest.approx(0.1) and gap.key.view == SHOWN
    assert cell_gaps(here, cells([record(one, alpha=0.4) for one in odd])) == []
