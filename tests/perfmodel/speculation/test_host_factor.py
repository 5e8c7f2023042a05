"""`host_factor` scales every time of the host and nothing else."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import a_scenario

from perfmodel import ConfigError, catalog, estimate, find_plan, parse_scenario, prediction_dict
from perfmodel.catalog.engines import engine_names, engine_profile
from perfmodel.flat_values import scenario_dict
from perfmodel.planning.relief import _on
from perfmodel.specs import EngineProfile
from perfmodel.speculation.host import host_work_s

H200 = catalog.gpu("h200")
BARE = ("ideal", "kernels")  # engines without a host
WITH_HOST = [name for name in engine_names() if name not in BARE]
SERVING = [name for name in WITH_HOST if engine_profile(name, H200).host]
# Small: the host sets every step. Large: the GPU hides one that is five times as slow.
SMALL = {"target": "llama-3.2-1b", "gpu": "h200", "batch": 2, "prompt_tokens": 2048}
LARGE = {"target": "llama-3.1-70b", "gpu": "h200", "tp": 2, "batch": 16, "prompt_tokens": 16384}
HEAD: dict[str, Any] = {"draft": "eagle3", "gamma": 3, "acceptance": 0.7}
FACTORS = st.floats(0.1, 10.0)


def times_s(**values: Any) -> tuple[float, ...]:
    """The plain step, the round, and the time to the first token."""
    point = estimate(a_scenario(**values))
    return float(point.plain_tpot_s), float(point.round_s), float(point.ttft_s)


@pytest.mark.parametrize("name", engine_names())
def test_a_factor_of_one_changes_nothing(name: str) -> None:
    plain = {**SMALL, "engine": name}
    assert a_scenario(**plain, host_factor=1) == a_scenario(**plain)
    assert engine_profile(name, H200).on_slower_host(1.0) == engine_profile(name, H200)
    stated = prediction_dict(estimate(a_scenario(**plain, host_factor="1.0")))
    assert stated == prediction_dict(estimate(a_scenario(**plain)))


@given(st.sampled_from(WITH_HOST), FACTORS, FACTORS)
def test_factors_multiply(name: str, one: float, other: float) -> None:
    engine = engine_profile(name, H200)
    twice = engine.on_slower_host(one).on_slower_host(other)
    _assert_equal(twice, engine.on_slower_host(one * other))


def _assert_equal(one: EngineProfile, other: EngineProfile) -> None:
    for part, same in zip((one, *one.host), (other, *other.host), strict=True):
        for field in fields(part):
            value = getattr(part, field.name)
            if isinstance(value, float):
                assert value == pytest.approx(getattr(same, field.name), rel=1e-12), field.name


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(WITH_HOST), st.booleans(), st.lists(FACTORS, min_size=2, max_size=2))
def test_a_slower_host_shortens_no_time(name: str, large: bool, factors: list[float]) -> None:
    values = {**(LARGE if large else SMALL), "engine": name, **HEAD}
    less, more = (times_s(**values, host_factor=factor) for factor in sorted(factors))
    assert all(a <= b * (1 + 1e-12) for a, b in zip(less, more, strict=True))


@pytest.mark.parametrize("name", SERVING)
@pytest.mark.parametrize("factor", [0.5, 1.6, 3.0])
def test_the_times_of_the_gpu_stay(name: str, factor: float) -> None:
    points = [
        estimate(a_scenario(**SMALL, **HEAD, engine=name, host_factor=f)) for f in (1.0, factor)
    ]
    usual, slow = (
        (p.target_step.total_s, p.verify.total_s, p.draft_step_s, p.memory.total) for p in points
    )
    assert tuple(map(float, usual)) == tuple(map(float, slow))
    assert float(points[1].overhead_s) != float(points[0].overhead_s)


@pytest.mark.parametrize("factor", [0.2, 1.6, 5.0])
def test_a_step_that_hides_the_host_does_not_change(factor: float) -> None:
    values = {**LARGE, **HEAD, "engine": "vllm"}
    usual = a_scenario(**values)
    work_s = max(host_work_s(usual, method) for method in ("plain", "eagle3"))
    assert 5.0 * work_s < float(estimate(usual).target_step.total_s)
    assert times_s(**values, host_factor=factor)[:2] == times_s(**values)[:2]


@pytest.mark.parametrize("factor", [1.3, 1.6, 10.0])
def test_a_step_that_the_host_sets_grows_in_proportion(factor: float) -> None:
    values = {**SMALL, **HEAD, "engine": "vllm"}
    usual, slow = times_s(**values), times_s(**values, host_factor=factor)
    assert slow[:2] == pytest.approx((factor * usual[0], factor * usual[1]))


@pytest.mark.parametrize("name", BARE)
@pytest.mark.parametrize("factor", [0.5, 1.6])
def test_an_engine_without_host_times_refuses_a_factor(name: str, factor: float) -> None:
    with pytest.raises(ConfigError, match=f"has no effect with engine {name}, which has no host"):
        a_scenario(**SMALL, engine=name, host_factor=factor)


@pytest.mark.parametrize("factor", [0.0999, 10.01, -1, 0, "nan", "inf", float("nan"), "x", True])
def test_impossible_factors_are_refused_in_a_line(factor: object) -> None:
    with pytest.raises(ConfigError, match=r"^host_factor=\S+ is not valid: [^\n]+$"):
        parse_scenario({**SMALL, "engine": "vllm", "host_factor": factor})


def test_the_factor_is_part_of_the_scenario_and_of_its_evidence() -> None:
    scenario = a_scenario(**SMALL, **HEAD, engine="vllm", host_factor=1.6)
    values = scenario_dict(scenario)
    assert values["host_factor"] == 1.6 and parse_scenario(values).scenario() == scenario
    assert "host_factor" not in scenario_dict(a_scenario(**SMALL, engine="vllm"))
    sentence = prediction_dict(estimate(scenario))["evidence"]["sentence"]
    assert "engine vllm-0.26 (host times 1.6x) measured on h200" in sentence


def test_plans_and_other_machines_have_the_factor_too() -> None:
    answer = find_plan({**SMALL, "engine": "vllm", "tp": [1], "host_factor": 2.0})
    usual = find_plan({**SMALL, "engine": "vllm", "tp": [1]})
    assert answer.plain.tpot_s > 1.5 * usual.plain.tpot_s
    plans = (answer.best, answer.plain, *answer.runners_up)
    assert {plan.scenario.host_factor for plan in plans} == {2.0}
    there = _on("hgx-h100", 2)(answer.best.scenario)
    expected = engine_profile("vllm", there.machine.gpu).on_slower_host(2.0)
    assert there.engine == expected
