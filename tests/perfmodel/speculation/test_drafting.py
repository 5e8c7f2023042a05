"""The cost of each draft method: steps limited by the budget, and a start once per request."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import ENGINES, GPUS, MEASURED_GPUS, a_scenario

from perfmodel import estimate
from perfmodel.passes.forward import forward_pass
from perfmodel.specs.draft import DraftPolicy
from perfmodel.speculation import target_rank
from perfmodel.speculation.drafting import DRAFTERS, draft_start_s, draft_step

CONTEXTS = np.array([2048.0, 8192.0, 32_768.0, 131_072.0])
BUDGETED = (("self", "streamingllm"), ("self", "snapkv"), ("llama-3.2-1b", "streamingllm"))


def step_s(
    context: object, batch: float = 16.0, budget: float = 512.0, gamma: float = 4.0,
    **values: object,
) -> object:  # fmt: skip
    scenario = a_scenario(**values)
    step = draft_step(
        scenario,
        batch=np.asarray(batch),
        prompt_tokens=np.asarray(context, float),
        gamma=np.asarray(gamma),
        kv_budget_tokens=np.asarray(budget),
    )
    assert step is not None
    return step.total_s


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("draft, policy", BUDGETED)
def test_a_draft_step_with_a_fixed_budget_costs_the_same_at_any_context(
    draft: str, policy: str, gpu: str
) -> None:
    times = step_s(CONTEXTS, draft=draft, draft_policy=policy, gpu=gpu, kv_budget=512)
    assert np.all(np.broadcast_to(times, 4) == np.broadcast_to(times, 4)[0])


@pytest.mark.parametrize("gpu", MEASURED_GPUS)
@pytest.mark.parametrize("draft, policy", BUDGETED)
def test_the_relative_cost_of_a_budgeted_draft_vanishes_as_context_grows(
    draft: str, policy: str, gpu: str
) -> None:
    scenario = a_scenario(draft=draft, draft_policy=policy, gpu=gpu, kv_budget=512, tp=8)
    point = estimate(scenario, prompt_tokens=CONTEXTS, batch=64)
    assert point.draft_step is not None
    ratio = point.draft_step.total_s / point.target_step.total_s
    assert np.all(np.diff(ratio) < 0)
    assert ratio[-1] < 0.25


def test_the_cost_of_a_full_cache_grows_with_the_context() -> None:
    times = np.asarray(step_s(CONTEXTS, draft="llama-3.2-1b", draft_policy="full"))
    assert np.all(np.diff(times) > 0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("gpu", MEASURED_GPUS)
def test_a_self_draft_with_the_full_cache_has_the_attention_of_the_target(
    gpu: str, engine: str
) -> None:
    scenario = a_scenario(draft="self", draft_policy="full", gpu=gpu, engine=engine)
    step = draft_step(
        scenario,
        batch=np.asarray(16.0),
        prompt_tokens=CONTEXTS,
        gamma=np.asarray(4.0),
        kv_budget_tokens=np.asarray(0.0),
    )
    plain = forward_pass(target_rank(scenario), batch=16, context_tokens=CONTEXTS)
    assert step is not None
    np.testing.assert_array_equal(step.part("attention").seconds, plain.part("attention").seconds)


@settings(max_examples=30, deadline=None)
@given(
    draft=st.sampled_from(BUDGETED),
    budgets=st.tuples(st.integers(16, 16_384), st.integers(16, 16_384)),
    context=st.integers(16, 32_768),
)
def test_a_step_never_gets_cheaper_as_the_budget_grows_and_stops_at_the_context(
    draft: tuple[str, str], budgets: tuple[int, int], context: int
) -> None:
    name, policy = draft
    values = {"draft": name, "draft_policy": policy, "kv_budget": 16}
    low, high = (float(step_s(context, budget=b, **values)) for b in sorted(budgets))
    assert high >= low
    assert step_s(context, budget=context, **values) == step_s(
        context, budget=2.0 * context, **values
    )


def test_a_draft_on_more_ranks_is_faster() -> None:
    values = {"draft": "llama-3.1-8b", "target": "llama-3.1-70b", "tp": 8}
    one, eight = (float(step_s(32_000, draft_policy="full", draft_tp=n, **values)) for n in (1, 8))
    assert eight < one


STANDALONE = {"draft": "llama-3.2-1b", "draft_policy": "streamingllm", "kv_budget": 512}


def test_only_the_first_of_a_rounds_steps_reads_two_tokens() -> None:
    """Three steps more are three steps of one token more, whatever the first costs."""
    phase = [g * float(step_s(8192, gamma=g, engine="specroof", **STANDALONE)) for g in (1, 4, 7)]
    plain = [g * float(step_s(8192, gamma=g, engine="plain-graph", **STANDALONE)) for g in (1, 4)]
    assert phase[1] - phase[0] == pytest.approx(phase[2] - phase[1], rel=1e-12)
    assert plain[1] == pytest.approx(4 * plain[0], rel=1e-12)
    one_token_s = (phase[2] - phase[0]) / 6
    assert one_token_s < phase[0] < 2 * one_token_s


def test_a_first_step_of_two_tokens_computes_the_logits_of_one() -> None:
    scenario = a_scenario(engine="specroof", batch=64, **STANDALONE)
    drafter, sizes = DRAFTERS["model", "streamingllm"], np.asarray(512.0)
    rank = replace(target_rank(scenario), is_draft=True)
    one, two = (
        drafter.step(rank, np.asarray(64.0), sizes, sizes, new_tokens=count) for count in (1, 2)
    )
    for name in ("lm_head", "sampling"):
        np.testing.assert_array_equal(one.part(name).seconds, two.part(name).seconds)
    assert two.part("norm").seconds > one.part("norm").seconds


@pytest.mark.parametrize("policy", list(DraftPolicy))
def test_a_self_draft_reads_one_token_a_step_at_any_gamma(policy: str) -> None:
    values = {"draft": "self", "draft_policy": policy, "engine": "specroof"}
    assert step_s(8192, gamma=1.0, **values) == step_s(8192, gamma=8.0, **values)


# ---- once per request -------------------------------------------------------------------------


def start_s(**values: object) -> float:
    scenario = a_scenario(**values)
    prompt, budget = scenario.workload.prompt_tokens, scenario.plan.kv_budget_tokens or 0
    return float(draft_start_s(scenario, np.asarray(float(prompt)), np.asarray(float(budget))))


def test_draft_none_costs_nothing() -> None:
    assert start_s(draft="none") == 0.0
    assert estimate(a_scenario()).draft_total_s == 0.0


def test_a_view_of_the_targets_pages_is_free_and_a_copy_is_not() -> None:
    assert start_s(draft="self", engine="specroof") == 0.0
    assert start_s(draft="self", engine="magicdec") > 0.0


def test_the_cost_of_snapkv_selection_grows_with_the_prompt() -> None:
    short, long = (
        start_s(draft="self", draft_policy="snapkv", prompt_tokens=n) for n in (8000, 64_000)
    )
    assert 0.0 < short < long


def test_a_standalone_model_prefills_only_its_budget() -> None:
    kept = start_s(draft="llama-3.2-1b", draft_policy="streamingllm", kv_budget=512)
    whole = start_s(draft="llama-3.2-1b", draft_policy="full")
    assert 0.0 < kept < whole


def test_every_policy_has_a_drafter() -> None:
    own = {policy for kind, policy in DRAFTERS if kind == "self"}
    assert own == set(DraftPolicy)
    assert {policy for kind, policy in DRAFTERS if kind == "model"} == own - {"snapkv"}
