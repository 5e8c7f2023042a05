"""Parameters of a model, and weights and KV cache per rank."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from perfmodel import catalog
from perfmodel.errors import ConfigError
from perfmodel.specs.dtypes import DTYPES, dtype_bytes
from perfmodel.specs.model import ModelSpec

TP = [1, 2, 4, 8]


def replicated_parameters(spec: ModelSpec, tp: int) -> int:
    """What all ranks together hold beyond one whole model, counted tensor by tensor."""
    extra_kv_heads = max(tp - spec.kv_heads, 0)
    kv_rows = 2 * extra_kv_heads * spec.head_dim
    kv = kv_rows * spec.hidden + (kv_rows if spec.qkv_bias else 0)
    norms = 2 * spec.hidden + (2 * spec.head_dim if spec.qk_norm else 0)
    padding = (-spec.vocab) % tp * spec.hidden * (1 if spec.tied_embeddings else 2)
    return spec.layers * (kv + (tp - 1) * norms) + (tp - 1) * spec.hidden + padding


@pytest.mark.parametrize(
    "name, tp",
    [
        (name, tp)
        for name in catalog.model_names()
        for tp in TP
        if catalog.model(name).splits_over(tp) and not catalog.model(name).family
    ],
)
def test_all_ranks_store_the_model_plus_replicated_parts(name: str, tp: int) -> None:
    spec = catalog.model(name)
    stored = tp * spec.weight_bytes_per_rank(tp)
    assert stored - 2 * replicated_parameters(spec, tp) == 2 * spec.parameters


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    kv_heads = draw(st.integers(1, 16))
    return ModelSpec(
        name="drawn",
        layers=draw(st.integers(1, 100)),
        hidden=draw(st.integers(1, 10_000)),
        query_heads=kv_heads * draw(st.integers(1, 8)),
        kv_heads=kv_heads,
        head_dim=draw(st.integers(1, 256)),
        ffn_hidden=draw(st.integers(1, 500)) * 8,
        vocab=draw(st.integers(1, 200_000)),
        max_context_tokens=4096,
        tied_embeddings=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
    )


@settings(max_examples=100, deadline=None)
@given(spec=specs(), tp=st.sampled_from(TP))
def test_any_split_model_is_complete_over_its_ranks(spec: ModelSpec, tp: int) -> None:
    assume(spec.splits_over(tp))
    stored = tp * spec.parameters_per_rank(tp)
    assert stored - replicated_parameters(spec, tp) == spec.parameters


def test_an_invalid_tp_is_refused_with_the_valid_ones() -> None:
    spec = catalog.model("qwen2.5-7b")
    with pytest.raises(ConfigError, match=r"28 query heads.*use 1, 2 or 4"):
        spec.check_tp(8)
    spec.check_tp(4)


@pytest.mark.parametrize("tp", [0, -1])
def test_a_tp_below_one_is_refused(tp: int) -> None:
    with pytest.raises(ConfigError, match=f"tp={tp} does not fit"):
        catalog.model("llama-3.1-8b").check_tp(tp)


def test_kv_heads_replicate_when_tp_exceeds_them() -> None:
    tinyllama = catalog.model("tinyllama-1.1b")
    tinyllama.check_tp(8)
    assert tinyllama.kv_heads == 4
    assert [tinyllama.kv_heads_per_rank(tp) for tp in TP] == [4, 2, 1, 1]
    per_token = [tinyllama.kv_bytes_per_token_per_rank(tp) for tp in TP]
    assert per_token == [22528, 11264, 5632, 5632]  # 2 x 22 layers x heads x 64 x 2 bytes


def test_kv_bytes_per_token_are_those_of_published_models() -> None:
    # 0.5 MiB and 128 KiB a token in fp16: Llama-2-7B has 32 KV heads, Llama-3.1-8B 8.
    assert catalog.model("llama-2-7b").kv_bytes_per_token_per_rank(1) == 2**19
    assert catalog.model("llama-3.1-8b").kv_bytes_per_token_per_rank(1) == 2**17


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_and_kv_scale_with_their_dtype(dtype: str) -> None:
    spec = catalog.model("llama-3.1-8b")
    share = dtype_bytes(dtype) / 2
    assert spec.weight_bytes_per_rank(1, dtype) == share * spec.weight_bytes_per_rank(1)
    assert spec.kv_bytes_per_token_per_rank(1, dtype) == share * spec.kv_bytes_per_token_per_rank(1)


def test_an_unknown_dtype_is_refused_with_those_known() -> None:
    with pytest.raises(ConfigError, match=r"'fp64'.* bf16, fp16, fp8"):
        dtype_bytes("fp64")


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "32", float("nan")])
def test_a_size_must_be_a_positive_whole_number(value: object) -> None:
    sizes = dict.fromkeys(
        ("layers", "hidden", "query_heads", "kv_heads", "head_dim", "ffn_hidden", "vocab"), 8
    )
    with pytest.raises(ConfigError, match=r"layers=.* must be a positive whole number"):
        ModelSpec(name="m", max_context_tokens=8, **(sizes | {"layers": value}))  # type: ignore[arg-type]


def test_query_heads_must_be_a_multiple_of_kv_heads() -> None:
    with pytest.raises(ConfigError, match=r"\b10\b.*\b4\b"):
        ModelSpec(name="m", layers=1, hidden=8, query_heads=10, kv_heads=4, head_dim=8,
                  ffn_hidden=8, vocab=8, max_context_tokens=8)  # fmt: skip
