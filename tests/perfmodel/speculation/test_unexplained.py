"""What `diagnose` says of times that several causes explain, or none."""

import math
from dataclasses import replace

import numpy as np
import pytest
from explained_rounds import explained, ran, scenario_of, times

from perfmodel import ConfigError, estimate
from perfmodel.speculation.diagnosis import Diagnosis, Measured, diagnose

MODEL = {"target": "llama-3.1-8b", "engine": "vllm-0.26", "acceptance": 0.7}
HEAD = MODEL | {"draft": "eagle3", "draft_policy": None, "gamma": 4}
STEP = float(estimate(ran(8, 2048, **HEAD)).plain_tpot_s)
HEAD_ROUNDS = np.asarray(estimate(ran(8, 2048, **HEAD), gamma=[2, 4]).round_s)


def test_a_gpu_slow_in_all_times_is_named_beside_a_host_as_slow() -> None:
    """All times 1.5 times as long, those of the host, too."""
    scenario = ran(8, 4096, **MODEL)
    point = estimate(scenario, gamma=[1, 3])
    rounds = dict(zip((1, 3), 1.5 * point.round_s, strict=True))
    answer = explained(scenario, plain_s=1.5 * float(point.plain_tpot_s), rounds_s=rounds)
    assert answer.culprit == "plain" and answer.or_else == () and answer.explained
    assert answer.speedup == pytest.approx(float(estimate(scenario).speedup))
    host, round_s = answer.terms["host_s"], answer.terms["round_s"]
    assert host.measured == pytest.approx(1.5 * (host.predicted or 0))
    assert round_s.measured == rounds[3]


def test_two_rounds_that_no_cause_explains_have_no_culprit() -> None:
    """That of γ 2 takes 1.36 times as long as predicted, that of γ 4 five times."""
    rounds = dict(zip((2, 4), HEAD_ROUNDS * (1.36, 5.0), strict=True))
    answer = explained(ran(8, 2048, **HEAD), plain_s=STEP, rounds_s=rounds)
    assert answer.culprit == "unexplained" and not answer.explained
    assert "needs a draft step of " in answer.sentence and "a host time of " in answer.sentence
    assert answer.terms["draft_step_s"].measured is None
    tokens = estimate(ran(8, 2048, **HEAD), gamma=2).tokens_per_round
    assert answer.best_gamma == 2  # of those that were timed
    assert answer.best_speedup == pytest.approx(float(tokens) * STEP / rounds[2])


def test_a_slow_round_of_another_gamma_than_the_scenarios_is_not_overlooked() -> None:
    rounds = dict(zip((2, 4), HEAD_ROUNDS * (5.0, 1.0), strict=True))
    with pytest.raises(ConfigError, match="more drafts took less time"):
        explained(ran(8, 2048, **HEAD), rounds_s=rounds)
    rounds = dict(zip((2, 4), HEAD_ROUNDS * (1.0, 5.0), strict=True))
    answer = explained(ran(8, 2048, **HEAD | {"gamma": 2}), rounds_s=rounds)
    assert answer.culprit == "unexplained" and "nothing else than predicted" in answer.sentence


def test_what_a_slow_measured_term_leaves_over_is_stated() -> None:
    scenario = ran(8, 4096, **MODEL)
    point = estimate(scenario)
    known = {"draft_step_s": 1.8 * float(point.draft_step_s)}
    more_s = 0.8 * float(point.draft_total_s)
    answer = explained(scenario, rounds_s={3: float(point.round_s) + more_s + 3e-3}, **known)
    assert answer.culprit == "draft"
    assert answer.sentence.endswith(
        "; another 3 ms of the round may be of the verification or the host"
    )
    exact = explained(scenario, rounds_s={3: float(point.round_s) + more_s}, **known)
    assert exact.culprit == "draft" and "another" not in exact.sentence


@pytest.mark.parametrize("share", [0.98, 1.02])
def test_a_plain_step_longer_than_a_round_is_noted(share: float) -> None:
    round_s = float(HEAD_ROUNDS[1])
    answer = explained(ran(8, 2048, **HEAD), plain_s=share * round_s, rounds_s={4: round_s})
    assert answer.culprit == "plain"
    assert ("is longer than the round" in answer.sentence) == (share > 1.0)


@pytest.mark.parametrize("version", ["0.26", "0.23"])
def test_launches_that_are_predicted_are_no_reason(version: str) -> None:
    """Of a draft that vLLM 0.26 launches layer by layer; with vLLM 0.23, it runs eagerly."""
    scenario = ran(8, 4096, **MODEL)
    point = estimate(scenario)
    answer = explained(
        scenario,
        version,
        plain_s=float(point.plain_tpot_s),
        rounds_s={3: float(point.round_s) + (55e-3 if version == "0.26" else 24e-3)},
    )
    assert answer.culprit == "draft"
    expected = {"0.26": "the draft was slow: ", "0.23": "the draft ran eagerly: "}
    assert answer.sentence.startswith(expected[version])


def test_the_eager_draft_of_vllm_0_23_is_named_with_the_profile_of_0_26() -> None:
    """Rounds on one H200 (docs/results/serving-engines.md)."""
    times_s = {"plain_s": 6.0e-3, "rounds_s": {1: 14.2e-3, 3: 37.8e-3}}
    answer = explained(ran(8, 4096, **MODEL), "0.23.0", **times_s)
    assert answer.culprit == "draft" and answer.sentence.startswith("the draft ran eagerly: ")


