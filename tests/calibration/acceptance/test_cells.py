"""Cells give rates, intervals and tokens per round from sums over windows."""

from dataclasses import replace

import numpy as np
import pytest
from acceptance_samples import GAMMA, record, view

from calibration.acceptance.cells import cells
from calibration.acceptance.renewal import renewals
from perfmodel.acceptance import tokens_per_round_iid

SHOWN = view("streamingllm", 64)


def test_independent_positions_give_the_iid_formula() -> None:
    (cell,) = cells([record(SHOWN, alpha=0.8, index=i) for i in range(5)])
    for gamma in range(GAMMA + 1):
        expected = float(tokens_per_round_iid(0.8, gamma))
        for read in (cell.tokens_iid, cell.tokens_chained, cell.tokens_weighted):
            assert read(gamma) == pytest.approx(expected)
    assert cell.effective_alpha(4) == pytest.approx(0.8)
    assert cell.conditional == pytest.approx(np.full(GAMMA, 0.8))
    assert cell.interval() == pytest.approx((0.8, 0.8))
    assert cell.lag_correlations[0] == pytest.approx(0.2)


def test_consecutive_rounds_start_more_often_after_rejections() -> None:
    """Two windows of 32 tokens with constant acceptance: the pooled mean is the harmonic mean."""
    chances = (0.5, 1.0)
    found = [
        replace(record(SHOWN, alpha=a, index=i), renewal=renewals([a] * 32))
        for i, a in enumerate(chances)
    ]
    (cell,) = cells(found)
    slow, fast = (float(tokens_per_round_iid(a, 4)) for a in chances)
    begun = 29 / slow, 29 / fast  # of the 29 places that a round of 4 may begin at
    assert cell.tokens_consecutive(4) == pytest.approx(2 / (1 / slow + 1 / fast), rel=0.02)
    assert cell.tokens_consecutive(4) == pytest.approx(58 / sum(begun), rel=0.02)
    assert cell.tokens_chained(4) == pytest.approx((slow + fast) / 2)
    assert cell.consecutive_ratio(0) == 1.0


def test_records_without_consecutive_rounds_use_their_correlations() -> None:
    plain = [replace(record(SHOWN, alpha=0.8, index=i), renewal=()) for i in range(4)]
    still = [replace(one, variance=0.0, lags=(0.0,) * 5) for one in plain]
    assert cells(still)[0].consecutive_ratio(4) == 1.0
    assert 0.98 < cells(plain)[0].consecutive_ratio(4) < 1.0
    told = [*plain[:3], record(SHOWN, alpha=0.8, index=3)]  # one that tells: equal chances
    assert cells(told)[0].consecutive_ratio(4) == pytest.approx(1.0, abs=1e-4)


def test_windows_that_differ_raise_tokens_per_round_above_iid() -> None:
    (cell,) = cells([record(SHOWN, alpha=a, index=i) for i, a in enumerate((0.6, 1.0))])
    assert cell.alpha == pytest.approx(0.8)
    assert cell.tokens_chained(8) > cell.tokens_iid(8)
    assert cell.window_spread > 0.2


def test_the_bootstrap_interval_is_that_of_a_mean() -> None:
    drawn = np.random.default_rng(0).normal(0.8, 0.05, 64)
    (cell,) = cells([record(SHOWN, alpha=float(a), index=i) for i, a in enumerate(drawn)])
    assert cell.standard_error() == pytest.approx(drawn.std() / 8, rel=0.1)
    low, high = cell.interval()
    assert (high - low) / 2 == pytest.approx(1.644854 * drawn.std() / 8, rel=0.15)
    assert low < drawn.mean() < high


def test_cells_differ_by_text_context_and_view() -> None:
    found = cells(
        [
            record(SHOWN, alpha=0.8),
            record(SHOWN, alpha=0.8, text="u"),
            record(SHOWN, alpha=0.8, context=4096),
            record(view("streamingllm", 128), alpha=0.9),
        ]
    )
    assert len(found) == 4 and {cell.windows for cell in found} == {1}


def test_a_cell_can_be_restricted_to_some_windows() -> None:
    (cell,) = cells([record(SHOWN, alpha=a, index=i) for i, a in enumerate((0.6, 1.0))])
    part = cell.only([1])
    assert part is not None and part.alpha == pytest.approx(1.0)
    assert cell.only([7]) is None
