"""The culprit of a slow round is named, and the best γ follows from the measured terms."""

import math

import pytest
from explained_rounds import explained, ran

from perfmodel import ConfigError, estimate
from perfmodel.acceptance.tokens import Acceptance
from perfmodel.speculation import time_error, without_speculation
from perfmodel.speculation.diagnosis import Measured, diagnose, implausible

# vLLM 0.23.0 and 0.26.0 on one H200, Llama-3.1-8B, every draft accepted: batch, context, then
# milliseconds of a plain step and of rounds with a Llama-3.2-1B draft by γ
# (docs/results/serving-engines.md).
EAGER = [
    (24, 4096, 8.6, {3: 41.0, 1: 15.6}),
    (8, 4096, 6.0, {3: 37.8, 1: 14.2}),
    (1, 16_384, 5.5, {3: 29.1, 1: 11.6}),
]
CAPTURED = (24, 4096, None, {3: 19.7})


def seconds(rounds: dict[int, float]) -> dict[int, float]:
    return {gamma: 1e-3 * ms for gamma, ms in rounds.items()}


@pytest.mark.parametrize(("batch", "context", "plain", "rounds"), EAGER)
def test_the_eager_draft_of_vllm_0_23_is_named(
    batch: int, context: int, plain: float, rounds: dict[int, float]
) -> None:
    times = {"plain_s": 1e-3 * plain, "rounds_s": seconds(rounds)}
    answer = explained(ran(batch, context, acceptance=0.8), "0.23.0", **times)
    assert answer.culprit == "draft"
    assert answer.sentence.startswith("the draft ran eagerly: ")
    assert answer.sentence.endswith(
        "vLLM 0.23 does not capture it, vLLM 0.26 captures all but its attention"
    )
    term = answer.terms["draft_step_s"]
    assert term.derived and 7e-3 < (term.measured or 0) < 13e-3 and (term.predicted or 0) < 2e-3
    assert answer.best_gamma == 0 and (answer.speedup or 9) < 0.7
    unknown = explained(ran(batch, context, acceptance=0.8), **times)
    assert unknown.sentence.startswith("the draft probably ran eagerly, without CUDA graphs")


@pytest.mark.parametrize(
    ("profile", "version", "runs_eagerly"),
    [("0.23", "", True), ("0.23", "0.23.0", True), ("0.23", "0.26", False), ("0.26", "", False)],
)
def test_an_eager_draft_is_named_where_its_time_is_as_predicted(
    profile: str, version: str, runs_eagerly: bool
) -> None:
    scenario = ran(8, engine=f"vllm-{profile}")
    answer = explained(scenario, version, rounds_s={3: float(estimate(scenario).round_s)})
    assert answer.culprit == "none"
    assert ("vLLM 0.23 does not capture it, vLLM 0.26" in answer.sentence) == runs_eagerly


def test_a_captured_draft_is_slow_but_not_eager() -> None:
    batch, context, _, rounds = CAPTURED
    answer = explained(ran(batch, context), "0.26.0", rounds_s=seconds(rounds))
    assert answer.culprit == "draft" and answer.sentence.startswith("the draft was slow: 3.72 ms")


def test_rounds_between_vllms_graphs_are_named() -> None:
    """EAGLE-3 of vLLM 0.26 on an H200 with γ=4: 45 tokens took 14.46 ms."""
    times = {"plain_s": 5.54e-3, "rounds_s": {4: 14.46e-3}}
    head = {"draft": "eagle3", "draft_policy": None, "gamma": 4}
    nine, ten = (explained(ran(batch, 1424, **head), "0.26.0", **times) for batch in (9, 10))
    assert nine.sentence.startswith("the round ran in pieces") and "45 tokens" in nine.sentence
    assert nine.culprit == "verification" and ten.culprit == "draft"
    assert "of default size" not in ten.sentence
    innocent = explained(ran(9, 1424, **head), "0.26.0", **times, verify_s=6e-3)
    assert "of default size" not in innocent.sentence
    large = explained(ran(124, 1104, **head), "0.26.0", plain_s=10.57e-3, rounds_s={4: 42.2e-3})
    assert "620 tokens exceeds vLLM's largest CUDA graph of 512" in large.sentence
    older = explained(ran(9, 1424, **head), "0.23.0", **times)
    assert "of default size" not in older.sentence


@pytest.mark.parametrize(("others", "explains"), [(1.1, True), (1.8, False)])
def test_a_round_in_pieces_explains_itself_beside_rounds_in_graphs(
    others: float, explains: bool
) -> None:
    """γ 4 takes twice as long, and leaves over those of γ 1 and 3 that are as slow themselves."""
    scenario = ran(9, 1424, gamma=4, **HEAD)
    rounds = {g: float(estimate(scenario, gamma=g).round_s) for g in (1, 3, 4)}
    slow = {g: (2.0 if g == 4 else others) * s for g, s in rounds.items()}
    plain_s = float(estimate(scenario).plain_tpot_s)
    answer = explained(scenario, "0.26.0", plain_s=plain_s, rounds_s=slow)
    assert ("in pieces" in answer.sentence) == explains


