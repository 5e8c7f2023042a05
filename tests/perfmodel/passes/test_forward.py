"""One pass: KV is read once, parts add up, and shards add up to the model."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import ENGINES, GPUS, MEASURED_GPUS, TARGETS, a_rank, a_scenario, points, ranks

from perfmodel import catalog, estimate, parse_scenario
from perfmodel.passes import prefill_pass
from perfmodel.passes.forward import forward_pass
from perfmodel.passes.linear import linear_shapes
from perfmodel.passes.rank import Rank
from perfmodel.speculation import target_rank

FEW = settings(max_examples=40, deadline=None)


# ---- the KV cache is read once ----------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("gpu", GPUS)
def test_verify_approaches_a_plain_step_as_context_grows(gpu: str, engine: str) -> None:
    """Up to γ = 3 a group of 4 heads fills one tile of 16 rows; KV alone is left to pay for."""
    rank = a_rank(gpu=gpu, engine=engine)
    rank = replace(rank, engine=rank.engine.changed(verify_attention_factor=1.0))
    batch, query = np.array([1.0, 8.0, 64.0])[:, None], np.array([2.0, 3.0, 4.0])

    def ratio(context: float) -> np.ndarray:
        at = {"batch": batch, "context_tokens": context}
        verify = forward_pass(rank, query_tokens=query, **at).total_s
        return np.asarray(verify / forward_pass(rank, **at).total_s)

    short, long, longer = ratio(4096.0), ratio(131_072.0), ratio(1_048_576.0)
    assert np.all(long < short)
    assert np.all(long < 1.03)
    assert np.all(longer < long)
    assert np.all((longer >= 1.0) & (longer < 1.01))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("tp", [1, 8])
def test_no_factor_makes_attention_faster_than_the_memory(gpu: str, engine: str, tp: int) -> None:
    rank = a_rank(gpu=gpu, engine=engine, tp=tp)
    batch, read = np.array([1.0, 8.0, 64.0, 256.0])[:, None], np.array([512.0, 4096.0, 32_000.0])
    for limit in (None, read):
        step = forward_pass(rank, batch=batch, context_tokens=read, kv_read_tokens=limit)
        part = step.part("attention")
        assert np.all(part.seconds >= part.memory_s)


@pytest.mark.parametrize("gpu", sorted({*catalog.gpu_names()} - {*MEASURED_GPUS, "b200"}))
def test_carried_curves_never_make_a_verification_faster_than_a_plain_step(gpu: str) -> None:
    """Also if the taller tile of the measured GPU reads faster; both read the same cache."""
    rank = a_rank(gpu=gpu, target="qwen3-235b-a22b", tp=2)
    batch, context = np.array([1.0, 32.0, 64.0])[:, None, None], np.array([4e3, 1e5])[:, None]
    at = {"batch": batch, "context_tokens": context}
    verify = forward_pass(rank, query_tokens=np.arange(2.0, 10.0), **at)
    assert np.all(verify.total_s >= forward_pass(rank, **at).total_s)


@FEW
@given(rank=ranks(), at=points())
def test_the_bytes_of_attention_do_not_depend_on_the_query_tokens(
    rank: Rank, at: dict[str, int]
) -> None:
    one = forward_pass(rank, **(at | {"query_tokens": 1})).part("attention")
    many = forward_pass(rank, **at).part("attention")
    assert many.memory_s == one.memory_s
    assert many.compute_s == pytest.approx(at["query_tokens"] * one.compute_s, rel=1e-12)


def test_kv_bytes_over_bandwidth_are_si() -> None:
    """2 x 32 layers x 8 heads x 128 x 2 bytes is 131,072 bytes a token; 3.35 TB/s is 3.35e12."""
    part = forward_pass(a_rank(gpu="h100-sxm"), batch=64, context_tokens=32_000).part("attention")
    assert float(part.memory_s) == pytest.approx(64 * 32_000 * 131_072 / 3.35e12, rel=1e-12)


def test_a_sliding_window_bounds_what_attention_reads() -> None:
    rank = a_rank(target="mistral-7b-v0.1")
    window = rank.spec.sliding_window_tokens
    assert window == 4096
    at_window, beyond = (
        forward_pass(rank, batch=8, context_tokens=c).total_s for c in (window, 32_000)
    )
    assert beyond == at_window


# ---- parts and totals -------------------------------------------------------------------------


@FEW
@given(rank=ranks(), at=points())
def test_a_pass_is_the_sum_of_its_parts_and_none_is_negative(
    rank: Rank, at: dict[str, int]
) -> None:
    for step in (
        forward_pass(rank, **at),
        prefill_pass(rank, batch=1, prompt_tokens=at["context_tokens"]),
    ):
        seconds = [float(part.seconds) for part in step.parts]
        assert min(seconds) >= 0.0
        assert float(step.total_s) == pytest.approx(sum(seconds), rel=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("gpu", MEASURED_GPUS)
def test_a_large_step_never_beats_the_memory(gpu: str, engine: str) -> None:
    """Beyond the caches every byte comes from HBM, at no more than the datasheet's bandwidth."""
    rank = a_rank(gpu=gpu, engine=engine)
    batch, context = np.array([1.0, 8.0, 64.0])[:, None], np.array([16_384.0, 131_072.0])
    step = forward_pass(rank, batch=batch, context_tokens=context)
    read_s = sum(p.memory_s for p in step.parts if p.traffic in ("weights", "kv"))
    assert np.all(step.total_s > read_s)


