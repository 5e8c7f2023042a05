"""Memory: every term counts, terms add up, and the largest batch is found."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SPECULATING, a_scenario, scenarios

from perfmodel import DoesNotFit, Scenario, catalog, estimate
from perfmodel.catalog.engines import engine_profile
from perfmodel.passes import MemoryEstimate
from perfmodel.passes.linear import linear_shapes
from perfmodel.passes.memory import TERMS, largest_batch
from perfmodel.reports import check_fits
from perfmodel.speculation import target_rank


def memory(**values: Any) -> MemoryEstimate:
    return estimate(a_scenario(**values)).memory


@settings(max_examples=40, deadline=None)
@given(scenario=scenarios())
def test_the_terms_add_up_and_none_is_negative(scenario: Scenario) -> None:
    found = estimate(scenario).memory
    terms = [float(getattr(found, name)) for name in TERMS]
    assert min(terms) >= 0.0
    assert float(found.total) == pytest.approx(sum(terms), rel=1e-12)
    assert float(found.fraction) == pytest.approx(sum(terms) / found.capacity, rel=1e-12)
    assert bool(found.fits) == (sum(terms) <= found.capacity)


@settings(max_examples=40, deadline=None)
@given(scenario=scenarios(), share=st.sampled_from([1.0, 0.9, 0.5]))
def test_the_largest_batch_fits_and_one_more_does_not(scenario: Scenario, share: float) -> None:
    batch = largest_batch(scenario, share=share)
    tried = np.array([max(batch, 1), batch + 1], float)
    found = estimate(scenario, batch=tried).memory
    assert list(found.total <= share * found.capacity) == [batch > 0, False]


def test_weights_and_kv_are_si_bytes_of_the_published_shape() -> None:
    """8,030,261,248 parameters (Llama-3.1-8B's model card) at 2 bytes; 131,072 bytes a token."""
    found = memory(batch=64, prompt_tokens=32_000, output_tokens=256)
    assert float(found.weights) == 2 * 8_030_261_248
    assert float(found.target_kv) == 64 * (32_000 + 256) * 131_072
    assert found.capacity == catalog.gpu("h100-sxm").memory_bytes


@pytest.mark.parametrize("draft", SPECULATING)
def test_lookahead_slots_count_for_every_draft_of_a_round(draft: dict[str, Any]) -> None:
    few, many = (memory(**draft, gamma=g, batch=8) for g in (1, 5))
    assert float(few.lookahead_kv) == 8 * 1 * 131_072
    assert float(many.lookahead_kv) == 8 * 5 * 131_072
    assert many.total > few.total


@pytest.mark.parametrize("policy", ["full", "streamingllm"])
def test_a_standalone_draft_needs_weights_and_a_cache(policy: str) -> None:
    values: dict[str, Any] = {"gamma": 4, "batch": 8, "prompt_tokens": 32_000, "output_tokens": 256}
    found = memory(draft="llama-3.2-1b", draft_policy=policy, **values)
    spec = catalog.model("llama-3.2-1b")
    # A ring of 512 tokens takes in the prompt by as many at once.
    cached = 32_256 + 4 if policy == "full" else 512 + 512
    per_token = 2 * spec.layers * spec.kv_heads * spec.head_dim * 2
    assert float(found.draft_weights) == 2 * spec.parameters
    assert float(found.draft_kv) == 8 * cached * per_token


def test_a_draft_is_sharded_over_its_tp_group() -> None:
    values: dict[str, Any] = {"draft": "llama-3.2-1b", "tp": 8}
    one, four = (memory(draft_tp=n, **values) for n in (1, 4))
    assert one.draft_weights > 3.9 * four.draft_weights
    assert one.draft_kv == 4 * four.draft_kv


@pytest.mark.parametrize(
    "engine, policy, costs",
    [
        ("specroof", "streamingllm", False),
        ("ideal", "streamingllm", False),
        ("magicdec", "streamingllm", True),
        ("specroof", "snapkv", True),
        ("magicdec", "full", False),
    ],
)
def test_a_self_draft_needs_kv_unless_it_is_a_view_of_the_targets(
    engine: str, policy: str, costs: bool
) -> None:
    found = memory(draft="self", draft_policy=policy, engine=engine, gamma=4, batch=8)
    budget = {"full": 0, "streamingllm": 512, "snapkv": 2049}[policy]
    assert float(found.draft_kv) == (8 * (budget + 4) * 131_072 if costs else 0.0)
    assert float(found.draft_weights) == 0.0


def test_without_a_draft_its_terms_are_zero() -> None:
    found = memory(draft="none")
    assert found.draft_weights == found.draft_kv == found.lookahead_kv == 0.0


def test_the_engines_reserve_and_workspace_count() -> None:
    profile = engine_profile("specroof", catalog.gpu("h200"))
    found = memory(engine="specroof")
    assert found.reserved == profile.reserved_bytes + profile.workspace_bytes > 0.0
    assert memory(engine="kernels").reserved == 0.0


def test_smaller_chunks_need_less_memory_until_verification_dominates() -> None:
    """A layer of Llama-3.1-8B holds 4 x 4,096 + 3 x 14,336 numbers of 2 bytes a row."""
    scenario = a_scenario(engine="specroof", draft="self", gamma=3, batch=64)
    chunks = (16_384, 8192, 2048, 1)
    found = [
        float(
            estimate(
                replace(scenario, engine=scenario.engine.changed(prefill_chunk_tokens=n))
            ).memory.activations
        )
        for n in chunks
    ]
    row = 2 * (4 * 4096 + 3 * 14_336)
    logits = 2 * 64 * 4 * 128_256
    assert found[:3] == [16_384 * row, 8192 * row, 2048 * row]
    assert found[3] == 2 * logits + 2 * 64 * 4 * 4096


def test_a_short_prompt_needs_less_than_a_chunk() -> None:
    few, many = (memory(engine="specroof", batch=1, prompt_tokens=n) for n in (512, 32_000))
    assert float(many.activations) == 16 * float(few.activations)


def test_kv_scales_with_its_storage_type() -> None:
    full, half = memory(), memory(kv_dtype="fp8")
    assert float(half.target_kv) == float(full.target_kv) / 2
    assert half.weights == full.weights


@pytest.mark.parametrize("dtype, element", [("bf16", 2.0), ("fp8", 1.0), ("int4", 0.5)])
@pytest.mark.parametrize("tp", [1, 8])
def test_stored_weights_are_those_read_plus_embedding_and_norms(
    dtype: str, element: float, tp: int
) -> None:
    """The LM head is read in bf16 whatever the layers are stored in; so it is held."""
    scenario = a_scenario(weight_dtype=dtype, tp=tp)
    shapes = linear_shapes(target_rank(scenario))
    head_n, head_k, _ = shapes.pop("lm_head")
    layers = sum(n * k * count for n, k, count in shapes.values())
    spec = scenario.target
    norms = (2 * spec.layers + 1) * spec.hidden
    held = float(estimate(scenario).memory.weights)
    assert held == element * (layers + norms) + 2.0 * 2 * head_n * head_k


def test_a_scenario_that_does_not_fit_is_itemised() -> None:
    point = estimate(a_scenario(draft="llama-3.2-1b", gpu="l40", batch=64))
    assert not point.feasible
    with pytest.raises(DoesNotFit) as raised:
        check_fits(point)
    text = str(raised.value)
    for name in TERMS:
        assert name.replace("_", " ") in text.lower()
    assert " GB per GPU, " in text and "\n" not in text
    best = largest_batch(point.scenario)
    assert f"the largest batch that fits is {best}" in text
    fits = replace(point.scenario, workload=replace(point.scenario.workload, batch=best))
    check_fits(estimate(fits))


def test_the_message_says_if_not_even_batch_1_fits() -> None:
    point = estimate(a_scenario(target="llama-3.1-70b"))
    assert largest_batch(point.scenario) == 0
    with pytest.raises(DoesNotFit, match="not even a batch of 1 fits"):
        check_fits(point)