@pytest.mark.parametrize("name", ["draft_step_s", "verify_s", "host_s", "plain_s"])
def test_the_term_that_was_slowed_is_the_culprit(name: str) -> None:
    scenario = ran(acceptance=0.8)
    point = estimate(scenario)
    terms = {
        "plain_s": float(point.plain_tpot_s),
        "verify_s": float(point.verify.total_s),
        "draft_step_s": float(point.draft_step_s),
        "host_s": 0.0,
    }
    exact = explained(scenario, **terms)
    assert exact.culprit == "none" and exact.speedup == pytest.approx(float(point.speedup))
    terms[name] += 5e-3
    answer = explained(scenario, **terms)
    names = {"draft_step_s": "draft", "verify_s": "verification", "host_s": "host"}
    assert answer.culprit == names.get(name, "plain")
    assert answer.terms[name].measured == pytest.approx(terms[name])
    slower = name != "plain_s"
    assert ((answer.speedup or 0) < float(point.speedup)) is slower


def test_the_host_time_is_what_remains_of_a_round() -> None:
    scenario = ran(acceptance=0.8, gamma=2)
    point = estimate(scenario, gamma=[1, 2, 4])
    rounds = dict(zip((1, 2, 4), (float(s) + 4e-3 for s in point.round_s), strict=True))
    answer = explained(scenario, rounds_s=rounds)
    assert answer.culprit == "host"
    assert answer.terms["host_s"].measured == pytest.approx(4e-3)
    draft = answer.terms["draft_step_s"]
    assert draft.measured == pytest.approx(draft.predicted)


def test_low_acceptance_and_the_best_gamma() -> None:
    scenario = ran(acceptance=0.9, gamma=5)
    round_s = {5: float(estimate(scenario).round_s)}
    answer = explained(scenario, rounds_s=round_s, acceptance=Acceptance.from_alpha(0.4))
    assert answer.culprit == "acceptance" and answer.best_gamma == 1
    assert (answer.best_speedup or 0) > (answer.speedup or 9)
    expected = explained(scenario, rounds_s=round_s, acceptance=Acceptance.from_alpha(0.9))
    assert expected.culprit == "none" and (expected.best_gamma or 0) >= 4


def test_a_round_longer_than_terms_that_are_as_predicted_is_unexplained() -> None:
    point = estimate(ran())
    terms = {"draft_step_s": float(point.draft_step_s), "verify_s": float(point.verify.total_s)}
    whole_s = float(point.round_s)
    answer = explained(ran(), rounds_s={3: 1.5 * whole_s}, host_s=0.0, **terms)
    assert answer.culprit == "unexplained" and not answer.explained
    more_ms = 1e3 * 0.5 * whole_s
    assert f"is {more_ms:.3g} ms longer than their sum" in answer.sentence


def test_the_interval_of_a_plain_step_has_no_least_width() -> None:
    scenario = ran(24, 4096, gamma=3, **HEAD)
    high = float(estimate(scenario).plain_tpot_s) * math.exp(
        1.645 * time_error(without_speculation(scenario))
    )
    assert explained(scenario, plain_s=1.005 * high).culprit == "plain"
    assert explained(scenario, plain_s=0.995 * high).culprit == "none"


def test_a_round_in_pieces_is_no_evidence_on_a_round_in_a_graph() -> None:
    """EAGLE-3 of vLLM 0.26: γ=4 has no full graph for 45 tokens, γ=3 has one for 36."""
    scenario = ran(9, 1424, gamma=3, **HEAD)
    slow_s = 1.13 * float(estimate(scenario).round_s)
    alone = explained(scenario, rounds_s={3: slow_s})
    both = explained(scenario, rounds_s={3: slow_s, 4: 14.46e-3})
    assert alone.culprit == both.culprit != "none"
    assert [one.culprit for one in alone.or_else] == [one.culprit for one in both.or_else]


def test_a_verification_beyond_the_graphs_is_named() -> None:
    scenario = ran(batch=150, context=1024, gamma=4)
    measured = Measured(verify_s=0.08, graph_tokens=512)
    assert (
        "750 tokens exceeds the largest CUDA graph of 512" in diagnose(scenario, measured).sentence
    )


