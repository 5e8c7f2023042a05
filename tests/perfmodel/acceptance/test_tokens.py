"""Tokens per round: identities, the inverse, and agreement with a simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel.acceptance.tokens import (
    Acceptance,
    accepted_distribution,
    alpha_for_tokens_per_round,
    tokens_per_round,
    tokens_per_round_iid,
)
from perfmodel.errors import ConfigError

alphas = st.floats(0.0, 1.0)
gammas = st.integers(0, 24)
vectors = st.lists(alphas, min_size=1, max_size=8)


@given(gamma=gammas)
def test_no_acceptance_yields_one_token_and_full_acceptance_gamma_plus_one(gamma: int) -> None:
    assert tokens_per_round_iid(0.0, gamma) == 1.0
    assert tokens_per_round_iid(1.0, gamma) == gamma + 1
    assert tokens_per_round((0.0,), gamma) == 1.0
    assert tokens_per_round((1.0,), gamma) == gamma + 1


@given(alpha=alphas)
def test_gamma_zero_yields_exactly_one_token(alpha: float) -> None:
    assert tokens_per_round_iid(alpha, 0) == 1.0
    assert tokens_per_round((alpha,), 0) == 1.0


@given(alpha=st.floats(0.0, 0.999), gamma=gammas)
def test_tokens_per_round_is_the_geometric_sum(alpha: float, gamma: int) -> None:
    closed = (1.0 - alpha ** (gamma + 1)) / (1.0 - alpha)
    assert tokens_per_round_iid(alpha, gamma) == pytest.approx(closed, rel=1e-11)
    assert tokens_per_round((alpha,), gamma) == pytest.approx(closed, rel=1e-11)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-9, 1e-12, 1e-15])
def test_tokens_per_round_stays_accurate_just_below_one(gap: float) -> None:
    alpha = 1.0 - gap
    expected = math.fsum(alpha**k for k in range(9))
    assert tokens_per_round_iid(alpha, 8) == pytest.approx(expected, rel=1e-15)


@given(values=vectors, gamma=gammas)
def test_per_position_sum_equals_the_loop_with_the_last_value_repeated(
    values: list[float], gamma: int
) -> None:
    total, reached = 1.0, 1.0
    for i in range(gamma):
        reached *= values[min(i, len(values) - 1)]
        total += reached
    assert tokens_per_round(values, gamma) == pytest.approx(total, rel=1e-13)


@given(values=vectors, gamma=gammas)
def test_distribution_sums_to_one_and_its_mean_plus_one_is_omega(
    values: list[float], gamma: int
) -> None:
    chances = accepted_distribution(values, gamma)
    assert chances.shape == (gamma + 1,)
    assert (chances >= 0).all()
    assert chances.sum() == pytest.approx(1.0, abs=1e-12)
    mean = float(chances @ np.arange(gamma + 1))
    assert mean + 1.0 == pytest.approx(float(tokens_per_round(values, gamma)), rel=1e-12)


def test_a_seeded_simulation_of_accept_and_reject_agrees() -> None:
    values, gamma, rounds = np.array([0.9, 0.8, 0.7, 0.7, 0.7]), 5, 200_000
    drawn = np.random.default_rng(20240820).random((rounds, gamma)) < values
    accepted = np.cumprod(drawn, axis=1).sum(axis=1)
    acceptance = Acceptance.from_per_position((0.9, 0.8, 0.7))
    standard_error = accepted.std() / math.sqrt(rounds)
    expected = float(tokens_per_round(acceptance, gamma))
    assert abs(accepted.mean() + 1.0 - expected) < 4 * standard_error
    # Negative control: the same simulation tells a value apart that is off by 0.02 in alpha.
    wrong = float(tokens_per_round(acceptance.shifted(0.02), gamma))
    assert abs(accepted.mean() + 1.0 - wrong) > 4 * standard_error
    observed = np.bincount(accepted, minlength=gamma + 1) / rounds
    assert np.abs(observed - accepted_distribution(acceptance, gamma)).max() < 0.005


@given(a=alphas, b=alphas, gamma=gammas)
def test_omega_never_falls_as_alpha_or_gamma_grows(a: float, b: float, gamma: int) -> None:
    low, high = sorted((a, b))
    assert tokens_per_round_iid(low, gamma) <= tokens_per_round_iid(high, gamma)
    assert tokens_per_round_iid(a, gamma) <= tokens_per_round_iid(a, gamma + 1)


@settings(max_examples=30)
@given(values=st.lists(alphas, min_size=1, max_size=4), counts=st.lists(gammas, min_size=1))
def test_a_vectorised_call_equals_the_scalar_calls(values: list[float], counts: list[int]) -> None:
    grid = tokens_per_round_iid(np.array(values)[:, None], np.array(counts, dtype=float))
    loop = [[float(tokens_per_round_iid(v, g)) for g in counts] for v in values]
    assert grid.tolist() == loop
    row = tokens_per_round(values, counts)
    assert row.tolist() == [float(tokens_per_round(values, g)) for g in counts]
    solved = alpha_for_tokens_per_round(grid, np.array(counts))
    single = [[float(alpha_for_tokens_per_round(w, g)) for w, g in zip(r, counts, strict=True)]
              for r in loop]  # fmt: skip
    np.testing.assert_allclose(solved, single, rtol=1e-12, atol=1e-14)


def test_gamma_of_any_shape_keeps_its_shape() -> None:
    assert tokens_per_round((0.8,), np.ones((2, 3, 4))).shape == (2, 3, 4)
    assert tokens_per_round_iid(np.full((3, 1), 0.5), np.arange(5)).shape == (3, 5)
    assert tokens_per_round_iid(np.full((2, 1, 2), 0.5), np.arange(6).reshape(3, 2)).shape == (
        2,
        3,
        2,
    )


@given(alpha=alphas, gamma=st.integers(1, 24))
def test_every_conversion_round_trips(alpha: float, gamma: int) -> None:
    tokens = float(tokens_per_round(Acceptance.from_alpha(alpha), gamma))
    for made in (
        Acceptance.from_tokens_per_round(tokens, gamma),
        Acceptance.from_accepted_drafts(tokens - 1.0, gamma),
        Acceptance.from_accepted_fraction(min(1.0, (tokens - 1.0) / gamma), gamma),
    ):
        assert made.alpha == pytest.approx(alpha, abs=1e-12)


@given(tokens=st.floats(1.0, 25.0), gamma=st.integers(1, 24))
def test_the_inverse_yields_the_given_tokens(tokens: float, gamma: int) -> None:
    alpha = float(alpha_for_tokens_per_round(tokens, gamma))
    if tokens > gamma + 1:
        assert alpha == math.inf
    else:
        assert tokens_per_round_iid(alpha, gamma) == pytest.approx(tokens, rel=1e-12)


def test_tokens_out_of_reach_need_infinite_alpha_and_one_token_needs_none() -> None:
    solved = alpha_for_tokens_per_round([0.5, 1.0, 4.0, 4.001, np.nan], 3)
    np.testing.assert_array_equal(solved, [0.0, 0.0, 1.0, np.inf, np.nan])
    np.testing.assert_array_equal(alpha_for_tokens_per_round([1.0, 1.1], 0), [0.0, np.inf])


def test_two_drafts_invert_by_the_quadratic_formula() -> None:
    # MagicDec, table 3b, 4,000 tokens, batch 32: 2.56 tokens per round at gamma 2.
    expected = (-1.0 + math.sqrt(1.0 + 4.0 * 1.56)) / 2.0
    assert Acceptance.from_tokens_per_round(2.56, 2).alpha == pytest.approx(expected, rel=1e-14)


def test_alpha_exceeds_the_accepted_fraction_once_gamma_exceeds_one() -> None:
    assert Acceptance.from_accepted_fraction(0.8, 1).alpha == pytest.approx(0.8)
    assert Acceptance.from_accepted_fraction(0.8, 4).alpha > 0.85


def test_shifting_moves_every_position_and_clips() -> None:
    moved = Acceptance.from_per_position((0.95, 0.5)).shifted(0.1)
    assert moved.per_position == (1.0, 0.6)
    assert moved.low == moved.alpha == moved.high == pytest.approx(0.8)
    assert Acceptance.from_alpha(0.05).shifted(-0.1).alpha == 0.0


def test_an_acceptance_hashes_and_keeps_its_interval() -> None:
    one = Acceptance.from_alpha(0.8, low=0.75, high=0.85, origin="fitted", source="PG-19")
    assert (one.low, one.high) == (0.75, 0.85)
    assert len({one, Acceptance.from_alpha(0.8), Acceptance.from_alpha(0.8)}) == 2


@pytest.mark.parametrize("alpha", [math.nan, -0.01, 1.01, math.inf])
def test_alpha_outside_zero_to_one_is_refused(alpha: float) -> None:
    for call in (
        lambda: Acceptance.from_alpha(alpha),
        lambda: Acceptance.from_per_position((0.5, alpha)),
        lambda: Acceptance.from_accepted_fraction(alpha, 3),
        lambda: tokens_per_round_iid([0.5, alpha], 2),
        lambda: tokens_per_round((alpha,), 2),
    ):
        with pytest.raises(ConfigError, match="0 to 1") as refused:
            call()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("gamma", [-1, 1.5, math.nan, math.inf, 10**9])
def test_a_gamma_that_is_not_a_count_is_refused(gamma: float) -> None:
    for call in (
        lambda: tokens_per_round((0.8,), gamma),
        lambda: tokens_per_round_iid(0.8, gamma),
        lambda: alpha_for_tokens_per_round(2.0, gamma),
    ):
        with pytest.raises(ConfigError, match="whole number"):
            call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: Acceptance.from_tokens_per_round(0.99, 3),
        lambda: Acceptance.from_tokens_per_round(4.01, 3),
        lambda: Acceptance.from_tokens_per_round(math.nan, 3),
        lambda: Acceptance.from_tokens_per_round(1.0, 0),
        lambda: Acceptance.from_accepted_drafts(3.1, 3),
        lambda: Acceptance.from_accepted_drafts(-0.1, 3),
        lambda: Acceptance.from_per_position(()),
        lambda: Acceptance.from_alpha(0.8, low=0.85, high=0.9),
        lambda: tokens_per_round((), 2),
    ],
)
def test_impossible_input_is_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError):
        call()
