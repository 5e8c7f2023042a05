"""Intervals reach the times of kernels that an engine may have and that were not measured."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from strategies import a_scenario

from perfmodel import Scenario, estimate, parse_scenario
from perfmodel.speculation import service_gain, speedup_interval, time_error, tpot_interval
from perfmodel.speculation.uncertainty.step_error import pair_error, ratio_error
from perfmodel.units import Z90

RING: dict[str, Any] = {"ring_hop_us": 8.0, "ring_gb_s": 12.0}


@pytest.mark.parametrize(
    ("known", "unknown"),
    [
        ({"gpu": "h200", "tp": 4}, {"gpu": "h200", "tp": 8}),  # measured; extrapolated
        (RING | {"gpu": "l4", "tp": 8}, {"gpu": "l4", "tp": 8}),  # with and without a known ring
        (RING | {"gpu": "l40", "tp": 4}, {"gpu": "l40", "tp": 4}),
        (RING | {"gpu": "l40", "tp": 8}, {"gpu": "l40", "tp": 8}),
        (RING | {"gpu": "l40s", "tp": 8}, {"gpu": "l40s", "tp": 8}),
    ],
)
def test_an_unmeasured_all_reduce_widens_the_interval_and_adds_a_note(
    known: dict[str, Any], unknown: dict[str, Any]
) -> None:
    common = {"draft": "self", "batch": 8, "prompt_tokens": 4096, "kv_budget": 512}
    common |= {"target": "llama-3.1-8b", "engine": "specroof"}
    one, other = a_scenario(**common | known), a_scenario(**common | unknown)

    def width(scenario: Scenario) -> float:
        interval = speedup_interval(scenario)
        assert interval is not None
        return interval.high / interval.low

    def beyond(scenario: Scenario) -> float:
        """Width over the width without the error of all-reduces."""
        alone = replace(scenario, engine=scenario.engine.changed(comm_factor=1e-9))
        return width(scenario) / width(alone)

    assert beyond(other) > beyond(one)
    assert not any("all-reduce" in note for note in one.notes)
    assert any("all-reduce" in note for note in other.notes)


def test_assumed_flops_of_attention_widen_intervals_where_they_bound_verification() -> None:
    """A group of 8 heads has 16 query rows at γ = 1, one tile, and 72 at γ = 8."""
    of_b200 = {"target": "llama-3.1-70b", "gpu": "b200", "tp": 4, "batch": 16}
    plan = of_b200 | {"prompt_tokens": 64_000, "draft": "ngram", "draft_policy": "full"}
    few, many = (a_scenario(**plan, gamma=gamma) for gamma in (1, 8))
    curve = few.kernels.attention
    for gpu in ("h200", "h100-sxm", "a100-sxm-80gb", "l40s"):
        assert a_scenario(**plan | {"gpu": gpu}, gamma=8).kernels.attention.tensor_core_error == 0.0

    added = np.sqrt(ratio_error(many) ** 2 - ratio_error(few) ** 2)
    round_s, verify = estimate(many).round_s, estimate(many).verify
    share = float(verify.group_s("attention") / round_s)
    assert np.log1p(np.expm1(curve.tensor_core_error) * share) == pytest.approx(added, rel=0.02)
    assert pair_error(few, many) > added
    assert any("FLOP/s on b200 are assumed" in note for note in many.notes)


def test_intervals_reach_the_time_of_a_kernel_that_splits_the_latent_cache() -> None:
    values = {"target": "deepseek-v2-lite", "batch": 1, "prompt_tokens": 32_000}
    old, new = (a_scenario(gpu=gpu, **values) for gpu in ("a100-sxm-80gb", "h100-sxm"))
    found, plain = tpot_interval(old), tpot_interval(new)
    assert found is not None
    assert plain is not None
    # An H100 is at most 3.35 times as fast as an A100 in bandwidth and FLOP/s.
    assert found.low < 3.35 * plain.value < found.value
    assert estimate(old).target_step.origin == "extrapolated"
    assert any("TensorRT-LLM 1.0.0" in note for note in old.notes)


def test_no_speedup_is_clear_because_a_kernel_does_not_split_the_latent_cache() -> None:
    values = {"target": "deepseek-v2-lite", "batch": 1, "prompt_tokens": 32_000, "tp": 1}
    scenario = a_scenario(**values, gpu="a100-sxm-80gb", draft="mtp", gamma=5)
    engine = scenario.engine.changed(attention_factor=1.0 / 43.0)
    split = service_gain(replace(scenario, engine=engine))
    assert float(service_gain(scenario).low) < min(1.0, float(split.value))


def test_two_drafts_share_the_kernel_that_does_not_split_latents() -> None:
    """On an A100, each speedup is uncertain by it; their ratio by what it adds to one of them."""

    def plan(draft: str, gamma: int) -> Scenario:
        values = {"target": "deepseek-v2-lite", "gpu": "a100-sxm-80gb", "batch": 16}
        drafted = {"draft": draft, "gamma": gamma, "acceptance": 0.7, "prompt_tokens": 8000}
        return parse_scenario(values | drafted).scenario()

    head, longer, own = plan("eagle3", 3), plan("eagle3", 4), plan("self", 3)
    assert pair_error(head, own) == pytest.approx(pair_error(own, head))
    assert pair_error(head, longer) < pair_error(head, own)
    assert pair_error(head, own) < math.hypot(ratio_error(head), ratio_error(own))


@pytest.mark.parametrize(
    "engine, gpu",
    [
        ("vllm-0.26", "h100-sxm"),
        *product(["vllm-0.7", "vllm-0.23", "sglang-0.5", "tensorrt-llm-1.2"], ["h200", "h100-sxm"]),
    ],
)
def test_an_engine_that_does_not_pack_rows_is_in_the_interval(engine: str, gpu: str) -> None:
    """20 % of attention beyond 16 query rows, as FlashInfer; vLLM 0.26 on an H200 has none."""
    stated = {"draft": "eagle3", "acceptance": 0.7, "prompt_tokens": 32_000}
    for work in (
        {"target": "llama-3.1-70b", "tp": 8, "batch": 64, "gamma": 3},
        {"target": "llama-3.1-8b", "tp": 1, "batch": 4, "gamma": 5},
    ):
        scenario = parse_scenario(stated | {"gpu": gpu, "engine": engine} | work).scenario()
        point = estimate(scenario)
        longer = 1.0 + 0.2 * float(point.verify.group_s("attention") / point.round_s)
        assert 1.05 < longer < math.exp(Z90 * float(time_error(scenario)))
