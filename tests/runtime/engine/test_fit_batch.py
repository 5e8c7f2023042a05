"""The largest batch that fits does fit, and one more does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.fit_batch import SequenceCache, largest_batch, out_of_memory
from runtime.errors import InputError

CACHES = st.lists(
    st.builds(
        SequenceCache,
        page_bytes=st.integers(1, 10**8),
        page_tokens=st.integers(1, 256),
        tokens=st.integers(1, 200_000),
    ),
    min_size=1,
    max_size=2,
)
MEMORY = st.integers(0, 2 * 10**11)


@given(CACHES, MEMORY, MEMORY)
def test_it_fits_and_one_more_does_not(caches: list[SequenceCache], free: int, fixed: int) -> None:
    batch = largest_batch(free, fixed, caches)
    each = sum(cache.bytes for cache in caches)
    assert batch == 0 or fixed + batch * each <= free
    assert fixed + (batch + 1) * each > free


@given(CACHES, MEMORY, MEMORY, st.integers(1, 512))
def test_the_message_is_one_line_with_exit_code_3(
    caches: list[SequenceCache], free: int, fixed: int, batch: int
) -> None:
    error = out_of_memory(batch=batch, free_bytes=free, fixed_bytes=fixed, caches=caches)
    fits = largest_batch(free, fixed, caches)
    assert error.exit_code == 3 and "\n" not in str(error)
    assert (f"fits is {fits};" in str(error)) == (0 < fits < batch)


def test_llama_3_1_8b_at_32k_on_an_h200() -> None:
    """32 layers, 8 KV heads of 128, bf16: 131,072 bytes a token, so 4.3 GB at 32,768 tokens."""
    cache = SequenceCache(page_bytes=131_072 * 16, page_tokens=16, tokens=32_768)
    assert cache.bytes == 131_072 * 32_768
    free, weights = int(141e9), int(16.1e9)
    assert largest_batch(free, weights, [cache]) == 29
    error = out_of_memory(batch=64, free_bytes=free, fixed_bytes=weights, caches=[cache])
    assert "asks for 291.0 GB (4.295 GB a sequence and 16.1 GB beside them)" in str(error)
    assert "141.0 GB are free; the largest batch that fits is 29" in str(error)
    loaded = out_of_memory(batch=64, free_bytes=free - weights, fixed_bytes=0, caches=[cache])
    assert "asks for 274.9 GB (4.295 GB a sequence), and 124.9 GB are free" in str(loaded)
    assert "the largest batch that fits is 29" in str(loaded)


def test_a_started_page_counts_whole() -> None:
    one_page = SequenceCache(page_bytes=10, page_tokens=16, tokens=16)
    started = SequenceCache(page_bytes=10, page_tokens=16, tokens=17)
    assert (one_page.bytes, started.bytes) == (10, 20)
    with pytest.raises(InputError, match="every batch fits"):
        largest_batch(1, 0, [])
