"""The paged cache: allocation, freeing and rolling back of pages."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import DRAFTS, FAMILIES, Case, build, random_prompts, run

from runtime.attention.paged_cache import PagedCache, PageTable, pages_for
from runtime.errors import OutOfPages

torch.set_num_threads(1)


def cache(pages: int, page_tokens: int) -> PagedCache:
    return PagedCache(
        FAMILIES["llama-2"],
        kv_heads=4,
        pages=pages,
        page_tokens=page_tokens,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


@settings(max_examples=40, deadline=None)
@given(
    page_tokens=st.integers(1, 5),
    steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), max_size=30),
)
def test_every_page_belongs_to_one_sequence(page_tokens: int, steps: list[tuple[int, int]]) -> None:
    pool = cache(40, page_tokens)
    tables = [PageTable() for _ in range(3)]
    for which, amount in steps:
        table = tables[which]
        if amount % 3 == 2:
            pool.truncate(table, min(table.tokens, amount))
        else:
            try:
                pool.reserve(table, amount)
            except OutOfPages:
                continue
            table.tokens += amount
        used = [page for each in tables for page in each.pages]
        assert len(used) == len(set(used)) == pool.pages - pool.free_pages
        assert all(len(t.pages) == pages_for(t.tokens, page_tokens) for t in tables)
    for table in tables:
        pool.release(table)
    assert pool.free_pages == pool.pages


def test_a_full_cache_reports_what_is_needed_and_free() -> None:
    pool, table = cache(5, 4), PageTable()
    pool.reserve(table, 9)
    with pytest.raises(OutOfPages, match=r"4 more are needed.* 2 of 5 pages of 4 tokens"):
        pool.reserve(table, 25)
    assert pool.free_pages == 2


def test_an_engine_that_runs_out_of_pages_reports_it() -> None:
    case = Case(
        family="llama-2",
        prompts=random_prompts((20, 20), seed=1),
        new_tokens=(50, 50),
        extra={"cache_pages": 20},
    )
    with pytest.raises(OutOfPages, match="1 more are needed"):
        run(case)


@pytest.mark.parametrize("draft", DRAFTS)
def test_after_rejections_the_cache_equals_that_of_plain_decoding(draft: str) -> None:
    case = Case(
        family="llama-3.1",
        prompts=random_prompts((50, 31, 7), seed=9),
        new_tokens=(60, 60, 60),
        draft=draft,
        gamma=4,
    )
    engine = build(case)
    engine.start(case.prompts, case.new_tokens)
    for _ in range(6):
        engine.round()
    plain = build(case.plain)
    plain.start([s.tokens[:-1] for s in engine.sequences], [60] * 3)
    for speculative, clean in zip(engine.sequences, plain.sequences, strict=True):
        assert speculative.table.tokens == clean.table.tokens == len(speculative.tokens) - 1
        # A prepared self-draft has begun the next round.
        ahead = case.gamma + 1 if draft.startswith("self") else 0
        pages = pages_for(speculative.table.tokens + ahead, engine.cache.page_tokens)
        assert len(speculative.table.pages) == pages
        for layer in range(engine.target.config.layers):
            pairs = ((engine.cache, speculative.table), (plain.cache, clean.table))
            actual, wanted = (keys_and_values(pool, table, layer) for pool, table in pairs)
            for one, other in zip(actual, wanted, strict=True):
                torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def keys_and_values(pool: PagedCache, table: PageTable, layer: int) -> list[torch.Tensor]:
    """Keys and values of a sequence, in order."""
    place = torch.arange(table.tokens)
    slots = torch.tensor(table.pages)[place // pool.page_tokens] * pool.page_tokens
    return [part[slots + place % pool.page_tokens] for part in pool.slots(layer)]
