"""Consecutive rounds: the closed form for equal chances, and the expectation by chance itself."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.acceptance_renewal import renewals
from perfmodel import tokens_per_round_iid


@pytest.mark.parametrize("alpha", [0.0, 0.4, 0.9, 1.0])
def test_equal_chances_give_the_iid_formula(alpha: float) -> None:
    for found in renewals([alpha] * 64):
        expected = tokens_per_round_iid(alpha, found.gamma)
        assert found.made / found.begun == pytest.approx(expected, rel=1e-4)
        assert found.even == pytest.approx(expected, rel=1e-4)


def test_a_gamma_longer_than_the_window_has_no_rounds() -> None:
    assert [found.gamma for found in renewals([0.5] * 5)] == [2, 4]


def test_expected_rounds_are_those_of_drawn_ones() -> None:
    random = np.random.default_rng(0)
    chances = np.repeat(random.uniform(0.2, 1.0, 8), 8)  # alike for eight tokens
    (found,) = (one for one in renewals(chances.tolist()) if one.gamma == 4)
    begun = made = 0
    runs = 4000
    for _ in range(runs):
        passed, place = random.uniform(size=(64, 4)), 0
        while place <= 60:
            accepted = 0
            while accepted < 4 and passed[place, accepted] < chances[place + accepted]:
                accepted += 1
            begun, made, place = begun + 1, made + accepted + 1, place + accepted + 1
    assert found.begun == pytest.approx(begun / runs, rel=0.01)
    assert found.made == pytest.approx(made / runs, rel=0.01)
    assert found.made / found.begun < found.even