def test_lookups_have_no_draft_step() -> None:
    answer = explained(ran(draft="ngram", draft_policy=None), rounds_s={3: 12.8e-3})
    assert answer.culprit == "host" and answer.terms["draft_step_s"].measured == 0.0
    assert answer.best_gamma is None and answer.speedup is None  # the acceptance is unknown


@pytest.mark.parametrize(
    ("draft", "share", "culprit"), [("ngram", 0.95, "none"), ("llama-3.2-1b", 0.595, "faster")]
)
def test_a_round_faster_than_predicted_is_no_contradiction(
    draft: str, share: float, culprit: str
) -> None:
    scenario = ran(draft=draft, draft_policy="full", acceptance=0.8)
    round_s = share * float(estimate(scenario).round_s)
    answer = explained(scenario, rounds_s={3: round_s})
    assert answer.culprit == culprit
    verify, step = answer.terms["verify_s"], answer.terms["draft_step_s"]
    assert verify.measured == pytest.approx(share * (verify.predicted or 0))
    assert step.measured == pytest.approx(share * (step.predicted or 0))
    plain = answer.terms["plain_s"]
    assert plain.derived and plain.measured == pytest.approx(share * (plain.predicted or 0))
    assert answer.speedup == pytest.approx(float(estimate(scenario).speedup))


HEAD = {"draft": "eagle3", "draft_policy": None, "engine": "vllm", "acceptance": 0.8}


def test_a_round_in_the_interval_has_no_culprit() -> None:
    """EAGLE-3 of vLLM 0.26 on an H200 with exported graphs."""
    answer = explained(ran(9, 1424, gamma=3, **HEAD), rounds_s={3: 7.65e-3})
    assert answer.culprit == "none" and answer.or_else == ()


@pytest.mark.parametrize("plain", [False, True])
def test_a_modest_error_of_the_verification_is_no_slow_draft_or_host(plain: bool) -> None:
    """GPU time hides the host, and T_V is predicted too fast by a little more than the interval."""
    ran_as = ran(124, 1104, gamma=3, **HEAD)
    point = estimate(ran_as)
    round_s = math.exp(1.1 * 1.645 * time_error(ran_as)) * float(point.round_s)
    plain_s = float(point.plain_tpot_s) if plain else None
    answer = explained(ran_as, plain_s=plain_s, rounds_s={3: round_s})
    assert answer.culprit == "verification" and "is predicted too fast" in answer.sentence
    assert plain_s is None or "host" not in [one.culprit for one in answer.or_else]
    assert answer.terms["plain_s"].measured == plain_s
    speedup = float(point.tokens_per_round * point.plain_tpot_s) / round_s
    assert answer.speedup == pytest.approx(speedup)


@pytest.mark.parametrize("name", ["round", "plain step"])
def test_times_are_compared_with_the_90_percent_interval(name: str) -> None:
    """1.645 standard errors around the logarithm of the predicted time."""
    scenario = ran(24, 4096, gamma=3, **HEAD | {"engine": "vllm-0.23"})
    point, is_round = estimate(scenario), name == "round"
    expected = float(point.round_s if is_round else point.plain_tpot_s)
    error = time_error(scenario if is_round else without_speculation(scenario))
    for share, culprit in (
        (1.02, "verification" if is_round else "plain"),
        (0.98, "none"),
        (-0.98, "none"),
        (-1.02, "faster"),
    ):
        taken = expected * math.exp(share * 1.645 * error)
        times = {"rounds_s": {3: taken}} if is_round else {"plain_s": taken}
        answer = explained(scenario, **times)
        assert answer.culprit == culprit
        assert ("is faster than" in answer.sentence) == (culprit == "faster")


def test_what_cannot_be_explained_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a draft"):
        explained(ran(draft="none", draft_policy=None, gamma=None), plain_s=1.0)
    with pytest.raises(ConfigError, match="nothing was measured"):
        explained(ran())
    with pytest.raises(ConfigError, match="shorter than its terms, a verification of 12 ms; "):
        explained(ran(), rounds_s={3: 10e-3}, verify_s=12e-3)
    with pytest.raises(ConfigError, match=r"no round with gamma 3 was measured; .* one of 1, 2"):
        explained(ran(), rounds_s={1: 9e-3, 2: 14e-3})
    with pytest.raises(ConfigError, match="ngram has no draft step"):
        explained(ran(draft="ngram", draft_policy=None), draft_step_s=1e-3)
    with pytest.raises(ConfigError, match="more drafts took less time"):
        explained(ran(), rounds_s={3: 9e-3, 1: 14e-3})