@pytest.mark.parametrize("seed", [*range(8), 32])
def test_rounds_two_percent_longer_do_not_reverse_a_confident_answer(seed: int) -> None:
    """All rounds, or that of the scenario's γ alone; the plain step was not measured."""
    scenario, gammas = scenario_of(seed)
    predicted, before = times(scenario, gammas), None
    for step in range(-8, 40):
        longer = {g: 1.0 if seed % 2 and g in gammas[1:] else 1.02**step for g in gammas}
        rounds = {g: s * longer[g] for g, s in predicted.items()}
        try:
            answer = diagnose(scenario, Measured(rounds_s=rounds, exported_graphs=True))
        except ConfigError:  # a round with more drafts must not be shorter
            before = None
            continue
        if before is not None and is_confident(before) and is_confident(answer):
            ratio = (answer.best_speedup or 0) / (before.best_speedup or 1)
            assert abs(math.log(ratio)) < 0.05, (before.sentence, answer.sentence)
        before = answer


def is_confident(answer: Diagnosis) -> bool:
    return answer.explained and not answer.or_else


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("factor", [1.5, 2.0])
def test_a_slow_gpu_is_listed_and_named_with_a_plain_step(
    seed: int, plain: bool, factor: float
) -> None:
    """Every pass takes `factor` times as long, with times rounded as stated."""
    scenario, gammas = scenario_of(seed)
    engine = replace(scenario.engine, host=())  # so that passes are all of a round
    scenario = replace(scenario, engine=engine)
    point = estimate(scenario)
    rounds = {g: factor * s for g, s in times(scenario, gammas).items()}
    step_s = factor * float(point.plain_tpot_s)
    answer = explained(scenario, rounds_s=rounds, plain_s=step_s if plain else None)
    if answer.culprit == "none":
        return
    listed = [answer, *(one for one in answer.or_else)]
    [gpu] = [one for one in listed if one.culprit == "plain"]
    assert gpu.speedup == pytest.approx(float(point.speedup), rel=0.01)
    if is_confident(answer):
        gains = np.asarray(estimate(scenario, gamma=list(range(1, 17))).speedup)
        best = gains[gpu.best_gamma - 1] if gpu.best_gamma else 1.0
        assert best >= 0.98 * max(1.0, float(np.max(gains)))


@pytest.mark.parametrize("gamma", [1, 4])
def test_a_verification_slow_at_every_gamma_is_named_whichever_is_asked(gamma: int) -> None:
    """A default graph holds the round of one γ, and none that of the other."""
    values = {"target": "qwen3-32b", "engine": "vllm", "acceptance": 0.9}
    scenario = ran(3, 500, **HEAD | values | {"gamma": gamma})
    point = estimate(scenario, gamma=[1, 4])
    rounds = dict(zip((1, 4), point.round_s + 0.4 * point.verify.total_s, strict=True))
    answer = explained(scenario, plain_s=float(point.plain_tpot_s), rounds_s=rounds)
    assert answer.culprit == "verification" and answer.explained
    assert answer.sentence.startswith("the verification was slow")
    verify_s = 1.4 * float(estimate(scenario).verify.total_s)
    assert answer.terms["verify_s"].measured == pytest.approx(verify_s, rel=0.01)


def test_a_cause_with_longer_times_than_measured_is_refuted() -> None:
    """A host that slow would slow plain steps, and such drafts those of γ 7."""
    values = {"target": "qwen2.5-7b", "engine": "vllm", "acceptance": 0.75}
    scenario = ran(3, 3000, **HEAD | values)
    point = estimate(scenario, gamma=[4, 7])
    rounds = dict(zip((4, 7), point.round_s + 1.6 * point.verify.total_s, strict=True))
    answer = explained(scenario, plain_s=float(point.plain_tpot_s), rounds_s=rounds)
    assert answer.culprit == "verification"
    assert not {"host", "draft"} & {one.culprit for one in answer.or_else}


def test_a_gpu_so_slow_that_the_host_no_longer_delays_its_steps_is_named() -> None:
    """All passes 2.6 times as long, in plain steps that wait for the host where they are not."""
    values = {"target": "llama-3.2-1b", "engine": "vllm", "acceptance": 0.75}
    scenario = ran(20, 500, **HEAD | values | {"gamma": 7, "tp": 2})
    point = estimate(scenario, gamma=[1, 7])
    assert float(point.plain_overhead_s) > 0.2 * float(point.plain_tpot_s)
    rounds = dict(zip((1, 7), 2.6 * (point.draft_total_s + point.verify.total_s), strict=True))
    step_s = 2.6 * float(point.target_step.total_s)
    assert min(step_s, *rounds.values()) > float(point.plain_tpot_s)
    answer = explained(scenario, plain_s=step_s, rounds_s=rounds)
    assert answer.culprit == "plain" and answer.explained
    verify_s = 2.6 * float(estimate(scenario).verify.total_s)
    assert answer.terms["verify_s"].measured == pytest.approx(verify_s, rel=0.01)
