"""The fit of the round overhead recovers a known one."""

import random
import statistics
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("scipy", reason="fitting needs the calibration extra")

from calibration.fit.errors import Errors
from calibration.fit.measured.engine import (
    LEAST_ROUNDS,
    ROUND_FIELDS,
    plain_host,
    rank_round_overhead,
    round_overhead,
    round_overhead_errors,
    round_terms,
    speedup_error,
)
from calibration.records.steps import Case, CasePlan, StepRecord
from calibration.validate.sample import SampleOptions, sample_rounds

# Fixed, per sequence and per draft step, and what a draft model adds to each.
TRUE_S = (3e-4, 5e-6, 1.5e-5, 4e-4, 2e-5, 2e-4)


def rounds(count: int, noise: float = 0.0) -> list[StepRecord]:
    """Rounds of many sizes with a known overhead, and noise relative to the round."""
    source, found = random.Random(2), []
    for index in range(count):
        batch, gamma = source.randint(1, 200), source.randint(1, 8)
        draft = source.choice(("self", "llama-3.2-1b"))
        case = Case(
            id=str(index), scenario=str(index), purpose="scenario", target="llama-3.1-8b",
            plan=CasePlan(draft=draft, policy="full", gamma=gamma, kv_budget_tokens=None),
            batch=batch, context_tokens=4096, alpha=0.8,
        )  # fmt: skip
        draft_s, verify_s = source.uniform(1e-3, 8e-3), source.uniform(2e-3, 4e-2)
        by_model = draft != "self"
        terms = (1, batch, gamma, by_model, by_model * batch, by_model * gamma)
        whole = gamma * draft_s + verify_s + float(np.dot(terms, TRUE_S))
        whole *= 1.0 + source.gauss(0.0, noise)
        times = {"target_step_s": 1e-2, "verify_s": verify_s, "draft_step_s": draft_s,
                 "round_s": whole, "host_s": 0.0}  # fmt: skip
        found.append(StepRecord(case=case, unit="s", **times))
    return found


def test_the_overhead_terms_are_recovered() -> None:
    found = round_overhead(rounds(12))
    assert list(found) == list(ROUND_FIELDS)
    assert list(found.values()) == pytest.approx(TRUE_S, rel=1e-6)


def test_what_ranks_add_is_recovered_and_the_host_of_a_plain_step_has_one_draft() -> None:
    alone, more = round_overhead(rounds(12)), np.array([1e-4, 2e-6, 3e-6])
    shared = []
    for made in rounds(12):
        plan = made.case.plan
        added = float(more @ (1, made.case.batch, plan.gamma))
        shared.append(replace(made, round_s=made.round_s + added))
    found = rank_round_overhead(shared, alone)
    assert list(found.values()) == pytest.approx(list(more), rel=1e-5)
    assert rank_round_overhead(shared, {}) == {}
    host = plain_host(alone)
    assert host["plain_host_s"] == pytest.approx(TRUE_S[0] + TRUE_S[2], rel=1e-6)
    assert host["plain_host_per_sequence_s"] == pytest.approx(TRUE_S[1], rel=1e-6)


def test_no_term_is_negative_and_too_few_rounds_give_none() -> None:
    assert min(round_overhead(rounds(8, noise=0.05)).values()) >= 0.0
    assert round_overhead(rounds(LEAST_ROUNDS - 1)) == {}
    assert round_overhead_errors(rounds(2)).cells == {}


def test_errors_of_left_out_rounds_are_at_least_those_in_sample() -> None:
    exact, noisy = (round_overhead_errors(rounds(24, noise)) for noise in (0.0, 0.03))
    assert exact.figures("a case out")["worst_percent"] < 1e-6
    inside, outside = (noisy.figures(way)["median_percent"] for way in ("in sample", "a case out"))
    assert 0.5 < inside <= outside < 6.0


def test_the_error_of_a_speedup_adds_both_passes_and_the_rounds() -> None:
    layers, between = (Errors(name, regions=lambda cell: ()) for name in ("layers", "rounds"))
    assert speedup_error(layers, between) is None
    for sign in (1.0, -1.0):
        layers.add("in sample", {}, sign * 0.02)
        between.add("a case out", {}, sign * 0.01)
    assert speedup_error(layers, between) == pytest.approx((2 * 0.02**2 + 0.01**2) ** 0.5)


def test_a_delayed_round_changes_the_fit_less_than_least_squares() -> None:
    made = rounds(16)
    late = made[4].times["round_s"] * 1.3
    held_up = [*made[:4], replace(made[4], round_s=late), *made[5:]]
    over, terms, whole = round_terms(held_up)
    plain = np.linalg.lstsq(terms / whole[:, None], over / whole, rcond=None)[0]
    robust = np.array([round_overhead(held_up)[name] for name in ROUND_FIELDS])
    typical = np.array([1.0, 16.0, 4.0, 0.0, 0.0, 0.0])  # 16 sequences and 4 drafts
    truth = typical @ TRUE_S
    assert abs(typical @ robust - truth) < 0.35 * truth
    assert abs(typical @ robust - truth) < 0.2 * abs(typical @ plain - truth)


@pytest.mark.parametrize("seed", [1003, 1004, 5])
def test_round_cases_have_uncorrelated_batch_and_gamma(seed: int) -> None:
    cases = sample_rounds(SampleOptions(seed=seed, count=12)).cases
    batches, gammas = [c.batch for c in cases], [c.plan.gamma for c in cases]
    assert (min(batches), max(batches)) == (1, 128) and set(gammas) == set(range(1, 9))
    assert abs(statistics.correlation(batches, gammas)) < 0.25
    assert max(c.context_tokens for c in cases) <= 2048
    assert cases == sample_rounds(SampleOptions(seed=seed, count=12)).cases
