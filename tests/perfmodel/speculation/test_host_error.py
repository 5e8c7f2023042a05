"""The error of host times counts as far as the host delays a step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import a_scenario

from perfmodel import Scenario, estimate, speedup_interval
from perfmodel.specs import HostCosts
from perfmodel.speculation import pair_error, ratio_error, time_error, without_speculation
from perfmodel.speculation.uncertainty.host_delay import host_delays
from perfmodel.speculation.uncertainty.step_error import HOST_SHARED, OTHER_HOST_ERROR, host_error
from perfmodel.units import Z90

OF_GPU, OF_HOST = 0.04, 0.2
HEAD = {"draft": "eagle3", "gamma": 3, "acceptance": 0.8, "batch": 8, "prompt_tokens": 4096}


def with_host(step_s: float, *, overlapped: bool = True, **values: Any) -> Scenario:
    """A plan on a GPU where kernels and host were timed; all methods have the same host time."""
    scenario = a_scenario(engine="kernels", **{"gpu": "h200", **HEAD, **values})
    hosts = tuple(
        HostCosts(method=method, overlapped=overlapped, step_s=step_s)
        for method in ("plain", "eagle3", "draft")
    )
    errors = {"speedup_error": OF_GPU, "host_error": OF_HOST}
    engine = replace(scenario.engine, host=hosts, measured_on="h200", **errors)
    return replace(scenario, engine=engine)


def passes_s(scenario: Scenario) -> float:
    point = estimate(scenario)
    return float(point.draft_total_s + point.verify.total_s)


@given(st.floats(0.0, 0.999))
def test_a_host_that_stays_hidden_adds_nothing(share: float) -> None:
    """It is hidden even if it takes one standard error longer."""
    step_s = share * math.exp(-OF_HOST) * float(estimate(with_host(0.0)).plain_tpot_s)
    scenario = with_host(step_s)
    assert float(ratio_error(scenario)) == time_error(scenario) == pytest.approx(OF_GPU)


@given(st.floats(1.0, 100.0))
def test_a_host_that_sets_every_step_adds_its_whole_error(times: float) -> None:
    scenario = with_host(times * passes_s(with_host(0.0)))
    assert time_error(scenario) == pytest.approx(math.hypot(OF_GPU, OF_HOST))
    plain = time_error(without_speculation(scenario))
    assert plain == pytest.approx(math.hypot(OF_GPU, OF_HOST))
    own = math.sqrt(1.0 - HOST_SHARED) * OF_HOST  # of the step, and of the round
    assert float(ratio_error(scenario)) == pytest.approx(math.hypot(OF_GPU, own, own))
    assert pair_error(scenario, scenario) > math.sqrt(2.0) * OF_HOST


@given(st.floats(1.0, 100.0))
def test_a_host_that_sets_steps_and_rounds_of_a_draft_model_adds_its_error_twice(
    times: float,
) -> None:
    model = {"draft": "llama-3.2-1b", "draft_policy": "full"}
    scenario = with_host(times * passes_s(with_host(0.0, **model)), **model)
    both = math.hypot(OF_GPU, OF_HOST, OF_HOST)
    assert float(ratio_error(scenario)) == pytest.approx(both)


@given(st.floats(0.0, 30e-3), st.booleans())
def test_what_a_step_and_a_round_share_is_part_of_their_errors(
    step_s: float, overlapped: bool
) -> None:
    scenario = with_host(step_s, overlapped=overlapped)
    of_round, plain = map(float, host_delays(scenario, math.exp(OF_HOST)))
    host = math.sqrt(max(float(ratio_error(scenario)) ** 2 - OF_GPU**2, 0.0))
    assert abs(of_round - plain) - 1e-9 <= host <= math.hypot(of_round, plain) + 1e-9
    if min(of_round, plain) == 0.0:
        assert host == pytest.approx(max(of_round, plain), abs=1e-9)


@given(st.floats(0.0, 1.0))
def test_a_barely_hidden_host_may_surface(hidden: float) -> None:
    gpu_s = passes_s(with_host(0.0))
    scenario = with_host(gpu_s * math.exp(-hidden * OF_HOST))
    late = (1.0 - hidden) * OF_HOST
    assert float(estimate(scenario).overhead_s) == pytest.approx(0.0, abs=1e-12)
    assert time_error(scenario) == pytest.approx(math.hypot(OF_GPU, late))


@given(st.floats(0.0, 50e-3))
def test_a_host_that_takes_turns_with_the_gpu_counts_by_its_share(step_s: float) -> None:
    scenario = with_host(step_s, overlapped=False)
    share = step_s / float(estimate(scenario).round_s)
    late = math.log1p(share * math.expm1(OF_HOST))
    assert time_error(scenario) == pytest.approx(math.hypot(OF_GPU, late))


@given(st.lists(st.floats(0.0, 30e-3), min_size=2, max_size=2).map(sorted), st.booleans())
def test_steps_with_more_host_time_are_never_more_certain(
    steps_s: list[float], overlapped: bool
) -> None:
    less, more = (with_host(step_s, overlapped=overlapped) for step_s in steps_s)
    assert time_error(less) <= time_error(more) + 1e-12


def test_a_grid_equals_its_points() -> None:
    scenario = with_host(6e-3)
    batch, context = np.array([[1.0], [16.0], [128.0]]), np.array([1024.0, 16_384.0])
    grid = ratio_error(
        scenario,
        estimate(scenario, batch=batch, prompt_tokens=context),
        batch=batch,
        prompt_tokens=context,
    )
    assert grid.min() < 0.6 * grid.max()
    for (i, j), error in np.ndenumerate(grid):
        b, prompt = batch[i, 0], context[j]
        point = estimate(scenario, batch=b, prompt_tokens=prompt)
        one = ratio_error(scenario, point, batch=b, prompt_tokens=prompt)
        assert error == pytest.approx(float(one))


def test_intervals_of_speedups_are_wide_where_the_gpu_waits() -> None:
    def width(step_s: float) -> float:
        found = speedup_interval(with_host(step_s))
        assert found is not None
        return math.log(found.value / found.low)

    assert width(0.0) == pytest.approx(Z90 * OF_GPU, rel=0.5)
    own = math.sqrt(2.0 * (1.0 - HOST_SHARED)) * OF_HOST
    assert width(1.0) > Z90 * own > 1.5 * width(0.0)


@pytest.mark.parametrize(
    ("gpu", "tp", "expected"),
    [
        ("h200", 1, OF_HOST),
        ("h200", 2, OF_HOST),
        ("h200", 4, OTHER_HOST_ERROR),
        ("h100-sxm", 1, OTHER_HOST_ERROR),
    ],
)
def test_the_host_of_another_machine_or_tp_may_take_half_or_twice_the_time(
    gpu: str, tp: int, expected: float
) -> None:
    scenario = with_host(1.0, gpu=gpu)
    scenario = replace(scenario, tp=tp, engine=replace(scenario.engine, timed_tp=(1, 2)))
    assert host_error(scenario) == pytest.approx(expected)
    assert math.exp(Z90 * OTHER_HOST_ERROR) == pytest.approx(2.0)
    known = replace(scenario, engine=replace(scenario.engine, host_error=0.0))
    assert host_error(known) == 0.0  # one figure includes all
    assert time_error(scenario) == pytest.approx(math.hypot(time_error(known), expected))