@pytest.mark.parametrize("share", [0.9, 1.1])
@pytest.mark.parametrize("names", [("draft_step_s",), ("draft_step_s", "verify_s", "host_s")])
def test_a_round_is_no_shorter_than_its_measured_terms(
    names: tuple[str, ...], share: float
) -> None:
    times = {"draft_step_s": 4e-3, "verify_s": 9e-3, "host_s": 2e-3}
    whole_s = 3 * 4e-3 + (11e-3 if "verify_s" in names else 0.0)
    known = {name: times[name] for name in names}
    if share < 1.0:
        with pytest.raises(ConfigError, match="shorter than its terms, "):
            explained(ran(), rounds_s={3: share * whole_s}, **known)
        return
    if "verify_s" not in names:
        whole_s += float(estimate(ran()).verify.total_s)
    answer = explained(ran(), rounds_s={3: share * whole_s}, **known)
    assert {n: answer.terms[n].measured for n in names} == known


@pytest.mark.parametrize("draft", ["ngram", "eagle3"])
def test_the_terms_of_a_round_add_up_to_it(draft: str) -> None:
    """Those that were not measured share what a measured one leaves."""
    scenario = ran(8, draft=draft, draft_policy=None)
    verify_s, host_s = float(estimate(scenario).verify.total_s), 20e-3
    for share in (0.96, 1.0 - 1e-12, 1.0):
        round_s = share * (verify_s + host_s)
        answer = explained(scenario, rounds_s={3: round_s}, host_s=host_s)
        parts = [answer.terms[name].measured or 0.0 for name in ("draft_step_s", "verify_s")]
        assert answer.culprit == "host"
        assert 3 * parts[0] + parts[1] + host_s == pytest.approx(round_s)


def test_a_measured_draft_step_is_kept_where_the_round_is_faster_than_predicted() -> None:
    point = estimate(ran())
    draft_s, round_s = 1.1 * float(point.draft_step_s), 0.85 * float(point.round_s)
    answer = explained(ran(), rounds_s={3: round_s}, draft_step_s=draft_s)
    draft, verify, host = (answer.terms[n] for n in ("draft_step_s", "verify_s", "host_s"))
    assert draft.measured == draft_s and not draft.derived and verify.derived
    whole_s = 3 * draft_s + (verify.measured or 0) + (host.measured or 0)
    assert whole_s == pytest.approx(round_s)


@pytest.mark.parametrize(
    ("name", "culprit_of"),
    [("plain_s", "plain step"), ("verify_s", "verification"), ("draft_step_s", "draft step")],
)
def test_times_in_another_unit_are_refused(name: str, culprit_of: str) -> None:
    point = estimate(ran())
    terms = {
        "plain_s": point.plain_tpot_s,
        "verify_s": point.verify.total_s,
        "draft_step_s": point.draft_step_s,
    }
    exact = float(terms[name])
    assert implausible(ran(), Measured(**{name: exact})) == ""
    in_seconds = implausible(ran(), Measured(**{name: 1e-3 * exact}))
    assert in_seconds.startswith(f"a {culprit_of} of ") and in_seconds.endswith("in seconds?")
    assert "seconds?" not in implausible(ran(), Measured(**{name: 1e-9 * exact}))
    assert "in microseconds?" in implausible(ran(), Measured(**{name: 1e3 * exact}))
    round_s = float(point.round_s)
    with pytest.raises(ConfigError, match=r"a round with gamma 3 of .* is impossible"):
        explained(ran(), rounds_s={1: round_s, 3: 1e-3 * round_s})


def test_no_step_is_faster_than_reading_the_weights() -> None:
    """Llama-3.1-8B in bf16 has 7.5e9 parameters in a pass; an H200 reads 4.8 TB/s."""
    least_s = 2 * 7.5e9 / 4.8e12
    assert "impossible" in implausible(ran(1, 128), Measured(plain_s=0.85 * least_s))
    assert implausible(ran(1, 128), Measured(plain_s=1.05 * least_s)) == ""
    assert implausible(ran(1, 128, tp=2), Measured(plain_s=0.6 * least_s)) == ""


@pytest.mark.parametrize(("draft", "gamma"), [("eagle3", 4), ("llama-3.2-1b", 3)])
@pytest.mark.parametrize("factor", [1.25, 1.5, 2.0])
def test_a_gpu_that_is_slow_without_drafts_too_is_no_slow_host(
    draft: str, gamma: int, factor: float
) -> None:
    """Of a target whose plain steps hide the host."""
    plan = {"draft": draft, "gamma": gamma, "draft_policy": None if draft == "eagle3" else "full"}
    scenario = ran(8, 2048, engine="vllm", acceptance=0.7, **plan)
    point = estimate(scenario)
    plain_s, round_s = float(point.plain_tpot_s), float(point.round_s)
    answer = explained(scenario, plain_s=factor * plain_s, rounds_s={gamma: factor * round_s})
    assert answer.culprit == "plain" and not answer.or_else
    assert answer.sentence.startswith("the target itself is slow")
