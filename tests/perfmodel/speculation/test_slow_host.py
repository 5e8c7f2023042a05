"""A host slower than the profile's is named, and is as slow at every γ as in plain steps."""

import math
from dataclasses import replace

import numpy as np
import pytest
from explained_rounds import explained, ran

from perfmodel import estimate
from perfmodel.scenario import Scenario
from perfmodel.specs.engine import HostCosts
from perfmodel.speculation import time_error
from perfmodel.speculation.diagnosis import Diagnosis
from perfmodel.speculation.host import host_work_s
from perfmodel.units import Z90

WAITS = {"target": "llama-3.2-1b", "draft": "eagle3", "draft_policy": None, "engine": "vllm-0.26"}


BATCH, CONTEXT = 8, 1024  # EAGLE-3 of the small target, whose steps and rounds wait for the host


def waiting(**values: object) -> Scenario:
    return ran(BATCH, CONTEXT, **WAITS | {"gamma": 2, "acceptance": 0.8} | values)


def host_factor(scenario: Scenario, share: float) -> float:
    """How slow a host must be for a round of EAGLE-3 as long as `share` of its 90 % interval."""
    high_s = math.exp(share * Z90 * time_error(scenario)) * float(estimate(scenario).round_s)
    return high_s / host_work_s(scenario, "eagle3")


@pytest.mark.parametrize("gammas", [(2,), (1, 2)])
@pytest.mark.parametrize("plain", [True, False])
def test_rounds_of_a_target_whose_plain_steps_wait_for_the_host_wait_too(
    gammas: tuple[int, ...], plain: bool
) -> None:
    """The host is slower than that of vLLM 0.26, by more than the interval of the round."""
    scenario = waiting()
    slow = slower_host(scenario, host_factor(scenario, 1.2))
    rounds = {g: float(estimate(slow, gamma=g).round_s) for g in gammas}
    plain_s = float(estimate(slow).plain_tpot_s) if plain else None
    answer = explained(scenario, plain_s=plain_s, rounds_s=rounds)
    assert answer.culprit == "host" and "the host takes longer than the GPU" in answer.sentence
    taken, expected = (1e3 * s for s in (rounds[2], float(estimate(scenario).round_s)))
    assert f"{taken:.3g} ms a round where {expected:.3g} is expected" in answer.sentence


@pytest.mark.parametrize(
    ("values", "plain_s", "round_s"),
    [
        ({}, 2.1e-3, 12e-3),  # by far more than the host works in a round
        ({"target": "llama-3.1-8b"}, 7.2e-3, 11.0e-3),  # the GPU takes longer
        ({"engine": "kernels"}, 2.0e-3, 4.5e-3),  # without host times
    ],
)
def test_other_slow_rounds_do_not_wait_for_the_host(
    values: dict[str, str], plain_s: float, round_s: float
) -> None:
    scenario = ran(11, 5696, **WAITS | values, gamma=2)
    answer = explained(scenario, plain_s=plain_s, rounds_s={2: round_s})
    assert answer.culprit == "draft"
    assert "the host takes longer" not in answer.sentence


def test_a_draft_in_exported_graphs_did_not_run_eagerly() -> None:
    scenario = ran(11, 5696, **WAITS, gamma=2)
    times = {"plain_s": 2.1e-3, "rounds_s": {2: 8e-3}}
    assert explained(scenario, **times).sentence.startswith("the draft probably ran eagerly")
    exported = explained(scenario, **times, exported_graphs=True)
    assert exported.culprit == "draft" and exported.sentence.startswith("the draft was slow: ")


def test_a_layer_of_a_draft_that_takes_longer_than_launches_did_not_run_eagerly() -> None:
    """5 ms for the one layer of EAGLE-3."""
    answer = explained(ran(11, 5696, **WAITS, gamma=2), plain_s=2.1e-3, rounds_s={2: 12e-3})
    assert answer.culprit == "draft" and answer.sentence.startswith("the draft was slow: ")


