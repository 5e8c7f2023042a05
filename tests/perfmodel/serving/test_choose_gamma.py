"""The best gamma for a traffic: fixed or by schedule, beyond chance."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from strategies import a_scenario

import perfmodel as pm
from perfmodel import ServingRun, Simulation, Traffic
from perfmodel.serving import RoundTimes, Serving, choose_for_traffic, scenario_acceptance
from perfmodel.serving.choose_gamma import TrafficChoice
from perfmodel.serving.simulate import best_gammas
from perfmodel.serving.stats import Durations, ServingStats
from perfmodel.specs.workload import SLO

SELF: dict[str, Any] = {"draft": "self", "kv_budget": 512, "acceptance": 0.8, "gamma": 3}


def test_a_schedule_uses_gamma_zero_where_drafts_do_not_pay() -> None:
    """Self-speculation at short contexts never pays; at long ones it does."""
    scenario = a_scenario(**SELF)
    table = RoundTimes(scenario, max_batch=64)
    gammas = best_gammas(table, scenario_acceptance(scenario), range(9))
    assert gammas[0, 4] == 0 and gammas[63, -1] >= 2
    point = pm.estimate(scenario, batch=64, prompt_tokens=table.contexts[-1], gamma=np.arange(9))
    assert gammas[63, -1] == np.argmin(point.tpot_s)


def test_the_choice_for_traffic_is_the_best_run() -> None:
    scenario = a_scenario(**SELF)
    traffic = Traffic(requests=400, rate=2.0, prompt_tokens=20_000, output_tokens=120)
    choice = choose_for_traffic(
        scenario,
        Simulation(
            traffic=traffic, serving=Serving(max_batch=32), process=scenario_acceptance(scenario)
        ),
        gammas=(0, 2, 4),
    )
    runs = [choice.plain, *choice.fixed, choice.scheduled]
    least, error = choice.cost(choice.best)[1], choice.best.stats.latency.standard_error_s
    assert least - error <= min(choice.cost(run)[1] for run in runs)
    assert choice.best is not choice.plain
    gain = choice.plain.stats.latency.mean_s / choice.best.stats.latency.mean_s
    for low, speculates in ((0.99 / gain, False), (1.01 / gain, True)):
        judged = replace(choice, error=(low, 1.0))
        assert (judged.best is not judged.plain) == speculates
        assert ("No clear gain" in judged.sentence) != speculates
    slower = replace(choice, error=(0.5 / gain, 0.9 / gain))
    assert slower.best is slower.plain and slower.sentence.startswith("Do not speculate")
    assert [run.gamma for run in runs] == [0, 2, 4, None]


@pytest.mark.parametrize("objective", ["latency", "goodput"])
def test_a_schedule_is_followed_only_beyond_the_standard_error(objective: str) -> None:
    fixed = run_of(gamma=4, seconds=1.0)
    for faster, follows in ((0.5, False), (2.0, True)):
        error_s = fixed.stats.latency.standard_error_s
        scheduled = run_of(gamma=None, seconds=1.0 - faster * error_s)
        plain = run_of(gamma=0, seconds=2.0)
        choice = TrafficChoice(objective, plain, (fixed,), scheduled)
        assert choice.best is (scheduled if follows else fixed)
        assert ("within the standard error" in choice.sentence) != follows


@pytest.mark.parametrize("objective", ["latency", "goodput"])
def test_the_best_fixed_gamma_is_the_smallest_within_one_percent(objective: str) -> None:
    plain, last = run_of(gamma=0, seconds=2.0), run_of(gamma=6, seconds=1.0)
    for seconds, gamma in ((1.009, 5), (1.011, 6)):
        fixed = (run_of(gamma=4, seconds=1.2), run_of(gamma=5, seconds=seconds), last)
        choice = TrafficChoice(objective, plain, fixed, run_of(gamma=None, seconds=1.0))
        assert choice.best.gamma == choice.best_fixed.gamma == gamma
    missing = run_of(gamma=5, seconds=1.009, good=99)
    few = TrafficChoice(objective, plain, (missing, last), run_of(gamma=None, seconds=1.0))
    assert few.best_fixed.gamma == (6 if objective == "goodput" else 5)


def test_one_more_request_within_the_limits_is_chance() -> None:
    fixed, more = run_of(gamma=4, good=97), run_of(gamma=None, good=98)
    plain = run_of(gamma=0, good=50)
    assert TrafficChoice("goodput", plain, (fixed,), more).best is fixed
    assert TrafficChoice("goodput", fixed, (more,), more).best is fixed
    assert (
        TrafficChoice("goodput", plain, (fixed,), run_of(gamma=None, good=100)).best.gamma is None
    )


def run_of(*, gamma: int | None, seconds: float = 1.0, good: int = 100) -> ServingRun:
    """A run of 100 requests with a mean latency, and as many within the limits."""
    stats = ServingStats(SLO())
    stats.requests, stats.good = 100, good
    stats.latency = Durations(np.linspace(seconds - 0.5, seconds + 0.5, 100))
    return ServingRun(f"gamma {gamma}", gamma, 10_000, stats)
