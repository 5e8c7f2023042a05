"""The time to the first token lies in its interval and never falls as prompts grow."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import a_scenario, scenarios

from perfmodel import Scenario, estimate
from perfmodel.speculation import prompt_ends, time_error, ttft_interval, without_speculation
from perfmodel.speculation.prompt import MOST_LAUNCH_LAYER_S
from perfmodel.units import Z90


@given(scenarios())
@settings(max_examples=25, deadline=None)
def test_the_time_to_the_first_token_lies_between_its_ends(scenario: Scenario) -> None:
    """The errors of prompt and step are independent, so the sum is no wider than both together."""
    point, error = estimate(scenario), time_error(without_speculation(scenario))
    found = ttft_interval(point)
    low, value, high = prompt_ends(scenario, error=error)
    step_s, factor = float(point.plain_tpot_s), math.exp(Z90 * error)
    assert 0.0 < found.low < found.value == float(point.ttft_s) < found.high
    assert value == point.prefill_s
    assert high + step_s < found.high <= (high + step_s * factor) * (1.0 + 1e-12)
    assert low + step_s > found.low >= (low + step_s / factor) * (1.0 - 1e-12)


ENGINES = ("specroof", "vllm-0.26", "sglang-0.5", "kernels")


@given(
    engine=st.sampled_from(ENGINES),
    target=st.sampled_from(["llama-3.2-1b", "llama-3.1-8b"]),
    tp=st.sampled_from([1, 2]),
    tokens=st.integers(16, 40_000),
    more=st.sampled_from([1, 64, 1000]),
)
@settings(max_examples=60, deadline=None)
def test_the_ends_of_the_time_to_the_first_token_never_fall_as_prompts_grow(
    engine: str, target: str, tp: int, tokens: int, more: int
) -> None:
    """Those of the prompt; interpolated attention of the step after it may fall by 0.1 %."""
    work = {"engine": engine, "target": target, "gpu": "h200", "tp": tp, "batch": 1}
    one, other = (
        a_scenario(**work, draft="none", prompt_tokens=length) for length in (tokens, tokens + more)
    )
    for before, after in zip(prompt_ends(one), prompt_ends(other), strict=True):
        assert after >= before * (1.0 - 1e-12)
    first, second = (ttft_interval(estimate(scenario)) for scenario in (one, other))
    for end in ("low", "value", "high"):
        assert getattr(second, end) >= getattr(first, end) * 0.998


@pytest.mark.parametrize("engine", ENGINES)
def test_one_token_more_changes_the_time_to_the_first_token_by_a_launch_at_most(
    engine: str,
) -> None:
    work = {"engine": engine, "gpu": "h200", "draft": "none", "batch": 1}
    scenario = a_scenario(**work)
    layers, most_s = scenario.target.layers, MOST_LAUNCH_LAYER_S
    lengths = [(n, n + 1) for n in (64, 500, 1407, 2048, 2367, 8192, 16_384, 16_385)]
    for one, other in lengths:
        found = [ttft_interval(estimate(a_scenario(**work, prompt_tokens=n))) for n in (one, other)]
        assert abs(found[1].high - found[0].high) < layers * most_s + 1e-3


@pytest.mark.parametrize("draft", ["none", "self", "llama-3.2-1b"])
def test_cached_tokens_of_a_prompt_take_no_time(draft: str) -> None:
    work = {"gpu": "h200", "batch": 1, "prompt_tokens": 32_000, "draft": draft}
    times = []
    for rate in (0.0, 0.5, 0.9):
        scenario = a_scenario(**work)
        cached = replace(scenario.workload, prefix_hit_rate=rate)
        point = estimate(replace(scenario, workload=cached))
        found = ttft_interval(point)
        assert found.low < found.value == float(point.ttft_s) < found.high
        times.append(float(point.prefill_s))
    assert times[0] > 1.5 * times[1] > 4.0 * times[2] > 0.0


@pytest.mark.parametrize("tp", [1, 2])
def test_a_short_prompt_is_less_certain_than_a_long_one(tp: int) -> None:
    """The host may launch its kernels twice as fast or slow as assumed."""
    ratios = []
    for tokens in (256, 100_000):
        work = {"engine": "specroof", "gpu": "h200", "tp": tp, "prompt_tokens": tokens}
        ends = ttft_interval(estimate(a_scenario(**work, draft="none", batch=1)))
        ratios.append(ends.high / ends.value)
    assert ratios[0] > 1.3 > 1.15 > ratios[1]
