"""Acceptance per position of EAGLE-3 and MTP drafts from published tokens per round."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import a_scenario

from perfmodel import catalog, estimate, parse_scenario
from perfmodel.acceptance.tokens import tokens_per_round
from perfmodel.catalog.method_acceptance import (
    conditional_rates,
    method_acceptance,
    published_lengths,
)
from perfmodel.speculation import evidence


@given(st.lists(st.floats(0.05, 0.99), min_size=1, max_size=8))
def test_rates_are_recovered_from_tokens_per_round_at_every_gamma(rates: list[float]) -> None:
    gammas = np.arange(1.0, len(rates) + 1.0)
    lengths = tokens_per_round(rates, gammas)
    assert conditional_rates(gammas, lengths) == pytest.approx(rates, abs=1e-6)


@pytest.mark.parametrize("index", range(40))
def test_rates_yield_the_published_tokens_per_round(index: int) -> None:
    """Exact if every gain is below the previous one; otherwise up to the pooled noise."""
    curve = published_lengths()[index]
    lengths = tokens_per_round(conditional_rates(curve.gamma, curve.tokens_per_round), curve.gamma)
    steps = np.diff(np.concatenate([[0.0], curve.gamma]))
    gains = np.diff(np.concatenate([[1.0], curve.tokens_per_round])) / steps
    rises = np.diff(gains)
    noise = float(np.sum(rises[rises > 0])) + max(0.0, -float(gains.min()))
    assert np.max(np.abs(lengths - curve.tokens_per_round)) <= noise + 1e-6


def test_gains_that_rise_are_averaged_and_preserve_the_last_value() -> None:
    gamma, tokens = np.array([1.0, 2.0, 3.0]), np.array([1.5, 1.6, 1.9])
    rates = conditional_rates(gamma, tokens)
    assert rates == pytest.approx([0.5, 0.4, 1.0])
    assert float(tokens_per_round(rates, 3)) == pytest.approx(1.9)


def test_a_published_target_gets_the_mean_of_its_tasks() -> None:
    acceptance = method_acceptance("llama-3.1-8b", "eagle3")
    assert (
        acceptance is not None
        and acceptance.origin == "measured"
        and "SpecForge" in acceptance.source
    )
    group = [
        c
        for c in published_lengths()
        if c.target == "llama-3.1-8b" and c.draft.endswith("8B-Instruct-SpecForge")
    ]
    mean = np.mean([c.tokens_per_round for c in group], axis=0)
    assert tokens_per_round(acceptance, np.array([3, 5, 7])) == pytest.approx(mean, abs=1e-3)
    assert acceptance.low < acceptance.alpha < acceptance.high


def test_another_target_borrows_the_mean_and_range_of_all_heads() -> None:
    acceptance = method_acceptance("qwen3-32b", "eagle3")
    assert acceptance is not None and acceptance.origin == "borrowed"
    assert "none is published for qwen3-32b" in acceptance.source
    assert 0.5 < acceptance.low < acceptance.alpha < acceptance.high < 0.95


@pytest.mark.parametrize("method", ["ngram", "suffix", "dflash", "p-eagle"])
def test_a_method_without_published_values_has_no_acceptance(method: str) -> None:
    assert method_acceptance("llama-3.1-8b", method) is None
    point = estimate(parse_scenario({"draft": method, "gamma": 3}).scenario())
    assert np.isnan(float(point.speedup)) and float(point.break_even_alpha) >= 0


def test_a_given_acceptance_overrides_the_published_one() -> None:
    scenario = parse_scenario({"draft": "eagle3", "acceptance": 0.3}).scenario()
    assert scenario.acceptance is not None and scenario.acceptance.alpha == 0.3


def test_every_curve_has_a_source_and_four_targets_are_in_the_catalog() -> None:
    known = {c.target for c in published_lengths()} & set(catalog.model_names())
    assert known == {"llama-3.1-8b", "llama-3.3-70b", "qwen3.5-397b-a17b", "kimi-k2.5"}
    assert all(c.source for c in published_lengths())


def test_a_source_in_a_sentence_names_the_project_and_no_file_of_it() -> None:
    for curve in published_lengths():
        acceptance = method_acceptance(curve.target, curve.method)
        projects = {c.source.partition(" ")[0] for c in published_lengths()}
        file = curve.source.partition(" ")[2]
        assert acceptance is not None and any(p in acceptance.source for p in projects)
        assert not file or file not in acceptance.source


@pytest.mark.parametrize(
    ("target", "draft", "origin"),
    [
        ("llama-3.1-8b", "eagle3", "measured"),
        ("meta-llama/Llama-3.1-8B-Instruct", "eagle3", "measured"),
        ("meta-llama/Llama-3.1-8B", "eagle3", "borrowed"),
        ("llama-3.1-8b", "self", "fitted"),
        ("meta-llama/Llama-3.1-8B", "self", "fitted"),
        ("meta-llama/Llama-3.1-8B-Instruct", "self", "borrowed"),
    ],
)
def test_acceptance_of_base_and_instruct_checkpoints_is_borrowed_from_each_other(
    target: str, draft: str, origin: str
) -> None:
    scenario = a_scenario(target=target, draft=draft, gamma=3, kv_budget=None, tp=1, gpu="h200")
    found = scenario.acceptance or scenario.curve
    assert found is not None and found.origin == origin
    sentence = evidence(scenario).sentence
    assert ("borrowed" in sentence) == (origin == "borrowed")
    if origin == "borrowed":
        assert ("instruct" if draft == "eagle3" else "base") in sentence