def test_one_round_does_not_tell_a_slow_draft_from_a_slow_host() -> None:
    """Each has its own answer: that of the host includes its plain step."""
    scenario = ran(11, 5696, **WAITS, gamma=2, acceptance=0.8)
    alone = explained(scenario, rounds_s={2: 6.5e-3})
    assert "or the draft was slow, or " in alone.sentence
    assert "which one round does not tell apart: time rounds of two gamma, " in alone.sentence
    assert "--draft-ms" in alone.sentence and "--host-ms" in alone.sentence
    [draft] = [one for one in alone.or_else if one.culprit == "draft"]
    assert alone.culprit == "host"
    assert (alone.speedup or 0) > 1.5 > 1.0 > (draft.speedup or 9)
    known = float(estimate(scenario).tokens_per_round * estimate(scenario).plain_tpot_s) / 6.5e-3
    assert draft.speedup == pytest.approx(known)
    for more in ({"rounds_s": {1: 4.3e-3, 2: 6.5e-3}}, {"draft_step_s": 2.2e-3}):
        told = explained(scenario, **{"plain_s": 2.62e-3, "rounds_s": {2: 6.5e-3}} | more)
        assert told.sentence.startswith("the draft probably ran eagerly, without CUDA graphs: ")


def slower_host(scenario: Scenario, factor: float) -> Scenario:
    """The same scenario on a host that takes `factor` times as long for every step and launch."""
    engine = scenario.engine
    host = tuple(costs.slower(factor) for costs in engine.host)
    ranks = factor * engine.rank_step_s
    return replace(scenario, engine=replace(engine, host=host, rank_step_s=ranks))


def assert_explains(answer: Diagnosis, slow: Scenario) -> None:
    """The speedups are those that the model predicts for the scenario that ran."""
    every = estimate(slow, gamma=list(range(1, 17))).speedup
    assert answer.speedup == pytest.approx(float(estimate(slow).speedup), rel=1e-3)
    assert answer.best_gamma is not None and answer.best_speedup is not None
    if answer.best_gamma:
        found = float(every[answer.best_gamma - 1])
        assert found > 0.999 * float(np.max(every))
        assert answer.best_speedup == pytest.approx(found, rel=1e-3)
    else:
        assert np.max(every) < 1.001


@pytest.mark.parametrize("gamma", [1, 2, 3])
@pytest.mark.parametrize("alpha", [0.5, 0.7, 0.9])
@pytest.mark.parametrize(("share", "culprit"), [(0.7, "none"), (1.03, "host"), (1.3, "host")])
def test_a_slow_host_is_slow_at_every_gamma(
    gamma: int, alpha: float, share: float, culprit: str
) -> None:
    """From one round: it launches more draft steps with more drafts. Inside the interval, the best
    γ is that of the prediction.
    """
    scenario = waiting(gamma=gamma, acceptance=alpha)
    slow = slower_host(scenario, host_factor(scenario, share))
    answer = explained(scenario, rounds_s={gamma: float(estimate(slow).round_s)})
    assert answer.culprit == culprit
    if culprit == "none":
        assert_explains(answer, scenario)
    else:
        assert_explains(answer, slow)


MODEL = {"draft": "llama-3.2-1b", "draft_policy": "full", "target": "llama-3.1-8b"}


@pytest.mark.parametrize(
    ("method", "timed"),
    [
        ({}, "draft_step_s"),
        ({}, "host_s"),
        ({"tp": 2}, "draft_step_s"),
        ({"draft": "ngram"}, ""),
        ({"draft": "ngram"}, "host_s"),
        (MODEL, "draft_step_s"),
        (MODEL, "host_s"),
    ],
)
@pytest.mark.parametrize("factor", [3.0, 3.5, 5.0])
def test_a_slow_host_is_slow_in_plain_steps_too(
    method: dict[str, object], timed: str, factor: float
) -> None:
    """By more than the interval."""
    scenario = waiting(**method)
    slow = slower_host(scenario, factor)
    point = estimate(slow)
    terms = {"draft_step_s": float(point.draft_step_s), "host_s": float(point.overhead_s)}
    known = {name: s for name, s in terms.items() if name == timed}
    answer = explained(scenario, rounds_s={2: float(point.round_s)}, **known)
    assert answer.culprit == "host"
    assert_explains(answer, slow)
    plain = answer.terms["plain_s"]
    if point.plain_overhead_s > 0:
        assert plain.derived and plain.measured == pytest.approx(float(point.plain_tpot_s), 1e-3)
    else:
        assert plain.measured is None


