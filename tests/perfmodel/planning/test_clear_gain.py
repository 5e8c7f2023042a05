"""A plan is preferred where its gain is clear: beyond the errors that two plans do not share."""

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import APART, a_scenario, answer

from perfmodel import Acceptance, estimate
from perfmodel.planning.candidate import Candidate
from perfmodel.planning.recommend import gain_interval, recommend
from perfmodel.planning.search import search
from perfmodel.speculation import relative_gain, service_gain


def test_within_the_error_a_plan_with_fewer_parts_is_preferred() -> None:
    choices = [("self", "streamingllm"), ("self", "snapkv")]
    result = answer(gpu="a100-sxm-80gb", tp=4, batch=64, choices=choices, **APART)
    assert result.speculates and result.faster is not None
    faster, best = result.faster.candidate, result.best
    assert faster.parts > best.parts and faster.throughput_per_gpu > best.throughput_per_gpu
    lead = result.faster.lead
    assert lead.value == pytest.approx(faster.throughput_per_gpu / best.throughput_per_gpu)
    assert lead.low <= 1.0 < result.faster.advantage.low
    assert f"{best.label} is simpler" in result.why_not_fastest


@settings(max_examples=4)
@given(
    gpu=st.sampled_from(("h100-sxm", "a100-sxm-80gb", "h200", "l40s")),
    target=st.sampled_from(("llama-3.1-8b", "qwen3-32b")),
    batch=st.integers(1, 128),
    prompt=st.integers(2000, 60_000),
    output=st.sampled_from((64, 500, 4000)),
    prefill=st.sampled_from(("shared", "disaggregated")),
    objective=st.sampled_from(("throughput", "latency")),
)
def test_the_plan_is_the_simplest_that_no_other_one_clearly_beats(
    gpu: str, target: str, batch: int, prompt: int, output: int, prefill: str, objective: str
) -> None:
    scenario = a_scenario(
        target=target, gpu=gpu, tp=4, batch=batch, prompt_tokens=prompt, output_tokens=output,
        prefill=prefill,
    )  # fmt: skip
    choices = [("self", "streamingllm"), ("self", "snapkv"), ("eagle3", "full")]
    result = search(scenario, objective=objective, choices=choices, budgets=(512,))
    ranked = result.ranked()
    assume(ranked)
    best = recommend(result).best
    (plain,) = (c for c in ranked if not c.parts)  # it fits wherever a draft does
    clear = [c for c in ranked if c.parts and gain_interval(c, objective).low > 1.0]
    # If no γ of the plateau is clear, the plan is a draft only with a smaller γ that is.
    assert best is plain if not best.parts else gain_interval(best, objective).low > 1.0
    if not clear:
        return
    assert best.parts

    def is_beaten(candidate: Candidate) -> bool:
        return any(
            float(relative_gain(c.scenario, candidate.scenario, objective=objective).low) > 1.0
            for c in clear
            if c is not candidate
        )

    allowed = [c for c in (best, *clear) if not is_beaten(c)]
    assert best in allowed
    assert best.parts == min(c.parts for c in allowed)
    assert result.cost(best) == min(result.cost(c) for c in allowed if c.parts == best.parts)


UNTIMED: dict[str, Any] = {"tp": 8, "batch": 32, "prompt_tokens": 4000, **APART}
PLANS: tuple[dict[str, Any], ...] = (
    {"draft": "self", "draft_policy": "streamingllm", "kv_budget": 512, "gamma": 3},
    {"draft": "self", "draft_policy": "snapkv", "kv_budget": 1024, "gamma": 2},
    {"draft": "eagle3", "gamma": 4},
)


@pytest.mark.parametrize("target", ["llama-3.1-8b", "qwen3-32b"])
def test_the_gain_of_one_draft_over_another_is_the_inverse_of_the_others(target: str) -> None:
    plans = [a_scenario(target=target, gpu="mi300x", **UNTIMED, **plan) for plan in PLANS]
    for one, other in combinations(plans, 2):
        there, back = relative_gain(one, other), relative_gain(other, one)
        assert float(there.low * back.high) == pytest.approx(1.0, rel=1e-6)
        assert float(there.value * back.value) == pytest.approx(1.0, rel=1e-9)
        gains = [float(service_gain(plan).value) for plan in (one, other)]
        assert float(there.value) == pytest.approx(gains[0] / gains[1], rel=1e-9)


