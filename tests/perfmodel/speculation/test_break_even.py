"""Break-even points and γ over batch and context agree with direct evaluation."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from strategies import a_scenario

from perfmodel import Scenario, estimate, without_speculation
from perfmodel.speculation import break_even_batch, break_even_context, gamma_schedule

LONG: dict[str, Any] = {
    "draft": "self", "gpu": "h100-sxm", "tp": 4, "prompt_tokens": 32_000, "engine": "magicdec",
}  # fmt: skip
SHORT: dict[str, Any] = {"draft": "llama-3.2-1b", "gpu": "l40", "prompt_tokens": 512}
SCHEDULED = (
    {"draft": "self", "gpu": "a100-sxm-80gb", "tp": 8, "engine": "magicdec"},
    {"draft": "llama-3.2-1b", "draft_policy": "streamingllm", "gpu": "l40s", "tp": 8},
    {"draft": "self", "draft_policy": "full", "gpu": "h200"},
    {"draft": "self", "draft_policy": "snapkv", "kv_budget": 16_384, "gpu": "l40", "tp": 2},
)


def best(scenario: Scenario, batch: float, context: float) -> tuple[float, int]:
    """Speedup and γ of the best plan that fits, one prediction at a time; NaN where none does."""
    work = replace(scenario.workload, batch=int(batch), prompt_tokens=int(context))
    budget = scenario.plan.kv_budget_tokens
    if budget is not None:
        budget = min(budget, int(context))
    result = (float("nan"), -1)
    for gamma in range(1, 17):
        plan = replace(scenario.plan, gamma=gamma, kv_budget_tokens=budget)
        point = estimate(replace(scenario, workload=work, plan=plan))
        if point.feasible and not float(point.speedup) <= result[0]:
            result = (float(point.speedup), gamma)
    return result


def test_speculation_pays_from_the_break_even_batch() -> None:
    scenario = a_scenario(**LONG, batch=64)
    result = break_even_batch(scenario)
    assert result.from_value is not None and result.from_value > result.lowest == 1
    assert result.until is None
    at = scenario.workload.prompt_tokens
    assert best(scenario, result.from_value, at)[0] > 1.0
    assert best(scenario, result.from_value - 1, at)[0] <= 1.0
    for batch in (2 * result.from_value, 64):
        assert best(scenario, batch, at)[0] > 1.0


def test_speculation_pays_from_the_break_even_context() -> None:
    """Contexts are looked at in steps of about 3 %."""
    scenario = a_scenario(**LONG, batch=16)
    result = break_even_context(scenario)
    assert result.from_value is not None and result.from_value > result.lowest
    assert best(scenario, 16, result.from_value)[0] > 1.0
    assert best(scenario, 16, result.from_value / 1.04)[0] <= 1.0
    assert best(scenario, 16, 2 * result.from_value)[0] > 1.0


def test_speculation_that_pays_only_at_small_batches_has_an_end() -> None:
    """Short contexts: a small batch is bound by weights, a large one by compute."""
    scenario = a_scenario(**SHORT, batch=1)
    result = break_even_batch(scenario)
    assert result.from_value == 1
    assert result.until is not None and 1 <= result.until < 256
    assert best(scenario, 1, 512)[0] > 1.0
    assert best(scenario, result.until, 512)[0] > 1.0
    assert best(scenario, result.until + 1, 512)[0] <= 1.0


def test_speculation_that_never_pays_has_no_break_even() -> None:
    """A draft as dear as the target, in an engine without an overhead that drafting would save."""
    scenario = a_scenario(draft="self", draft_policy="full", batch=8, engine="ideal")
    assert break_even_batch(scenario).from_value is None
    assert break_even_context(scenario).from_value is None


def test_speculation_that_always_pays_starts_at_the_lowest_value() -> None:
    scenario = a_scenario(
        target="llama-2-7b-32k", draft="tinyllama-1.1b", draft_tp=4, tp=8, gpu="a100-sxm-80gb",
        prompt_tokens=16_000, batch=64,
    )  # fmt: skip
    result = break_even_batch(scenario)
    assert (result.from_value, result.lowest, result.until) == (1, 1, None)


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
            speedup, gamma = best(scenario, batch, context)
            if not speedup > 1.0:
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
    schedule = gamma_schedule(a_scenario(**LONG))
    row = np.array(schedule.gamma[schedule.batches.index(32)])
    fitting = row[row >= 0]
    assert fitting[0] == 0 and fitting[-1] >= 2
