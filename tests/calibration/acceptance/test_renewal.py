"""Consecutive rounds agree with the i.i.d. formula and with a simulation."""

import numpy as np
import pytest

from calibration.acceptance.renewal import expected_ratio, renewals
from perfmodel.acceptance import tokens_per_round_iid


@pytest.mark.parametrize("alpha", [0.0, 0.4, 0.9, 1.0])
def test_equal_probabilities_give_the_iid_formula(alpha: float) -> None:
    for found in renewals([alpha] * 64):
        expected = tokens_per_round_iid(alpha, found.gamma)
        assert found.made / found.begun == pytest.approx(expected, rel=1e-4)
        assert found.even == pytest.approx(expected, rel=1e-4)


def test_a_gamma_longer_than_the_window_has_no_rounds() -> None:
    assert [found.gamma for found in renewals([0.5] * 5)] == [2, 4]


def test_expected_rounds_agree_with_a_simulation() -> None:
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


def test_without_variance_the_ratio_is_one() -> None:
    still = {"lags": {1: 0.0, 2: 0.0}, "spread": 0.0}
    assert expected_ratio(4, alpha=0.8, variance=0.0, **still) == 1.0
    assert expected_ratio(4, alpha=1.0, variance=0.1, **still) == 1.0


def test_variance_between_windows_only_gives_the_harmonic_mean() -> None:
    chances = np.array([0.78, 0.82])
    tokens = np.array([float(tokens_per_round_iid(a, 4)) for a in chances])
    found = expected_ratio(4, alpha=0.8, variance=0.0, lags={1: 0.0}, spread=0.02)
    assert found == pytest.approx(1.0 / (np.mean(1.0 / tokens) * np.mean(tokens)), rel=1e-4)


@pytest.mark.parametrize(("gamma", "tolerance"), [(2, 0.002), (4, 0.002), (8, 0.01)])
def test_the_ratio_from_correlations_agrees_with_the_exact_one(
    gamma: int, tolerance: float
) -> None:
    """Compare with the ratio counted along a long autoregressive series of probabilities."""
    random, keep = np.random.default_rng(1), 0.7
    noise = random.normal(0.0, 0.12 * np.sqrt(1 - keep**2), 20_000)
    series = np.zeros(noise.size)
    for place in range(1, noise.size):
        series[place] = keep * series[place - 1] + noise[place]
    chances = np.clip(0.75 + series, 0.0, 1.0)
    centred = chances - chances.mean()
    variance = float(np.mean(centred**2))
    lags = {k: float(np.mean(centred[:-k] * centred[k:])) / variance for k in (1, 2, 4, 8, 16)}
    (along,) = (one for one in renewals(chances.tolist()) if one.gamma == gamma)
    found = expected_ratio(
        gamma, alpha=float(chances.mean()), variance=variance, lags=lags, spread=0.0
    )
    counted = along.made / along.begun / along.even
    assert counted < 0.99
    assert found == pytest.approx(counted, abs=tolerance)
