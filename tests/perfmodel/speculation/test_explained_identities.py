"""What `diagnose` says of times that the model itself predicts, for seeded scenarios.

As predicted, with a host as many times as slow, and with a longer T_D.
"""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from explained_rounds import DRAFTS, ran, scenario_of, times

from perfmodel import ConfigError, estimate
from perfmodel.scenario import Scenario
from perfmodel.speculation import time_error
from perfmodel.speculation.diagnosis import Diagnosis, Measured, diagnose

WIDTH = 1.645
GAMMAS = list(range(1, 17))


def said(scenario: Scenario, rounds: dict[int, float]) -> Diagnosis:
    """The answer for an engine whose graphs hold every round; its sentence is true."""
    answer = diagnose(scenario, Measured(rounds_s=rounds, exported_graphs=True))
    point = estimate(scenario)
    width = math.exp(WIDTH * time_error(scenario))
    ratio = rounds[scenario.plan.gamma] / float(point.round_s)
    assert (answer.culprit == "none") == (1.0 / width <= ratio <= width)
    if found := re.search(r"of ([\d.]+) ms is in .*, ([\d.]+) to ([\d.]+) ms", answer.sentence):
        taken, low, high = (float(number) for number in found.groups())
        assert 0.995 * low <= taken <= 1.005 * high
    if not answer.explained:
        return answer
    terms = {name: answer.terms[name].measured or 0.0 for name in answer.terms}
    whole_s = scenario.plan.gamma * terms["draft_step_s"] + terms["verify_s"] + terms["host_s"]
    assert whole_s == pytest.approx(terms["round_s"], rel=1e-5)
    return answer


def assert_is_of(answer: Diagnosis, ran_as: Scenario, *, culprit: str, rel: float) -> None:
    """The answer, or that for one of the culprits that are not told apart, is the model's."""
    of = [one for one in (answer, *answer.or_else) if one.culprit == culprit]
    assert of, (answer.culprit, [one.culprit for one in answer.or_else])
    gains = np.asarray(estimate(ran_as, gamma=GAMMAS).speedup)
    assert of[0].speedup == pytest.approx(float(estimate(ran_as).speedup), rel=rel)
    assert of[0].best_speedup == pytest.approx(max(float(np.max(gains)), 1.0), rel=rel)
    if of[0].best_gamma:
        assert gains[of[0].best_gamma - 1] >= (1.0 - 2 * rel) * np.max(gains)


@pytest.mark.parametrize("seed", range(60))
def test_times_as_predicted_have_the_answer_of_the_model(seed: int) -> None:
    scenario, gammas = scenario_of(seed)
    answer = said(scenario, times(scenario, gammas))
    assert_is_of(answer, scenario, culprit="none", rel=0.01)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("factor", [1.3, 2.5, 4.0])
def test_a_slower_host_is_named_beyond_the_interval(seed: int, factor: float) -> None:
    scenario, gammas = scenario_of(seed)
    slow = replace(scenario, engine=scenario.engine.on_slower_host(factor))
    rounds = times(slow, gammas)
    answer = said(scenario, rounds)
    if answer.culprit != "none":
        assert_is_of(answer, slow, culprit="host", rel=0.02)
    elif len(gammas) == 1:
        assert answer.speedup == pytest.approx(
            float(estimate(scenario).speedup) * shared(answer), rel=2e-3
        )


def shared(answer: Diagnosis) -> float:
    """The share that a plain step has of the excess of a round, up to its own interval."""
    plain, taken = answer.terms["plain_s"], answer.terms["round_s"]
    ratio = (taken.measured or 0.0) / (taken.predicted or 1.0)
    return (plain.measured or plain.predicted or 0.0) / (plain.predicted or 1.0) / ratio


@pytest.mark.parametrize("seed", [seed for seed in range(60) if DRAFTS[seed % 3] != "ngram"])
@pytest.mark.parametrize("factor", [4.0, 10.0])
def test_a_slower_draft_is_named_beyond_the_interval(seed: int, factor: float) -> None:
    scenario, gammas = scenario_of(seed)
    more = {g: (factor - 1.0) * float(estimate(scenario, gamma=g).draft_total_s) for g in gammas}
    answer = said(scenario, {g: s + more[g] for g, s in times(scenario, gammas).items()})
    if answer.culprit != "none":
        assert "draft" in (answer.culprit, *(one.culprit for one in answer.or_else))


@pytest.mark.parametrize("seed", range(12))
def test_the_answer_is_continuous_in_a_measured_time(seed: int) -> None:
    """While the culprit stays, a round that is 1 % longer changes the best speedup by about 1 %."""
    scenario, gammas = scenario_of(seed)
    rounds = times(scenario, gammas)
    before: Diagnosis | None = None
    for step in range(-20, 120):
        own = rounds[scenario.plan.gamma] * 1.01**step
        try:
            answer = said(scenario, {g: s if g in gammas[1:] else own for g, s in rounds.items()})
        except ConfigError:  # a round with more drafts must not be shorter
            before = None
            continue
        if before is not None and before.culprit == answer.culprit:
            assert answer.best_speedup == pytest.approx(before.best_speedup, rel=0.03)
        before = answer


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("factor", [6.0, 30.0])
def test_plain_steps_wait_for_the_host_that_was_measured(draft: str, factor: float) -> None:
    """Of a host faster and slower than the scenario's, which is 10 times as slow as the profile."""
    policy = "full" if draft == "llama-3.2-1b" else None
    values = {"target": "llama-3.1-8b", "engine": "vllm", "acceptance": 0.7, "draft": draft}
    scenario = ran(4, 2048, **values, draft_policy=policy, host_factor=10)
    other = replace(scenario, engine=scenario.engine.on_slower_host(factor / 10.0))
    point = estimate(other)
    assert float(point.overhead_s) > 0.0 and float(point.plain_overhead_s) > 0.0
    rounds, host_s = {3: float(point.round_s)}, float(point.overhead_s)
    answer = diagnose(scenario, Measured(rounds_s=rounds, host_s=host_s))
    assert answer.terms["plain_s"].measured == pytest.approx(float(point.plain_tpot_s), rel=1e-3)
    assert answer.speedup == pytest.approx(float(point.speedup), rel=1e-3)


def test_plain_steps_do_not_wait_for_a_host_that_was_measured_as_free() -> None:
    values = {"target": "llama-3.2-1b", "engine": "vllm", "acceptance": 0.7, "draft": "eagle3"}
    scenario = ran(4, 2000, **values, draft_policy=None, host_factor=10)
    point = estimate(scenario)
    passes_s = float(point.draft_total_s + point.verify.total_s)
    answer = diagnose(scenario, Measured(rounds_s={3: passes_s}, host_s=0.0))
    plain_s = answer.terms["plain_s"].measured or 0.0
    assert float(point.target_step.total_s) <= plain_s < passes_s < float(point.plain_tpot_s)