# ---- vectorised, and sharded ------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(rank=ranks(), some=st.lists(points(), min_size=1, max_size=6))
def test_a_vectorised_pass_equals_the_loop(rank: Rank, some: list[dict[str, int]]) -> None:
    at = {name: np.array([float(p[name]) for p in some]) for name in some[0]}
    together = forward_pass(rank, **at).total_s
    alone = [float(forward_pass(rank, **p).total_s) for p in some]
    np.testing.assert_allclose(np.broadcast_to(together, len(some)), alone, rtol=1e-12)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("name", [*TARGETS, "llama-3.1-70b"])
def test_weights_read_by_all_ranks_are_the_model_plus_replicated_parts(name: str, tp: int) -> None:
    spec = catalog.model(name)
    if not spec.splits_over(tp):
        pytest.skip(f"{name} does not split over {tp}")
    rank = replace(a_rank(target=name), tp=tp)
    read = sum(n * k * count for n, k, count in linear_shapes(rank).values())
    replicated_kv = 2 * max(tp - spec.kv_heads, 0) * spec.head_dim * spec.hidden * spec.layers
    padding = (spec.padded_vocab_per_rank(tp) * tp - spec.vocab) * spec.hidden
    whole = spec.layers * (
        spec.hidden * (spec.query_heads + 2 * spec.kv_heads) * spec.head_dim
        + spec.query_heads * spec.head_dim * spec.hidden
        + 3 * spec.hidden * spec.ffn_hidden
    )
    assert tp * read - replicated_kv - padding == whole + spec.vocab * spec.hidden


@pytest.mark.parametrize("tp, copies", [(1, 1), (4, 1), (8, 1), (16, 2), (32, 4)])
def test_kv_of_all_ranks_is_the_cache_times_its_copies(tp: int, copies: int) -> None:
    spec = catalog.model("llama-3.1-8b")
    per_rank = spec.kv_bytes_per_token_per_rank(tp)
    assert tp * per_rank == copies * spec.kv_bytes_per_token_per_rank(1)


def test_chunks_of_a_prompt_add_up_to_the_whole_prompt() -> None:
    rank = target_rank(a_scenario(engine="specroof", gpu="h200"))
    whole = prefill_pass(rank, batch=1, prompt_tokens=8192).part("attention")
    chunks = [
        prefill_pass(rank, batch=1, prompt_tokens=2048, cached_tokens=start).part("attention")
        for start in range(0, 8192, 2048)
    ]
    assert sum(float(c.compute_s) for c in chunks) == pytest.approx(float(whole.compute_s))
    assert [float(c.seconds) for c in chunks] == sorted(float(c.seconds) for c in chunks)
    assert float(whole.seconds) < sum(float(c.seconds) for c in chunks)


