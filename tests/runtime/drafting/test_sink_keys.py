"""Rotated sink keys equal keys at cache-relative positions."""

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES

from runtime.attention.base import PassLayout
from runtime.attention.paged_cache import PagedCache, PageTable
from runtime.attention.reference import ReferenceAttention
from runtime.config import RopeScaling
from runtime.drafting.sink_keys import SinkKeys
from runtime.kernels.rotary import Rotary, rotate

torch.set_num_threads(1)
CPU = torch.device("cpu")
PAGE = 4


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(["llama-3.1", "tinyllama", "llama-2"]),
    kept=st.lists(st.integers(2, 6), min_size=1, max_size=3),
    drops=st.lists(st.integers(0, 3), min_size=1, max_size=4),
    sink_pages=st.integers(1, 2),
)
def test_attention_over_a_ring_uses_cache_relative_positions(
    family: str, kept: list[int], drops: list[int], sink_pages: int
) -> None:
    """Sequences in one cache that drop window pages several times."""
    config = FAMILIES[family]
    cache = PagedCache(
        config, kv_heads=2, pages=120, page_tokens=PAGE, dtype=torch.float64, device=CPU
    )
    rotary = Rotary(config, CPU, torch.float64)
    sinks = SinkKeys(cache, rotary, sink_pages)
    source = torch.Generator().manual_seed(3)
    tables, raw, written = [PageTable() for _ in kept], [[] for _ in kept], [0] * len(kept)
    rounds = [*drops, 0]
    for drop in rounds:
        gone = []
        for table, keys in zip(tables, raw, strict=True):
            count = min(drop, len(table.pages) - sink_pages)
            for _ in range(max(0, count)):
                cache.drop_page(table, sink_pages)
                del keys[sink_pages * PAGE : (sink_pages + 1) * PAGE]
            gone.append(max(0, count) * PAGE)
        moved = [i for i, tokens in enumerate(gone) if tokens]
        sinks.follow([tables[i] for i in moved], [gone[i] for i in moved])
        for i, (table, keys) in enumerate(zip(tables, raw, strict=True)):
            new = (sink_pages + kept[i]) * PAGE
            cache.reserve(table, new)
            fresh = torch.randn(config.layers, new, 2, 8, generator=source, dtype=torch.float64)
            place = torch.arange(written[i], written[i] + new)
            slots = torch.tensor(table.pages)[(table.tokens + torch.arange(new)) // PAGE] * PAGE
            slots += (table.tokens + torch.arange(new)) % PAGE
            for layer in range(config.layers):
                cache.slots(layer)[0][slots] = rotate(fresh[layer], *rotary.tables(place))
                cache.slots(layer)[1][slots] = 0.5 * fresh[layer]
            keys.extend(fresh[:, token] for token in range(new))
            table.tokens += new
            written[i] += new
    plan = ReferenceAttention(cache).plan(
        PassLayout(
            page_tables=[table.pages for table in tables],
            kv_tokens=[table.tokens for table in tables],
            query_tokens=[1] * len(tables),
        )
    )
    query = torch.randn(len(tables), 4, 8, generator=source, dtype=torch.float64)
    at = torch.tensor([count - 1 for count in written])
    output = plan.attend(1, rotate(query, *rotary.tables(at)))
    for i, keys in enumerate(raw):
        unrotated = torch.stack([key[1] for key in keys])  # (kept, KV heads, dim), unrotated
        inside = torch.arange(len(keys))
        rotated = rotate(unrotated, *rotary.tables(inside)).repeat_interleave(2, dim=1)
        rotated_query = rotate(query[i : i + 1], *rotary.tables(inside[-1:]))[0]
        scores = torch.einsum("hd,khd->hk", rotated_query, rotated) / 8**0.5
        values = 0.5 * unrotated.repeat_interleave(2, dim=1)
        expected = torch.einsum("hk,khd->hd", scores.softmax(-1), values)
        torch.testing.assert_close(output[i], expected, atol=1e-9, rtol=0)


def test_a_yarn_key_is_scaled_only_once_when_rotated_again() -> None:
    yarn = RopeScaling(kind="yarn", factor=4.0, original_context_tokens=64, attention_factor=1.14)
    rotary = Rotary(replace(FAMILIES["llama-2"], rope_scaling=yarn), CPU, torch.float64)
    key = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    place, further = torch.arange(5), torch.tensor([7])
    placed = rotate(key, *rotary.tables(place, rotary.attention_factor))
    expected = rotate(key, *rotary.tables(place + further, rotary.attention_factor))
    torch.testing.assert_close(rotate(placed, *rotary.tables(further)), expected)
    torch.testing.assert_close(placed.norm(dim=-1), 1.14 * key.norm(dim=-1))
