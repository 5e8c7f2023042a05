"""The rule that perfmodel tells again is the runtime's own."""

from __future__ import annotations

import numpy as np
import pytest

from perfmodel import runtime_cut
from runtime.attention.split_kv import BlockGrid, query_tile_rows

SHAPES = [(32, 8, 128), (32, 32, 128), (32, 8, 64), (32, 4, 64), (28, 4, 128)]
SM_COUNT = 132


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_are_those_that_the_runtime_runs(shape: tuple[int, int, int]) -> None:
    """At least 97 of 100 batches are cut alike; others lie within the estimate's two percent."""
    query_heads, kv_heads, head_dim = shape
    group, source = query_heads // kv_heads, np.random.default_rng(0)
    alike = []
    for _ in range(400):
        batch, query = int(source.integers(1, 200)), int(source.integers(1, 10))
        tokens = int(np.exp(source.uniform(np.log(128), np.log(60_000))))
        tile = query_tile_rows(query, group)
        grid = BlockGrid.of(
            np.full(batch, query, np.int32), np.full(batch, tokens, np.int32), group=group,
            kv_heads=kv_heads, page_tokens=16, processors=SM_COUNT, head_dim=head_dim,
        )  # fmt: skip
        one = np.ones(1)
        cut = runtime_cut(
            units=batch * kv_heads * one, tokens=tokens * one, rows=query * group * one,
            tile_rows=tile, head_dim=head_dim, sm_count=SM_COUNT,
        )  # fmt: skip
        alike.append(abs(cut.blocks[0] / (grid.blocks * kv_heads) - 1.0) < 0.03)
    assert np.mean(alike) >= 0.97
