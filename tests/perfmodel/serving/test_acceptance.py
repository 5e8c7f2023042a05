"""Drawn acceptance has the moments of the closed form for every process."""

import numpy as np
import pytest

from perfmodel import ConfigError
from perfmodel.acceptance.tokens import tokens_per_round
from perfmodel.serving import AcceptanceProcess

PROCESSES = {
    "iid": AcceptanceProcess(per_position=(0.8,)),
    "per position": AcceptanceProcess(per_position=(0.9, 0.7, 0.5)),
    "spread": AcceptanceProcess(per_position=(0.7,), spread=0.15),
    "recorded": AcceptanceProcess(recorded=(0, 0, 0, 5, 4, 5, 1, 2)),
    "none": AcceptanceProcess(per_position=(0.0,)),
    "all": AcceptanceProcess(per_position=(1.0,)),
}


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("gamma", [0, 1, 4, 7])
def test_mean_tokens_per_round(name: str, gamma: int) -> None:
    process, rng = PROCESSES[name], np.random.default_rng(0)
    traits = process.traits(rng, 40_000)
    counts = process.accepted(rng, gamma, traits, np.zeros(traits.size, np.int64))
    assert counts.min() >= 0 and counts.max() <= gamma
    error = max(float(counts.std()) / 200.0, 1e-12)
    assert abs(1.0 + counts.mean() - process.mean_tokens(gamma)) < 4.5 * error


def test_mean_tokens_are_omega_without_spread() -> None:
    assert PROCESSES["per position"].mean_tokens(3) == tokens_per_round((0.9, 0.7, 0.5), 3)


@pytest.mark.parametrize("name", PROCESSES)
def test_rounds_to_finish_agree_with_drawing_every_round(name: str) -> None:
    """Same distribution: mean and spread over many sequences agree within their errors."""
    rounds_agree(PROCESSES[name], gamma=3, most=60, size=20_000)


@pytest.mark.parametrize("name", PROCESSES)
def test_rounds_of_many_tokens_agree_with_drawing_every_round(name: str) -> None:
    rounds_agree(PROCESSES[name], gamma=4, most=30_000, size=100)


def test_a_million_tokens_take_their_mean_number_of_rounds() -> None:
    process, tokens = PROCESSES["per position"], np.array([1_000_000, 10_000_000])
    rounds = process.rounds_to_finish(np.random.default_rng(0), 3, np.zeros(2), tokens)
    assert rounds * process.mean_tokens(3) == pytest.approx(tokens, rel=5e-3)


def rounds_agree(process: AcceptanceProcess, *, gamma: int, most: int, size: int) -> None:
    rng = np.random.default_rng(1)
    traits, tokens = process.traits(rng, size), rng.integers(0, most, size)
    drawn = process.rounds_to_finish(rng, gamma, traits, tokens)
    played, left = np.zeros(size, np.int64), tokens.copy()
    while np.any(left > 0):
        gained = 1 + process.accepted(rng, gamma, traits, played)
        played += left > 0
        left -= gained
    # The same lengths and traits, so that only acceptance differs.
    error = np.std(drawn - played) / np.sqrt(size)
    assert abs(np.mean(drawn - played)) <= 4.5 * error
    assert drawn.std() == pytest.approx(played.std(), rel=0.03)
    assert np.array_equal(drawn == 0, tokens == 0)


def test_recorded_rounds_keep_their_order() -> None:
    process = AcceptanceProcess(recorded=(3, 0, 1))
    rng, traits = np.random.default_rng(0), np.array([0.0, 2.0])
    rows = [process.accepted(rng, 2, traits, np.full(2, k)).tolist() for k in range(3)]
    assert rows == [[2, 1], [0, 2], [1, 0]]


def test_a_spread_that_alpha_does_not_allow_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"use less than 0\.3"):
        AcceptanceProcess(per_position=(0.9,), spread=0.4)
    with pytest.raises(ConfigError, match="one alpha"):
        AcceptanceProcess(per_position=(0.9, 0.8), spread=0.1)