@pytest.mark.parametrize("factor", [2.5, 3.0, 5.0])
@pytest.mark.parametrize("draft", ["eagle3", "ngram"])
def test_a_slow_host_is_as_slow_by_rounds_of_two_gamma(draft: str, factor: float) -> None:
    scenario = waiting(draft=draft)
    slow = slower_host(scenario, factor)
    rounds = {g: float(estimate(slow, gamma=g).round_s) for g in (1, 2)}
    answer = explained(scenario, rounds_s=rounds)
    assert answer.culprit == "host"
    assert_explains(answer, slow)


@pytest.mark.parametrize(("target", "waits"), [("llama-3.2-1b", True), ("llama-3.1-8b", False)])
def test_the_host_may_be_why_plain_steps_are_slow(target: str, waits: bool) -> None:
    scenario = waiting(target=target)
    assert (float(estimate(scenario).plain_overhead_s) > 0) is waits
    answer = explained(scenario, plain_s=2.5 * float(estimate(scenario).plain_tpot_s))
    assert answer.culprit == "plain" and ("CPU cores" in answer.sentence) is waits


def test_a_measured_plain_step_is_not_predicted() -> None:
    scenario = ran(11, 5696, **WAITS, gamma=2, acceptance=0.8)
    times = {"rounds_s": {2: 6.2e-3}, "draft_step_s": 0.379e-3}
    answer = explained(scenario, **times, plain_s=2.1e-3)
    assert answer.terms["plain_s"].measured == 2.1e-3 and not answer.terms["plain_s"].derived
    predicted = explained(scenario, **times)
    ratio = (predicted.terms["plain_s"].measured or 0) / 2.1e-3
    assert (predicted.speedup or 0) == pytest.approx(ratio * (answer.speedup or 0), rel=1e-6)


def without_host_times(*, but_plain: bool) -> Scenario:
    """EAGLE-3 in a profile that states no host times of it, and those of plain steps or none."""
    scenario = ran(1, 2000, **WAITS | {"target": "llama-3.1-8b"}, gamma=3, acceptance=0.8)
    head, plain = HostCosts(method="eagle3", overlapped=True), scenario.engine.host_costs("plain")
    assert plain is not None
    host = (plain if but_plain else plain.slower(0.0), head)
    return replace(scenario, engine=replace(scenario.engine, host=host))


@pytest.mark.parametrize("factor", [6.0, 8.0])
def test_a_slow_host_is_known_by_plain_steps_alone(factor: float) -> None:
    scenario = without_host_times(but_plain=True)
    slow = slower_host(scenario, factor)
    waits_s = float(estimate(slow).overhead_s)
    assert waits_s > 0
    assert_explains(explained(scenario, host_s=waits_s), slow)


def test_a_host_of_no_known_time_takes_a_constant_excess() -> None:
    scenario = without_host_times(but_plain=False)
    point = estimate(scenario, gamma=[1, 3])
    answer = explained(scenario, host_s=8e-3)
    assert answer.terms["plain_s"].measured is None
    speedup = point.tokens_per_round * point.plain_tpot_s / (point.round_s + 8e-3)
    assert answer.speedup == pytest.approx(float(speedup[1]))


def test_the_host_time_of_a_prediction_is_predicted_at_every_gamma() -> None:
    scenario = ran(11, 5696, **WAITS, gamma=2, acceptance=0.8)
    point = estimate(scenario, gamma=list(range(1, 17)))
    answer = explained(scenario, rounds_s={2: float(estimate(scenario).round_s)})
    assert answer.best_gamma == int(np.argmax(point.speedup)) + 1
    assert answer.best_speedup == pytest.approx(float(np.max(point.speedup)))