@pytest.mark.parametrize("engine", ["vllm-0.26", "specroof", "kernels"])
@pytest.mark.parametrize(
    "name", ["a10", "l4", "l40", "rtx-4090", "h100-pcie", "h100-nvl", "a100-pcie-80gb", "mi300x"]
)
def test_neighbouring_batches_take_similar_times_on_gpus_without_measured_kernels(
    name: str, engine: str
) -> None:
    """No step of more than 20 % where nobody measured it: waves, protocols of all-reduces."""
    batch = np.arange(8.0, 301.0)
    plans = [("llama-3.1-8b", 1), ("qwen3-8b", 2), ("llama-2-7b", 1), ("llama-3.1-70b", 8)]
    for target, tp in plans:
        tp = min(tp, 2) if name == "h100-nvl" else tp
        rank = a_rank(gpu=name, target=target, tp=tp, engine=engine)
        for query, kv in ((1, 512), (1, 16_000), (1, 64_000), (4, 512), (9, 2000)):
            step = forward_pass(rank, batch=batch, context_tokens=kv, query_tokens=query).total_s
            assert np.max(step[1:] / step[:-1]) < 1.2, (target, query, kv)


def test_verification_with_an_fp8_cache_is_never_slower_than_with_bf16_at_an_assumed_rate() -> None:
    """FlashInfer's FLOP/s on a B200 are assumed, and the measured ratio is that of decoding."""
    values = {"target": "llama-3.1-8b", "gpu": "b200", "batch": 32, "prompt_tokens": 8000}
    for gamma in (1, 3, 4, 5, 8):
        drafts = {"draft": "ngram", "acceptance": 0.8, "gamma": gamma}
        fp8, bf16 = (
            estimate(parse_scenario(values | drafts | {"kv_dtype": dtype}).scenario())
            for dtype in ("fp8", "bf16")
        )
        times = fp8.target_step.total_s, fp8.verify.total_s, bf16.verify.total_s
        assert times == tuple(sorted(times))


def test_a_prompt_takes_at_least_the_launches_of_its_layers() -> None:
    """Of the target and of a draft model, in each pass of 2,048 tokens."""
    work = {"gpu": "h200", "engine": "specroof", "target": "llama-3.1-8b"}
    plain = a_scenario(**work, draft="none")
    drafted = a_scenario(**work, draft="llama-3.2-1b", draft_policy="full")
    launch_s = plain.engine.eager_layer_s
    bare = plain.engine.changed(eager_layer_s=0.0)
    for tokens, passes in ((64, 1), (4096, 2)):
        found_s, kernels_s = (
            [float(estimate(s, prompt_tokens=tokens).prefill_s) for s in both]
            for both in ((plain, drafted), [replace(s, engine=bare) for s in (plain, drafted)])
        )
        target_s = max(kernels_s[0], passes * 32 * launch_s)
        draft_s = max(kernels_s[1] - kernels_s[0], passes * 16 * launch_s)
        assert found_s == pytest.approx([target_s, target_s + draft_s])
        assert (target_s > kernels_s[0]) == (tokens == 64)


def test_only_attention_with_tall_tiles_is_slower_at_sustained_clocks() -> None:
    rank = target_rank(a_scenario(gpu="h200", engine="specroof", target="llama-3.1-8b"))
    times = []
    for factor in (1.0, 1.2):
        engine = replace(rank.engine, sustained_attention_factor=factor)
        step = forward_pass(
            replace(rank, engine=engine), batch=32, context_tokens=16384, query_tokens=[1, 4, 5]
        )
        times.append(step.part("attention").seconds)
    assert times[1] / times[0] == pytest.approx([1.0, 1.0, 1.2])  # 4, 16 and 20 rows per KV head
