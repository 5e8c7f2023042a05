"""Break-even points and γ over batch and context agree with direct evaluation."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from strategies import a_scenario, with_acceptance

from perfmodel import Scenario, estimate, without_speculation
from perfmodel.speculation import (
    BreakEven,
    End,
    best_gain,
    break_even_alpha,
    break_even_batch,
    break_even_context,
    gamma_schedule,
    service,
    service_gain,
)
from perfmodel.speculation.paying_ranges import paying_ranges

# Decoding alone, on a pool of its own.
APART: dict[str, Any] = {"prefill": "disaggregated"}
LONG: dict[str, Any] = {
    "draft": "self", "gpu": "h100-sxm", "tp": 4, "prompt_tokens": 32_000, "engine": "magicdec",
}  # fmt: skip
SHORT: dict[str, Any] = {"draft": "llama-3.2-1b", "gpu": "l40", "prompt_tokens": 512}
SCHEDULED = (
    {"draft": "self", "gpu": "a100-sxm-80gb", "tp": 8, "engine": "magicdec", **APART},
    {"draft": "llama-3.2-1b", "draft_policy": "streamingllm", "gpu": "l40s", "tp": 8},
    {
        "draft": "self",
        "draft_policy": "snapkv",
        "kv_budget": 16_384,
        "gpu": "l40",
        "tp": 2,
        **APART,
    },
)


def best(scenario: Scenario, batch: float, context: float) -> tuple[bool, int]:
    """Whether the gain is clear at the best γ, and that γ, one service at a time; -1 if none is.

    The best γ is the smallest within 1 % of the highest throughput or, if its gain is not clear,
    the fastest smaller one whose gain is.
    """
    work = replace(scenario.workload, batch=int(batch), prompt_tokens=int(context))
    budget = scenario.plan.kv_budget_tokens
    if budget is not None:
        budget = min(budget, int(context))
    rates, plans = {}, {}
    for gamma in range(1, 17):
        plan = replace(scenario.plan, gamma=gamma, kv_budget_tokens=budget)
        plans[gamma] = replace(scenario, workload=work, plan=plan)
        result = service(plans[gamma])
        whole = plan.is_self and budget is not None and budget >= context
        if bool(result.feasible) and not whole:
            rates[gamma] = float(result.requests_per_s)
    if not rates:
        return False, -1
    first = min(g for g, rate in rates.items() if rate * 1.01 >= max(rates.values()))
    smaller = sorted((g for g in rates if g < first), key=lambda g: -rates[g])
    for gamma in (first, *smaller):
        gain = service_gain(plans[gamma])
        if gain.is_clear:
            return True, gamma
        if gain.value <= 1.0:
            break
    return False, first


def test_speculation_pays_from_the_break_even_batch() -> None:
    scenario = a_scenario(**LONG, **APART, batch=64)
    result = break_even_batch(scenario)
    assert result.from_value is not None and result.from_value > result.lowest == 1
    assert result.until is None and result.contains(64)
    at = scenario.workload.prompt_tokens
    assert best(scenario, result.from_value, at)[0]
    assert not best(scenario, result.from_value - 1, at)[0]
    for batch in (2 * result.from_value, 64):
        assert best(scenario, batch, at)[0]


def test_speculation_pays_from_the_break_even_context() -> None:
    """Contexts are looked at in steps of about 3 %."""
    scenario = a_scenario(**LONG, **APART, batch=16)
    result = break_even_context(scenario)
    assert result.from_value is not None and result.from_value > result.lowest
    assert best(scenario, 16, result.from_value)[0]
    assert not best(scenario, 16, result.from_value / 1.04)[0]
    assert best(scenario, 16, 2 * result.from_value)[0]


def test_speculation_that_pays_only_at_small_batches_has_an_end() -> None:
    """Short contexts: a small batch is bound by weights, a large one by compute."""
    scenario = a_scenario(**SHORT, batch=1)
    result = break_even_batch(scenario)
    assert result.from_value == 1
    assert result.until is not None and 1 <= result.until < 256
    assert best(scenario, 1, 512)[0]
    assert best(scenario, result.until, 512)[0]
    assert not best(scenario, result.until + 1, 512)[0]


def test_prompts_on_the_same_gpus_raise_the_break_even_batch() -> None:
    shared, apart = (break_even_batch(a_scenario(**LONG, **p, batch=64)) for p in ({}, APART))
    assert shared.from_value is not None and apart.from_value is not None
    assert shared.from_value > apart.from_value


def test_speculation_that_never_pays_has_no_break_even() -> None:
    """A draft that reads the whole cache of its own target is not a plan."""
    scenario = a_scenario(draft="self", draft_policy="full", batch=8)
    assert break_even_batch(scenario).from_value is None
    assert break_even_context(scenario).from_value is None
    schedule = gamma_schedule(scenario)
    assert {gamma for row in schedule.gamma for gamma in row} <= {0, -1}


def test_speculation_that_always_pays_starts_at_the_lowest_value() -> None:
    scenario = a_scenario(
        target="llama-2-7b-32k", draft="tinyllama-1.1b", draft_tp=4, tp=8, gpu="a100-sxm-80gb",
        prompt_tokens=16_000, batch=64, engine="magicdec", acceptance=0.9,
        **APART,
    )  # fmt: skip
    result = break_even_batch(scenario)
    assert (result.from_value, result.lowest, result.until) == (1, 1, None)


@pytest.mark.parametrize("prefill", ["shared", "disaggregated"])
def test_the_gain_at_the_break_even_alpha_is_one(prefill: str) -> None:
    scenario = a_scenario(**LONG, batch=64, gamma=3, prefill=prefill)
    alpha = break_even_alpha(scenario)
    assert 0.0 < alpha < 1.0
    gain = service_gain(with_acceptance(scenario, alpha)).value
    assert float(gain) == pytest.approx(1.0, abs=1e-5)


def test_a_gain_stays_clear_where_a_larger_gamma_is_only_a_little_faster() -> None:
    """Its interval is wider: at batch 8 here, γ=2 is faster than γ=1, but not clearly."""
    scenario = a_scenario(
        target="mistral-7b-v0.3", gpu="h100-sxm", tp=2, prompt_tokens=32_768, output_tokens=64,
        draft="self", kv_budget=256, prefix_hit_rate=0.95, **APART,
    )  # fmt: skip
    batches = np.arange(2.0, 14.0)
    found = best_gain(scenario, batch=batches, prompt_tokens=np.asarray(32_768.0))
    chosen = [best(scenario, batch, 32_768) for batch in batches]
    assert list(zip(found.pays, found.gamma, strict=True)) == chosen
    assert np.count_nonzero(np.diff(found.pays)) == 1 and found.pays[-1]
    changed = found.gamma < found.plateau
    assert np.any(changed) and np.all(found.pays[changed])
    assert np.array_equal(found.near[changed].sum(axis=-1), np.ones(changed.sum()))


# ---- ranges -----------------------------------------------------------------------------------

ASKED: tuple[dict[str, Any], ...] = (
    {"target": "qwen3-30b-a3b", "gpu": "a100-sxm-80gb", "draft": "eagle3", "prompt_tokens": 4000},
    {"target": "llama-3.1-8b", "gpu": "l4", "tp": 8, "draft": "eagle3", "prompt_tokens": 2000},
    {"target": "deepseek-v2-lite", "gpu": "a100-sxm-80gb", "draft": "mtp", "acceptance": 0.9},
    {"target": "llama-3.2-1b", "gpu": "h100-sxm", "draft": "eagle3", "prompt_tokens": 512},
)


@pytest.mark.parametrize("values", ASKED)
def test_the_break_even_batch_does_not_depend_on_the_batch_or_gamma_asked(
    values: dict[str, Any],
) -> None:
    """With experts, over PCIe, with latent attention, and where more than 256 requests fit."""
    asked = [a_scenario(**values, batch=b, gamma=g) for b, g in ((1, 1), (7, 5), (300, 3))]
    first, *others = [break_even_batch(scenario) for scenario in asked]
    assert all(other == first for other in others)
    assert first.exact and first.from_value is not None
    for scenario in asked:
        batch = scenario.workload.batch
        at = best_gain(scenario, batch=np.array(float(batch)), prompt_tokens=prompt_of(scenario))
        assert first.contains(batch) == bool(at.pays)


def prompt_of(scenario: Scenario) -> np.ndarray[Any, Any]:
    return np.array(float(scenario.workload.prompt_tokens))


def ranges_of(pays: str, possible: str = "", fits: str = "") -> BreakEven:
    """From strings of 0 and 1, one for each value from 1."""
    flags = [np.array([c == "1" for c in text or "1" * len(pays)]) for text in (possible, fits)]
    clear = np.array([c == "1" for c in pays])
    values = np.arange(1.0, len(pays) + 1.0)
    return paying_ranges(values, pays=clear, clear=clear, possible=flags[0], fits=flags[1])


def test_ranges_and_gaps_narrower_than_the_resolution_are_not_stated() -> None:
    """Up to a quarter of the value is narrow: one batch is at 51, but not at 2."""
    sliver = ranges_of("0" * 50 + "1" + "0" * 50)
    assert sliver.exact == ((51, 51),) and sliver.ranges == ()
    assert sliver.contains(51) and sliver.is_exception(51) and not sliver.is_exception(52)
    assert sliver.from_value is sliver.until is None
    assert sliver.where("batch", 3) != ranges_of("0" * 101).where("batch", 3)
    gap = ranges_of("0" * 20 + "1" * 30 + "0" + "1" * 49)
    assert gap.ranges == ((21, 100),) and gap.exact == ((21, 50), (52, 100))
    assert gap.is_exception(51) and not gap.contains(51) and gap.contains(52)
    small = ranges_of("0100110000")
    assert small.exact == small.ranges == ((2, 2), (5, 6))
    assert (small.from_value, small.until) == (2, 2)


@pytest.mark.parametrize(
    ("pays", "possible", "fits", "end", "until"),
    [
        ("01110", "11110", "11110", End.MEMORY, None),
        ("01110", "11110", "11111", End.LIMITS, 4),
        ("01110", "11111", "11111", End.GAIN, 4),
        ("01111", "11111", "11111", End.TRIED, None),
    ],
)
def test_a_range_says_why_it_ends(
    pays: str, possible: str, fits: str, end: End, until: int | None
) -> None:
    found = ranges_of(pays, possible, fits)
    assert (found.from_value, found.until, found.end) == (2, until, end)
    assert found.contains(10) == (end is End.TRIED)


# ---- the γ schedule ---------------------------------------------------------------------------


@pytest.mark.parametrize("values", SCHEDULED)
def test_every_entry_of_the_schedule_is_the_best_gamma_of_a_direct_loop(
    values: dict[str, Any],
) -> None:
    scenario = a_scenario(**values)
    schedule = gamma_schedule(scenario)
    seen = set()
    for row, batch in list(enumerate(schedule.batches))[::3]:
        for column, context in list(enumerate(schedule.contexts))[::2]:
            pays, gamma = best(scenario, batch, context)
            if pays and schedule.gamma[row][column] > gamma:  # not below that of its left neighbour
                assert schedule.gamma[row][column] == schedule.gamma[row][column - 1]
                continue
            if not pays:
                plain = estimate(without_speculation(scenario), batch=batch, prompt_tokens=context)
                gamma = 0 if plain.feasible else -1
            assert schedule.gamma[row][column] == gamma, (batch, context)
            seen.add(gamma)
    assert len(seen) > 1


@pytest.mark.parametrize("values", SCHEDULED)
def test_ranges_cover_every_batch_that_fits_without_gaps(values: dict[str, Any]) -> None:
    schedule = gamma_schedule(a_scenario(**values))
    for column, context in enumerate(schedule.contexts):
        ranges = schedule.ranges(context)
        fitting = [
            (b, g[column]) for b, g in zip(schedule.batches, schedule.gamma, strict=True)
            if g[column] >= 0
        ]  # fmt: skip
        assert bool(ranges) == bool(fitting)
        if not ranges:
            continue
        assert ranges[0][0] == 1 and ranges[-1][1] == fitting[-1][0]
        for (_, last, before), (first, _, after) in pairwise(ranges):
            assert first == last + 1 and before != after
        for batch, gamma in fitting:
            assert [g for low, high, g in ranges if low <= batch <= high] == [gamma]


def test_ranges_are_those_of_the_nearest_context() -> None:
    schedule = gamma_schedule(a_scenario(**LONG))
    assert schedule.ranges(30_000) == schedule.ranges(32_768)
    assert schedule.ranges(1) == schedule.ranges(1024)


def test_the_schedule_speculates_more_as_context_grows_at_a_large_batch() -> None:
    schedule = gamma_schedule(a_scenario(**LONG, **APART))
    row = np.array(schedule.gamma[schedule.batches.index(32)])
    fitting = row[row >= 0]
    assert fitting[0] == 0 and fitting[-1] >= 2


@pytest.mark.parametrize("gpu", ["a100-sxm-80gb", "h100-sxm", "h200", "l40s"])
@pytest.mark.parametrize(
    "draft",
    [
        {"draft": "self", "kv_budget": 512},
        {"draft": "self", "draft_policy": "snapkv", "kv_budget": 2048},
        {"draft": "llama-3.2-1b", "kv_budget": 512, "draft_tp": 1},
    ],
)
def test_where_only_decoding_counts_a_longer_context_never_needs_fewer_drafts(
    gpu: str, draft: dict[str, Any]
) -> None:
    """As long as the draft fits in memory, and α is the same at every context."""
    for engine, tp in (("specroof", 1), ("magicdec", 2), ("plain-graph", 8)):
        scenario = a_scenario(**draft, **APART, gpu=gpu, engine=engine, tp=tp, acceptance=0.8)
        schedule = gamma_schedule(scenario)
        grid = {"batch": np.array(schedule.batches, float)[:, None]}
        fits = best_gain(scenario, **grid, prompt_tokens=np.array(schedule.contexts, float))
        for row, possible in zip(schedule.gamma, fits.possible, strict=True):
            gammas = list(np.array(row)[possible])
            assert gammas == sorted(gammas)
