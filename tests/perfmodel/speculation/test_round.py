"""The round: γ = 0 is plain decoding, Ω is never clipped, and the break-even α breaks even."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import (
    DRAFTS,
    ENGINES,
    GPUS,
    SPECULATING,
    a_scenario,
    alphas,
    scenarios,
    with_acceptance,
)

from perfmodel import Scenario, StepTime, estimate, without_speculation
from perfmodel._typing import Floats
from perfmodel.acceptance import tokens_per_round_iid
from perfmodel.passes.parts import GROUPS, Part
from perfmodel.passes.rank import Rank
from perfmodel.speculation.drafting import DRAFTERS, Drafter

FEW = settings(max_examples=40, deadline=None)
LARGEST_FALL = {"h200": 0.25, "h100-sxm": 0.274}  # of attention, with PLAN
DENSE = ("llama-3.1-8b", "llama-2-7b", "llama-3.2-1b", "qwen3-32b")
PLAN = {"draft": "self", "draft_policy": "streamingllm", "kv_budget": 128, "gamma": 3}
GRID = {
    "batch": np.array([1.0, 16.0, 256.0])[:, None, None, None],
    "prompt_tokens": np.array([1024.0, 32_000.0])[:, None, None],
    "gamma": np.array([0.0, 1.0, 4.0, 16.0])[:, None],
    "kv_budget_tokens": np.array([128.0, 1024.0]),
}


class FreeDraft(Drafter):
    """A draft that costs nothing: what plugs in is one small class."""

    def step(self, rank: Rank, batch: Floats, prompt_tokens: Floats, budget: Floats) -> StepTime:
        zero = np.zeros(())
        return StepTime((Part("host", zero, zero, zero, "host", "assumed", np.ones((), bool)),))


# ---- identities -------------------------------------------------------------------------------


@FEW
@given(scenario=scenarios(SPECULATING), alpha=alphas())
def test_gamma_zero_is_plain_decoding_for_any_draft(scenario: Scenario, alpha: float) -> None:
    point = estimate(with_acceptance(scenario, alpha), gamma=0)
    plain = estimate(without_speculation(scenario))
    assert point.round_s == point.tpot_s == point.plain_tpot_s
    assert point.plain_tpot_s == point.target_step.total_s + point.plain_overhead_s
    assert point.round_s == plain.round_s == plain.tpot_s
    assert point.speedup == plain.speedup == 1.0
    assert point.tokens_per_round == plain.tokens_per_round == 1.0
    assert point.verify.total_s == point.target_step.total_s
    assert point.overhead_s == point.plain_overhead_s


@pytest.mark.parametrize("draft", DRAFTS)
def test_gamma_zero_is_plain_decoding_without_a_given_acceptance(draft: dict[str, object]) -> None:
    point = estimate(a_scenario(**draft, gamma=0))
    assert point.speedup == point.tokens_per_round == 1.0


@settings(max_examples=15, deadline=None)
@given(alpha=alphas(), gamma=st.integers(1, 16))
def test_a_free_draft_and_a_free_verify_speed_up_by_the_tokens_per_round(
    alpha: float, gamma: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DRAFTERS, ("self", "streamingllm"), FreeDraft())
        scenario = a_scenario(draft="self", gamma=gamma, engine="kernels", acceptance=alpha)
        point = estimate(scenario)
    assert point.overhead_s == 0.0 and point.draft_total_s == 0.0
    point = replace(point, verify=point.target_step)
    assert point.speedup == pytest.approx(tokens_per_round_iid(alpha, gamma), rel=1e-12)


@FEW
@given(scenario=scenarios(SPECULATING), gamma=st.integers(1, 64))
def test_if_all_drafts_are_accepted_a_round_yields_gamma_plus_one_tokens(
    scenario: Scenario, gamma: int
) -> None:
    point = estimate(with_acceptance(scenario, 1.0), gamma=gamma)
    assert point.tokens_per_round == gamma + 1
    none = estimate(with_acceptance(scenario, 0.0), gamma=gamma)
    assert none.tokens_per_round == 1.0


@FEW
@given(scenario=scenarios(SPECULATING), alpha=alphas(), gamma=st.integers(1, 16))
def test_speedup_is_plain_step_times_tokens_over_the_round(
    scenario: Scenario, alpha: float, gamma: int
) -> None:
    point = estimate(with_acceptance(scenario, alpha), gamma=gamma)
    assert point.draft_step is not None
    plain_s, verify_s = float(point.plain_tpot_s), float(point.verify.total_s)
    round_s = gamma * float(point.draft_step.total_s) + verify_s + float(point.overhead_s)
    tokens = sum(alpha**k for k in range(gamma + 1))
    assert float(point.round_s) == pytest.approx(round_s, rel=1e-12)
    assert float(point.tpot_s) == pytest.approx(round_s / tokens, rel=1e-12)
    assert float(point.speedup) == pytest.approx(plain_s * tokens / round_s, rel=1e-12)


@FEW
@given(scenario=scenarios(SPECULATING), gamma=st.integers(1, 16))
def test_the_break_even_acceptance_gives_a_speedup_of_one(scenario: Scenario, gamma: int) -> None:
    needed = float(estimate(scenario, gamma=gamma).break_even_alpha)
    if needed > 1.0:
        best = estimate(with_acceptance(scenario, 1.0), gamma=gamma)
        assert np.isinf(needed) and best.speedup < 1.0
    else:
        point = estimate(with_acceptance(scenario, needed), gamma=gamma)
        assert float(point.speedup) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("gpu", GPUS)
def test_a_self_draft_with_the_full_cache_saves_at_most_overhead(gpu: str, engine: str) -> None:
    """It is always right, but T_D is T_T: (γ+1) T_T / (γ T_T + T_V) is at most 1."""
    scenario = a_scenario(draft="self", draft_policy="full", gpu=gpu, engine=engine)
    at = {name: values for name, values in GRID.items() if name != "kv_budget_tokens"}
    point = estimate(scenario, **at)
    assert point.draft_step is not None
    assert np.all(point.alpha == 1.0)
    np.testing.assert_array_equal(*np.broadcast_arrays(point.tokens_per_round, GRID["gamma"] + 1.0))
    assert np.all(point.tpot_s >= point.target_step.total_s - 1e-15)
    body = [
        sum(p.seconds for p in step.parts if GROUPS[p.name] != "overhead")
        for step in (point.draft_step, point.target_step)
    ]
    np.testing.assert_allclose(body[0], body[1], rtol=1e-12)


def test_without_a_measurement_the_speedup_is_unknown_but_the_break_even_is_not() -> None:
    point = estimate(a_scenario(target="llama-3.1-70b", draft="llama-3.1-8b", tp=8))
    assert np.isnan(point.speedup) and np.isnan(point.tokens_per_round)
    assert 0.0 < point.break_even_alpha < 1.0


def test_the_first_token_waits_for_both_prefills_and_a_step() -> None:
    plain = estimate(a_scenario())
    drafted = estimate(a_scenario(draft="llama-3.2-1b", draft_policy="full"))
    assert float(plain.ttft_s) == float(plain.prefill_s + plain.plain_tpot_s)
    assert drafted.ttft_s > plain.ttft_s


# ---- vectorised -------------------------------------------------------------------------------


@pytest.mark.parametrize("draft", SPECULATING)
@pytest.mark.parametrize("engine", ENGINES)
def test_one_broadcast_call_equals_a_loop_over_its_points(
    draft: dict[str, object], engine: str
) -> None:
    scenario = a_scenario(**draft, engine=engine, gpu="a100-sxm-80gb", tp=4)
    together = estimate(scenario, **GRID)
    shape = np.broadcast_shapes(*(np.shape(values) for values in GRID.values()))
    names = ("round_s", "tpot_s", "speedup", "ttft_s", "tokens_per_round", "feasible")
    for index in np.ndindex(shape):
        at = {name: float(np.broadcast_to(v, shape)[index]) for name, v in GRID.items()}
        alone = estimate(scenario, **at)
        for name in names:
            got = np.broadcast_to(getattr(together, name), shape)[index]
            np.testing.assert_allclose(got, getattr(alone, name), rtol=1e-12, err_msg=name)
        total = np.broadcast_to(together.memory.total, shape)[index]
        assert float(total) == pytest.approx(float(alone.memory.total), rel=1e-12)


@settings(max_examples=15, deadline=None)
@given(scenario=scenarios(SPECULATING), data=st.data())
def test_any_random_grid_equals_its_points(scenario: Scenario, data: st.DataObject) -> None:
    batch = data.draw(st.lists(st.integers(1, 512), min_size=1, max_size=3))
    gamma = data.draw(st.lists(st.integers(0, 16), min_size=1, max_size=3))
    scenario = with_acceptance(scenario, 0.8)
    grid = estimate(
        scenario, batch=np.array(batch, float)[:, None], gamma=np.array(gamma, float)
    ).speedup
    loop = [[float(estimate(scenario, batch=b, gamma=g).speedup) for g in gamma] for b in batch]
    np.testing.assert_allclose(np.broadcast_to(grid, np.shape(loop)), loop, rtol=1e-12)


# ---- monotone ---------------------------------------------------------------------------------


@FEW
@given(
    scenario=scenarios(SPECULATING), gamma=st.integers(1, 16), pair=st.tuples(alphas(), alphas())
)
def test_speedup_never_falls_as_acceptance_grows(
    scenario: Scenario, gamma: int, pair: tuple[float, float]
) -> None:
    low, high = (
        float(estimate(with_acceptance(scenario, a), gamma=gamma).speedup) for a in sorted(pair)
    )
    assert high >= low


@FEW
@given(scenario=scenarios(SPECULATING), gamma=st.integers(1, 15))
def test_round_time_never_falls_as_drafts_are_added(scenario: Scenario, gamma: int) -> None:
    fewer, more = (float(estimate(scenario, gamma=g).round_s) for g in (gamma, gamma + 1))
    assert more > fewer


@pytest.mark.parametrize("gpu", LARGEST_FALL)
def test_attention_falls_most_where_the_split_changes_from_page_to_page(gpu: str) -> None:
    """One of eight ranks has one KV head, so the batch steps through all numbers of blocks.

    Contexts start and end each page of T_T (one new token) and T_V (four), where the split changes.
    """
    batch = np.arange(1.0, 161.0)[:, None]
    contexts = (np.arange(8, 110)[:, None] * 16.0 + [12.0, 13.0, 15.0, 16.0]).ravel()
    largest = 0.0
    for target in DENSE:
        scenario = a_scenario(target=target, gpu=gpu, engine="specroof", tp=8, **PLAN)
        point = estimate(scenario, batch=batch, prompt_tokens=contexts)
        for step in (point.target_step, point.verify):
            seconds = step.group_s("attention")[::-1, ::-1]
            least = np.minimum.accumulate(np.minimum.accumulate(seconds, axis=0), axis=1)
            largest = max(largest, float((1.0 - least / seconds).max()))
    assert LARGEST_FALL[gpu] - 0.001 < largest < LARGEST_FALL[gpu]


@FEW
@example(target="llama-3.1-8b", gpu="h100-sxm", tp=1, at=(17, 1568), growth=(0, 16))
@given(
    target=st.sampled_from(DENSE),
    gpu=st.sampled_from(sorted(LARGEST_FALL)),
    tp=st.sampled_from((1, 2, 4, 8)),
    at=st.tuples(st.integers(1, 160), st.integers(128, 20_000)),
    growth=st.sampled_from(((1, 0), (9, 0), (0, 16), (0, 300), (2, 500))),
)
def test_passes_only_fall_with_batch_or_context_where_kv_is_split_anew(
    target: str, gpu: str, tp: int, at: tuple[int, int], growth: tuple[int, int]
) -> None:
    """Attention of three sequences took 17.7 us over 400 tokens and 13.6 over 448 (19 query tokens,
    28 heads over 4, kernels-h200-rows.jsonl), 23 % less; no other part ever falls."""
    scenario = a_scenario(target=target, gpu=gpu, engine="specroof", tp=tp, **PLAN)
    (batch, context), (sequences, tokens) = at, growth
    before, after = (
        estimate(scenario, batch=b, prompt_tokens=c)
        for b, c in ((batch, context), (batch + sequences, context + tokens))
    )
    for name in ("target_step", "verify", "draft_step"):
        low, high = getattr(before, name), getattr(after, name)
        attention, later = (float(step.group_s("attention")) for step in (low, high))
        assert later >= attention * (1.0 - LARGEST_FALL[gpu])
        assert float(high.total_s) - later >= (float(low.total_s) - attention) * (1.0 - 1e-12)
