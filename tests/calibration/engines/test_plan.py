"""Plans of engine measurements: reproducible, within memory and time, and useful for a fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.engines.plan import (
    LEAST_POINTS,
    RUN_S,
    TOKEN_S,
    Plan,
    PlanOptions,
    _cost,
    default_draft,
    plan_run,
    point_scenario,
    point_seconds,
)
from calibration.engines.records import Point, Setup
from perfmodel import ConfigError, estimate

H200 = PlanOptions(gpu="h200")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_run(H200)


def test_the_same_options_give_the_same_plan_and_another_seed_another(plan: Plan) -> None:
    assert plan_run(H200) == plan
    assert plan_run(replace(H200, seed=1)).points != plan.points


def test_the_default_plan_takes_at_most_fifteen_minutes(plan: Plan) -> None:
    assert 10 * 60 < plan.seconds <= 15 * 60
    assert plan.setups[0].method == "plain" and len(plan.setups) >= 4
    assert {s.method for s in plan.setups} == {"plain", "draft", "eagle3", "ngram"}
    assert all(len(plan.of(s)) >= LEAST_POINTS for s in plan.setups)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(("h100-sxm", "l40s", "b200")))
def test_every_point_fits_the_gpu_under_its_setup(seed: int, gpu: str) -> None:
    options = PlanOptions(gpu=gpu, seed=seed, minutes=12)
    for point in plan_run(options).points:
        scenario = point_scenario(
            point.setup,
            gpu=gpu,
            engine="kernels",
            batch=point.batch,
            prompt=point.prompt_tokens,
        )
        assert float(estimate(scenario).memory.fraction) <= options.memory_share


def test_short_steps_are_repeated_more_often() -> None:
    """12 runs of a small model, three of a large batch; at least 1.5 s of rounds, if not 12."""
    rounds = {}
    for target, batch, prompt in (("llama-3.2-1b", 1, 1024), ("llama-3.1-8b", 64, 8192)):
        setup = Setup(target=target, method="plain", gamma=0)
        point = Point(setup=setup, batch=batch, prompt_tokens=prompt)
        _, prefill_s, round_s = _cost(setup, "h200", batch, prompt)
        for served in (False, True):
            spent = point_seconds(point, replace(H200, served=served)) - batch * prefill_s
            runs = 6 if served else 12 if batch == 1 else 3
            rounds[batch, served] = (spent - runs * (RUN_S + TOKEN_S * batch * prompt)) / round_s
    expected = {(1, False): 12 * 56, (64, False): 3 * 56, (1, True): 3 * 64, (64, True): 3 * 64}
    assert rounds == pytest.approx(expected)


def test_all_setups_of_a_target_time_the_same_workloads(plan: Plan) -> None:
    workloads = {s: {(p.workload, p.held_back) for p in plan.of(s)} for s in plan.setups}
    assert len({frozenset(w) for w in workloads.values()}) == 1


def test_a_share_of_the_workloads_is_held_back(plan: Plan) -> None:
    points = plan.of(plan.setups[0])
    kept = sum(p.held_back for p in points)
    assert 1 <= kept <= len(points) // 2
    assert not any(p.held_back for p in plan_run(replace(H200, hold_back=0.0)).points)


def test_workloads_spread_over_batch_and_context(plan: Plan) -> None:
    points = plan.of(plan.setups[0])
    assert max(p.batch for p in points) >= 8 * min(p.batch for p in points)
    assert max(p.prompt_tokens for p in points) >= 8 * min(p.prompt_tokens for p in points)
    assert all(p.prompt_tokens % 16 == 0 for p in points)


def test_a_method_that_is_started_twice_gets_distant_gammas() -> None:
    setups = plan_run(replace(H200, minutes=25)).setups
    for method in ("draft", "eagle3", "ngram"):
        gammas = [s.gamma for s in setups if s.method == method]
        assert len(set(gammas)) == len(gammas)
    assert max(s.gamma for s in setups) - min(s.gamma for s in setups if s.gamma) >= 3


def test_each_target_starts_with_plain_decoding() -> None:
    targets = ("llama-3.1-8b", "llama-3.2-1b")
    setups = plan_run(replace(H200, targets=targets, methods=("eagle3",), minutes=20)).setups
    for target in targets:
        assert next(s for s in setups if s.target == target).method == "plain"


def test_a_target_without_a_draft_model_is_measured_with_the_other_methods() -> None:
    targets = ("llama-3.1-8b", "llama-3.2-1b")
    setups = plan_run(replace(H200, targets=targets, minutes=24)).setups
    assert {s.target for s in setups if s.method == "draft"} == {"llama-3.1-8b"}
    assert {s.method for s in setups if s.target == "llama-3.2-1b"} >= {"plain", "eagle3"}


def test_a_running_server_has_one_setup_and_no_start() -> None:
    options = replace(H200, served=True, methods=("eagle3",), gammas=(3,), minutes=2)
    served = plan_run(options)
    assert [(s.method, s.gamma) for s in served.setups] == [("eagle3", 3)]
    assert served.seconds < 5 * 60
    plain = plan_run(replace(options, methods=("plain",)))
    assert [(s.method, s.gamma) for s in plain.setups] == [("plain", 0)]


def test_the_draft_is_a_small_model_of_the_same_tokenizer() -> None:
    assert default_draft("llama-3.1-8b") == "llama-3.2-1b"
    with pytest.raises(ConfigError, match="give one with --draft"):
        default_draft("llama-3.2-1b")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"minutes": 1.0}, "increase --minutes"),
        ({"hold_back": 1.0}, "hold_back"),
        ({"gammas": (0,)}, "gammas"),
        ({"methods": ("medusa",)}, "medusa"),
        ({"methods": ()}, "no method is given"),
        ({"batch": (8, 2)}, "8:2 is not a valid range"),
        ({"served": True}, "one value each"),
        ({"targets": ("llama-3.1-70b",), "methods": ("ngram",)}, "fewer than two workloads"),
    ],
)
def test_options_that_allow_no_plan_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_run(replace(H200, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "target, dropped, reason",
    [
        ("gemma-3-27b", "eagle3", "no hidden states of gemma3 models"),
        ("qwen3-30b-a3b", "mtp", "no MTP layers"),
        ("llama-3.2-1b", "draft", "give one with --draft"),
    ],
)
def test_methods_that_vllm_does_not_run_with_a_target_are_left_out_with_the_reason(
    target: str, dropped: str, reason: str
) -> None:
    options = PlanOptions(
        gpu="h200", targets=(target,), methods=(dropped, "ngram"), minutes=30, context=(1024, 4096)
    )
    plan = plan_run(options)
    assert {setup.method for setup in plan.setups} == {"plain", "ngram"}
    (line,) = plan.left_out
    assert f"{dropped} of {target}" in line and reason in line
