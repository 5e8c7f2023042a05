"""Windowed, latent and linear layers: limits in which they are full attention, and their bytes."""

from dataclasses import replace

import numpy as np
import pytest
from strategies import dense, rank_of, step

from perfmodel import ModelSpec, catalog, estimate
from perfmodel.passes.forward import prefill_pass
from perfmodel.passes.parts import GROUPS, Part, StepTime
from perfmodel.passes.rank import Rank
from perfmodel.scenario_input import parse_scenario
from perfmodel.specs.layers import LocalAttention
from perfmodel.speculation import target_rank


def local(window: int, layers: int = 24) -> ModelSpec:
    return dense(local=LocalAttention(layers=layers, window_tokens=window))


def same(one: StepTime, other: StepTime, group: str) -> bool:
    return float(one.group_s(group)) == pytest.approx(float(other.group_s(group)), rel=1e-12)


def test_a_window_longer_than_the_context_is_full_attention() -> None:
    full, windowed = rank_of(dense()), rank_of(local(131_072))
    assert same(step(full, 8.0), step(windowed, 8.0), "attention")
    prompts = [prefill_pass(r, batch=1, prompt_tokens=4096.0) for r in (full, windowed)]
    assert same(*prompts, "attention")


def test_layers_with_a_window_read_as_much_as_a_cache_of_that_length() -> None:
    part = step(rank_of(local(1024)), 8.0, context=32_000.0).part("windowed_attention")
    short = step(rank_of(dense()), 8.0, context=1024.0).part("attention")
    assert float(part.seconds) == pytest.approx(24 / 32 * float(short.seconds), rel=1e-12)


@pytest.mark.parametrize(
    "target, gpu, slower",
    [
        ("gemma-3-27b", "h200", True),
        ("gemma-3-27b", "b200", False),  # has FlashAttention 4, for heads of up to 128
        ("gemma-3-12b", "b200", True),
        ("gemma-3-1b", "h200", False),  # reads no images
    ],
)
def test_vllm_computes_the_attention_of_the_multimodal_gemma_with_a_slower_kernel(
    target: str, gpu: str, slower: bool
) -> None:
    rank = target_rank(parse_scenario({"target": target, "gpu": gpu, "engine": "vllm"}).scenario())
    alike = replace(rank, engine=rank.engine.changed(prefix_attention_factor=1.0))
    seconds = {part.name: part.seconds for part in step(rank, 8).parts}
    for part in step(alike, 8).parts:
        is_attention = part.name in ("attention", "windowed_attention")
        factor = rank.engine.prefix_attention_factor if slower and is_attention else 1.0
        assert seconds[part.name] == pytest.approx(factor * part.seconds)


def test_a_kernel_that_does_not_split_a_sequence_takes_as_long_for_each_of_its_tokens() -> None:
    values = {"target": "gemma-3-27b", "gpu": "h200", "engine": "vllm"}
    rank, context = target_rank(parse_scenario(values).scenario()), 100_000.0
    layers, _ = rank.spec.attention_layers[0]
    alone, rounds, nine = (
        next(part.seconds for part in step(rank, batch, query, context).parts if part.name == name)
        for batch, query, name in ((1, 1, "attention"), (1, 4, "attention"), (9, 1, "attention"))
    )
    least = layers * context * rank.engine.prefix_attention_token_s
    assert alone < rounds <= nine and rounds == pytest.approx(least)


@pytest.mark.parametrize("gpu", ["a100-sxm-80gb", "l40s", "h200"])
def test_that_kernel_takes_as_long_for_one_query_head_of_a_kv_head_as_for_two(gpu: str) -> None:
    values = {"target": "gemma-3-4b", "gpu": gpu, "engine": "vllm"}  # 8 and 4 heads
    four, eight = (target_rank(parse_scenario(values | {"tp": tp}).scenario()) for tp in (4, 8))
    for context in (1000.0, 100_000.0):
        assert same(step(four, 1, 1, context), step(eight, 1, 1, context), "attention")


def test_a_window_in_every_layer_is_that_of_the_model() -> None:
    one, other = rank_of(local(1024, layers=32)), rank_of(dense(sliding_window_tokens=1024))
    assert same(step(one, 8.0), step(other, 8.0), "attention")


def test_prompts_within_windows_take_the_pairs_of_tokens_inside_them() -> None:
    rank = rank_of(local(1000))
    (flops,) = [p.compute_s for p in _prefill(rank, 10_000.0) if p.name == "windowed_attention"]
    pairs = 10_000 * 1000 - 1000**2 / 2
    expected = 24 * 4 * pairs * 32 * 128 / rank.machine.gpu.peak_flops
    assert float(flops) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("layers", [24, 32])
