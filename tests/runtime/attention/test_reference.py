"""The reference against torch's own attention, for ragged batches over scattered pages."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES

from runtime.attention.base import PassLayout
from runtime.attention.paged_cache import PagedCache
from runtime.attention.reference import ReferenceAttention

torch.set_num_threads(1)
CONFIG = FAMILIES["llama-3.1"]
CPU = torch.device("cpu")
Lengths = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=4)


def filled(page_tokens: int) -> tuple[PagedCache, ReferenceAttention]:
    cache = PagedCache(
        CONFIG,
        kv_heads=2,
        pages=40 * (5 - min(page_tokens, 4)),
        page_tokens=page_tokens,
        dtype=torch.float64,
        device=CPU,
    )
    cache.storage.normal_(generator=torch.Generator().manual_seed(1))
    return cache, ReferenceAttention(cache)


@settings(max_examples=40, deadline=None)
@given(lengths=Lengths, page_tokens=st.integers(1, 4), window=st.none() | st.integers(1, 12))
def test_ragged_paged_attention_equals_attention_of_each_sequence(
    lengths: list[tuple[int, int]], page_tokens: int, window: int | None
) -> None:
    cache, backend = filled(page_tokens)
    source = torch.Generator().manual_seed(2)
    new = sum(count for _, count in lengths)
    query = torch.randn(new, 4, 8, generator=source, dtype=torch.float64)
    key = torch.randn(new, 2, 8, generator=source, dtype=torch.float64)
    value = torch.randn(new, 2, 8, generator=source, dtype=torch.float64)
    tables = [cache.allocate(-(-(old + count) // page_tokens))[::-1] for old, count in lengths]
    plan = backend.plan(
        PassLayout(
            page_tables=tables,
            kv_tokens=[old + count for old, count in lengths],
            query_tokens=[count for _, count in lengths],
            window_tokens=window,
        )
    )
    slots = cache.slots(1)
    slots[0][plan.write_slots], slots[1][plan.write_slots] = key, value
    output, row = plan.attend(1, query), 0
    for table, (old, count) in zip(tables, lengths, strict=True):
        rows = slice(row, row + count)
        place = torch.arange(old + count)
        slots = torch.tensor(table)[place // page_tokens] * page_tokens + place % page_tokens
        keys, values = (part[slots] for part in cache.slots(1))
        assert torch.equal(keys[old:], key[rows]) and torch.equal(values[old:], value[rows])
        new_queries = query[rows]
        ahead = place[None] - place[old:, None]
        seen = (ahead <= 0) & (ahead > -(window or 1000))
        expected = F.scaled_dot_product_attention(
            *(part.transpose(0, 1) for part in (new_queries, keys, values)), seen, enable_gqa=True
        )
        torch.testing.assert_close(output[rows], expected.transpose(0, 1), atol=1e-12, rtol=0)
        row += count
