"""Variants of a policy against its default, on the same windows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from acceptance_samples import record, view

from calibration.acceptance_ablation import ablation_rows, default_of
from calibration.acceptance_cells import cells
from calibration.acceptance_svg import budgets_svg
from runtime.bench_options import parse_options

SNAP = replace(view("snapkv", 256), snapkv_pool=1)


def test_a_difference_is_taken_window_by_window() -> None:
    odd = replace(SNAP, snapkv_pool=7)
    # Windows differ by 0.2, the variants by 0.01 on each.
    found = cells(
        record(shown, alpha=0.7 + 0.1 * index + gain, index=index)
        for shown, gain in ((SNAP, 0.0), (odd, 0.01))
        for index in range(3)
    )
    columns, rows = ablation_rows(found)
    assert columns == [("t", 2048, 256)]
    variant = rows["snapkv window 32 pool 7"][columns[0]]
    assert variant.difference == pytest.approx(0.01)
    assert variant.half_width == pytest.approx(0.0, abs=1e-9)
    default = rows["snapkv window 32 pool 1 (default)"][columns[0]]
    assert default.difference is None
    assert default.alpha == pytest.approx(0.8)


def test_windows_that_the_default_lacks_tell_nothing() -> None:
    odd = replace(SNAP, snapkv_pool=7)
    found = cells([record(SNAP, alpha=0.8, index=0), record(odd, alpha=0.9, index=1)])
    (_, rows) = ablation_rows(found)
    assert rows["snapkv window 32 pool 7"]["t", 2048, 256].difference is None


def test_the_default_is_the_runtimes() -> None:
    options = parse_options(["selfspec", "--model", "x", "--random-weights"])
    snap = default_of(replace(SNAP, snapkv_window=1, snapkv_pool=3))
    assert snap.snapkv_window == options.snapkv_window
    assert snap.snapkv_pool == options.snapkv_pool
    stream = default_of(replace(view("streamingllm", 256), sink=0, positions="relative"))
    assert (stream.sink, stream.positions) == (options.sink, "absolute")


def test_the_chart_has_a_dot_a_cell_and_a_panel_a_text_and_policy() -> None:
    shown = [view("snapkv", 64), view("snapkv", 256), view("streamingllm", 64)]
    found = cells(
        record(one, alpha=0.8, text=text, index=index)
        for one in shown
        for text in ("a", "b <c>")
        for index in range(2)
    )
    chart = budgets_svg(found, [])
    assert chart.count('r="3"') == 6
    assert "b &lt;c&gt;, snapkv" in chart
    assert chart.count('font-weight="bold"') == 4