@pytest.mark.parametrize("window", [200, 1000, 3000, 100_000])
def test_chunks_of_a_prompt_have_the_pairs_of_the_whole(layers: int, window: int) -> None:
    rank = rank_of(local(window, layers=layers))
    starts = np.arange(0.0, 9000.0, 750.0)
    chunks = prefill_pass(rank, batch=1, prompt_tokens=750.0, cached_tokens=starts).parts
    whole, parts = (
        sum(float(np.sum(p.compute_s)) for p in of if GROUPS[p.name] == "attention")
        for of in (_prefill(rank, 9000.0), chunks)
    )
    assert parts == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("gpu", ["a100-sxm-80gb", "h100-sxm", "h200", "l40s", "b200"])
@pytest.mark.parametrize("cached", [0.0, 500.0, 40_000.0])
def test_prompts_take_no_longer_with_a_shorter_window(gpu: str, cached: float) -> None:
    rank = rank_of(dense(), gpu=gpu)
    for tokens in (100.0, 2000.0, 32_000.0):
        windows = [1, 64, 128, 300, 1024, 4096, 8192, 16_384, int(tokens + cached), 131_072]
        times = []
        for window in sorted(windows):
            spec = dense(sliding_window_tokens=window)
            of_window = replace(rank, spec=spec)
            times.append(_prefill_attention_s(of_window, tokens, cached))
        assert np.all(np.diff(times) >= -1e-12), (tokens, times)
        assert times[-1] == times[-2] == _prefill_attention_s(rank, tokens, cached)
        assert tokens + cached < 4096 or times[1] < 0.5 * times[-1]


def _prefill_attention_s(rank: Rank, tokens: float, cached: float) -> float:
    step_of = prefill_pass(rank, batch=1, prompt_tokens=tokens, cached_tokens=cached)
    return float(step_of.group_s("attention"))


def _prefill(rank: Rank, tokens: float) -> tuple[Part, ...]:
    return prefill_pass(rank, batch=1, prompt_tokens=tokens).parts


def test_windows_bound_the_cache_of_their_layers() -> None:
    spec = catalog.model("gemma-3-27b")
    cached = spec.cached_tokens(np.array([512.0, 101_024.0]))
    assert cached[0] == 512.0
    assert cached[1] == pytest.approx((10 * 101_024 + 52 * 1024) / 62)


def test_latent_attention_reads_one_latent_per_token_on_every_rank() -> None:
    for tp in (1, 8):
        rank = target_rank(parse_scenario({"target": "deepseek-v3", "tp": tp}).scenario())
        part = step(rank, 16.0, query=1.0, context=8000.0).part("latent_attention")
        expected = 16 * 8000 * 70_272 / rank.machine.gpu.hbm_bandwidth
        assert float(part.memory_s) == pytest.approx(expected)
        longer = step(rank, 16.0, query=4.0, context=8000.0).part("latent_attention")
        assert float(longer.compute_s) == pytest.approx(4 * float(part.compute_s))
        assert float(longer.memory_s) == float(part.memory_s)
        heads = 128 // tp
        flops = 61 * 2 * 16 * 8000 * heads * (2 * 512 + 64)
        assert float(part.compute_s) == pytest.approx(flops / rank.machine.gpu.peak_flops)


def test_linear_layers_do_not_depend_on_the_context() -> None:
    spec = catalog.model("qwen3-next-80b-a3b")
    rank = rank_of(spec, target="qwen3-next-80b-a3b")
    short, long = (step(rank, 8.0, context=c).part("linear_attention") for c in (100.0, 1e5))
    assert float(short.seconds) == float(long.seconds)
    assert spec.linear is not None
    matrix, convolution = 32 * 128 * 128, 3 * (2 * 16 * 128 + 32 * 128)
    assert spec.linear.state_bytes() == 36 * (4 * matrix + 2 * convolution)
    assert spec.kv_bytes_per_token_per_rank(1) == 12 * 2 * 2 * 256 * 2


def test_states_of_linear_layers_are_kept_for_every_verified_token() -> None:
    values = {"target": "qwen3-next-80b-a3b", "gpu": "h200", "tp": 2, "draft": "mtp", "batch": 4}
    one, two = (
        estimate(parse_scenario({**values, "gamma": g, "acceptance": 0.7}).scenario()).memory
        for g in (1, 2)
    )
    spec = catalog.model("qwen3-next-80b-a3b")
    per_token = spec.kv_bytes_per_token_per_rank(2) + spec.state_bytes_per_rank(2)
    assert float(two.lookahead_kv - one.lookahead_kv) == pytest.approx(4 * per_token)