def test_errors_that_two_drafts_share_cancel_in_their_comparison() -> None:
    """Of an untimed GPU, and of an acceptance curve that both borrow from one model."""
    plans = [a_scenario(target="qwen3-32b", gpu="mi300x", **UNTIMED, **plan) for plan in PLANS]

    def width(gain: Any) -> float:
        return math.log(float(gain.high / gain.low))

    apart = [width(service_gain(plan)) for plan in plans]
    assert width(relative_gain(plans[0], plans[1])) < 0.6 * math.hypot(apart[0], apart[1])
    same = relative_gain(plans[0], plans[0])
    assert float(same.low) < float(same.value) == 1.0 and width(same) < 0.5 * apart[0]
    known = [replace(plan, acceptance=Acceptance.from_alpha(0.8)) for plan in plans]
    for one, other in combinations(known, 2):
        both = [width(service_gain(plan)) for plan in (one, other)]
        assert width(relative_gain(one, other)) < 0.5 * min(both)


def test_a_gain_within_the_error_is_no_clear_gain() -> None:
    result = answer(gpu="h100-sxm", tp=8, batch=8, choices=[("self", "streamingllm")], **APART)
    assert result.interval is not None and result.studied is not None
    assert result.interval.low < 1.0 < result.studied.gain
    assert result.verdict == "no clear gain" and not result.speculates
    assert result.sentence.startswith(
        f"No clear gain: the best draft ({result.studied.label}, TP 8"
    )
    assert result.batch is not None and not result.batch.contains(8)


def test_borrowed_acceptance_is_named_and_never_almost_certain() -> None:
    result = answer(target="qwen3-32b", tp=4, batch=32, prompt_tokens=20_000, **APART)
    assert result.gain_probability is not None and result.gain_probability <= 0.95
    assert "borrowed from llama-3.1-8b and never measured on qwen3-32b" in result.sentence
    assert "engine specroof measured on h100-sxm" in result.sentence
    assert "extrapolated: " in result.sentence and "acceptance" in result.evidence.extrapolated


def test_a_draft_that_is_clearly_slower_is_refused() -> None:
    """Batch 1 at 513 tokens: weights bound both passes, and a self-draft reads them as well."""
    short = {"batch": 1, "prompt_tokens": 513, "engine": "kernels"}
    given = {"draft": "self", "kv_budget": 512, "acceptance": 0.3}
    result = answer(choices=[("self", "streamingllm")], **short, **given)
    assert not result.speculates and result.studied is not None and result.interval is not None
    assert result.interval.high < 1.0 and result.verdict == "do not speculate"
    assert result.sentence.startswith("Do not speculate: the best draft (Self-speculation")
    cost = f"costs {100.0 * (1.0 - result.studied.gain):.2g} %"
    assert f"{cost}: {result.studied.gain:.2f}x" in result.sentence
    assert result.best.decode_tpot_s == float(estimate(a_scenario(**short)).tpot_s)


@pytest.mark.parametrize("engine", ["vllm-0.26", "sglang-0.5", "specroof"])
def test_a_draft_that_is_never_accepted_costs_time_however_wide_the_interval(engine: str) -> None:
    given = {"draft": "eagle3", "acceptance": 0.0, "batch": 16, "prompt_tokens": 4000}
    result = answer(gpu="h200", tp=1, choices=[("eagle3", "full")], engine=engine, **given)
    assert result.verdict == "do not speculate" and " costs " in result.answer
    assert result.interval is not None and result.interval.high <= 1.0 + 1e-9
    assert result.gain_probability == 0.0 and result.decode_interval is not None
    assert result.decode_interval.high <= 1.0 + 1e-9


def test_a_draft_that_may_be_faster_is_not_refused_as_slower() -> None:
    """The prediction is below 1, but not the whole interval."""
    short = {"batch": 1, "prompt_tokens": 513, "engine": "kernels"}
    result = answer(choices=[("self", "streamingllm")], **short)
    assert result.interval is not None
    assert result.interval.value < 1.0 < result.interval.high
    assert result.verdict == "no clear gain" and not result.speculates
