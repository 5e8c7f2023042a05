"""Starting without a prefill, utilization, and kernel names."""

import itertools
from dataclasses import replace

import pytest
import torch
from tiny_models import DRAFTS, Case, MetaWeights, build, random_prompts

from runtime.bench.fake_prefill import start_without_prefill, warm_up
from runtime.bench.kernel_parts import kernel_part
from runtime.bench.utilization import matrix_parameters, verification_rates
from runtime.config import DecoderConfig
from runtime.engine.results import GenerationResult, RoundRecord
from runtime.execution.sampling import SamplingParams
from runtime.model.weights import load_weights
from runtime.parallel.groups import ALONE

torch.set_num_threads(1)


@pytest.mark.parametrize("draft", ["none", *DRAFTS])
def test_starting_without_a_prefill_gives_the_state_of_a_real_prefill(draft: str) -> None:
    case = Case(
        family="llama-3.1",
        prompts=random_prompts((90, 31, 64), seed=1),
        new_tokens=(12, 7, 12),
        draft=draft,
        gamma=0 if draft == "none" else 3,
    )
    real, unfilled = build(case), build(case)
    real.start(case.prompts, case.new_tokens)
    start_without_prefill(unfilled, case.prompts, case.new_tokens)
    for one, other in zip(real.sequences, unfilled.sequences, strict=True):
        assert len(one.tokens) == len(other.tokens)
        assert one.table.tokens == other.table.tokens
        assert len(one.table.pages) == len(other.table.pages)
    assert real.cache.free_pages == unfilled.cache.free_pages
    if getattr(real.drafter, "ring", None) is None:  # a ring forgets before its next round
        caches = [getattr(engine.drafter, "cache", engine.cache) for engine in (real, unfilled)]
        assert caches[0].free_pages == caches[1].free_pages
    result = unfilled.run_to_end(ttft_s=0.0)
    assert [len(sequence.generated) for sequence in result.sequences] == [12, 7, 12]
    assert unfilled.cache.free_pages == unfilled.cache.pages
    # Every round reads each sequence's whole cache but drafts nothing twice.
    assert result.rounds[0].read_tokens == 90 + 31 + 64


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("draft", ["none", *DRAFTS])
def test_warming_up_changes_nothing_of_the_run_after_it(draft: str, temperature: float) -> None:
    case = Case(
        family="qwen2.5",
        prompts=random_prompts((90, 31, 64), seed=5),
        new_tokens=(12, 12, 12),
        draft=draft,
        gamma=0 if draft == "none" else 3,
        eos=frozenset({3}),
        extra={"sampling": SamplingParams(temperature=temperature, seed=4)},
    )
    cold, warm = build(case), build(case)
    with torch.inference_mode():
        warm_up(warm, case.prompts, case.new_tokens, prompt=True)
    for engine in (warm, warm.drafter):
        cache = getattr(engine, "cache", warm.cache)
        assert cache.free_pages == cache.pages
    assert warm.clock.seconds() == {}
    found, expected = (engine.generate(case.prompts, case.new_tokens) for engine in (warm, cold))
    assert found.sequences == expected.sequences and found.rounds == expected.rounds


def test_matrix_parameters_are_all_weights_but_embedding_and_norms() -> None:
    config = DecoderConfig(
        name="c", layers=3, hidden=64, query_heads=8, kv_heads=2, head_dim=16, ffn_hidden=96,
        vocab=500, max_context_tokens=64,
    )  # fmt: skip
    weights = load_weights(config, MetaWeights(torch.float16), ALONE)
    stored = weights.bytes // 2
    norms = (2 * config.layers + 1) * config.hidden
    assert matrix_parameters(config) == stored - norms - config.vocab * config.hidden
    assert weights.read_bytes == weights.bytes - 2 * config.vocab * config.hidden
    tied = load_weights(replace(config, tied_embeddings=True), MetaWeights(torch.float16), ALONE)
    assert tied.read_bytes == tied.bytes == weights.read_bytes


def test_pages_without_a_prefill_are_shuffled_and_used_once() -> None:
    case = Case(family="llama-3.1", prompts=random_prompts((200, 90), seed=2), new_tokens=(4, 4))
    engine = build(case)
    start_without_prefill(engine, case.prompts, case.new_tokens)
    pages = [page for sequence in engine.sequences for page in sequence.table.pages]
    assert len(set(pages)) == len(pages) == 50 + 23
    steps = [b - a for a, b in itertools.pairwise(pages)]
    assert sum(step == 1 for step in steps) < len(steps) / 4


def test_rates_are_bytes_and_operations_divided_by_time() -> None:
    config = DecoderConfig(
        name="c", layers=2, hidden=8, query_heads=2, kv_heads=1, head_dim=4, ffn_hidden=16,
        vocab=10, max_context_tokens=64,
    )  # fmt: skip
    result = GenerationResult(
        sequences=(), rounds=(RoundRecord(1, (0, 1), (1, 2), 100),), phases={"verify": [0.5]},
        ttft_s=0.0, decode_s=1.0,
    )  # fmt: skip
    rates = verification_rates(config, result, weight_bytes=1000, kv_token_bytes=10, tp=1)
    assert rates["bytes_per_s"] == (1000 + 104 * 10) / 0.5
    attention = 2 * 2 * 2 * (2 * 100 * 2 * 4)  # two layers, q k and weights v, 2 FLOP each
    assert rates["flops_per_s"] == (2 * 4 * matrix_parameters(config) + attention) / 0.5


@pytest.mark.parametrize(
    ("kernel", "part"),
    [
        ("void flashinfer::BatchPrefillWithPagedKVCacheKernel<...>", "attention"),
        ("void flashinfer::PersistentVariableLengthMergeStatesKernel<...>", "attention"),
        ("nvjet_sm90_tst_128x32_64x10_2x1_v_bz_TNT", "linear"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int>", "linear"),
        ("_linear_kernel", "linear"),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "comm"),
        ("_add_norm_kernel", "elementwise"),
        ("void at::native::reduce_kernel<512, 1, at::native::ArgMax>", "elementwise"),
    ],
)
def test_gpu_kernel_names_belong_to_a_part(kernel: str, part: str) -> None:
    assert kernel_part(kernel) == part
