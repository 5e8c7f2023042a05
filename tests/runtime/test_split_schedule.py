"""Blocks of attention work: every tile of queries meets every range of KV exactly once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.split_schedule import BlockGrid, pages_read, query_tile_rows, schedule

SEQUENCES = st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 40)), min_size=1, max_size=90)


@settings(max_examples=150, deadline=None)
@given(
    sequences=SEQUENCES,
    alike=st.booleans(),
    group=st.sampled_from([1, 4, 7, 8]),
    kv_heads=st.sampled_from([1, 2, 8, 32]),
    page=st.sampled_from([16, 128]),
    window=st.none() | st.integers(1, 3000),
    grown=st.integers(0, 300),
)
def test_every_tile_meets_every_range_once(
    sequences: list[tuple[int, int]], alike: bool, group: int, kv_heads: int, page: int,
    window: int | None, grown: int,
) -> None:  # fmt: skip
    """Also when lengths have grown since the grid was fixed, as in a captured graph."""
    if alike:
        sequences = sequences[:1] * len(sequences)
    queries = np.array([new for _, new in sequences], dtype=np.int32)
    kv = np.array([old + new for old, new in sequences], dtype=np.int32)
    grid = BlockGrid.of(
        queries, kv, group=group, kv_heads=kv_heads, page_tokens=page, processors=132,
        window_tokens=window,
    )  # fmt: skip
    kv += grown
    pages = pages_read(grid, kv)
    blocks = schedule(grid, pages, queries)
    assert blocks.count <= grid.blocks
    done = list(zip(blocks.requests, blocks.query_tiles, blocks.kv_ranges, strict=True))
    assert len(done) == len(set(done)) == blocks.count
    for request, new in enumerate(queries):
        tiles = -(-int(new) * group // grid.tile_rows)
        # As the kernel counts ranges: from the length itself, in tokens.
        seen = int(kv[request])
        if window is not None:
            seen = min(seen, window - 1 + grid.tile_rows)
        ranges = -(-seen // blocks.range_tokens)
        assert ranges == 1 or grid.split
        mine = {(tile, part) for owner, tile, part in done if owner == request}
        assert mine == {(tile, part) for tile in range(tiles) for part in range(ranges)}
        rows = blocks.outputs[request + 1] - blocks.outputs[request]
        assert rows == new * ranges
    assert blocks.merges[-1] == blocks.outputs[-1]
    assert (np.diff(blocks.merges) >= 1).all() and len(blocks.merges) == queries.sum() + 1


def test_a_tile_holds_the_rows_of_a_sequence_where_it_can() -> None:
    assert [query_tile_rows(tokens, 4) for tokens in (1, 4, 5, 16, 17, 1000)] == [
        16, 16, 64, 64, 128, 128,
    ]  # fmt: skip


def test_one_long_sequence_among_short_ones_is_split() -> None:
    """Where a batch fills the GPU already, even lengths stay whole and uneven ones do not."""
    queries = np.ones(64, dtype=np.int32)
    even = np.full(64, 1000, dtype=np.int32)
    uneven = np.array([50_000, *[1000] * 63], dtype=np.int32)
    grids = [
        BlockGrid.of(queries, kv, group=4, kv_heads=8, page_tokens=16, processors=132)
        for kv in (even, uneven)
    ]
    assert [grid.split for grid in grids] == [False, True]
    blocks = schedule(grids[1], pages_read(grids[1], uneven), queries)
    assert blocks.range_tokens < 50_000 / 8
