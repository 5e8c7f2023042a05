"""Tiles of KV: their sizes by FlashInfer's headers, and what a part-filled one costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel import catalog, efficiency
from perfmodel.kv_tiles import grid_tokens, kv_tile_tokens, tile_waste

HOPPER_BLOCK = 228 * 1024 / 2
GPU = catalog.gpu("h200")
CURVE = efficiency("h200", "specroof", "specroof").attention


def seconds(tokens: float, *, batch: int = 24, **shape: Any) -> float:
    values = {"query_heads": 32, "kv_heads": 32, "head_dim": 128, **shape}
    return float(
        CURVE.seconds(
            batch=batch, kv_tokens=tokens, peak_flops=GPU.peak_flops,
            hbm_bandwidth=GPU.hbm_bandwidth, **values,
        )
    )  # fmt: skip


@pytest.mark.parametrize("head_dim, tiles", [(64, (256, 128, 64)), (128, (128, 128, 64))])
def test_tiles_of_hopper_are_those_of_the_headers(head_dim: int, tiles: tuple[int, ...]) -> None:
    """By hand from KernelTraits: 7 and 3 fragments fit for one row tile, 4 and 2 are taken."""
    found = [
        kv_tile_tokens(head_dim=head_dim, tile_rows=rows, shared_bytes=HOPPER_BLOCK)
        for rows in (16, 64, 128)
    ]
    assert tuple(found) == tiles == CURVE.kv_tiles(head_dim)


def test_a_gpu_of_less_shared_memory_takes_no_larger_tiles() -> None:
    for head_dim in (64, 128, 256):
        for rows in (16, 64, 128):
            few, many = (
                kv_tile_tokens(head_dim=head_dim, tile_rows=rows, shared_bytes=size * 512.0)
                for size in (100, 228)
            )
            assert 16 <= few <= many


@given(tokens=st.integers(1, 100_000), tile=st.sampled_from([64, 128, 256]))
def test_waste_fills_the_last_tile_and_no_more(tokens: int, tile: int) -> None:
    waste = float(tile_waste(np.array(float(tokens)), np.array(1.0), tile_tokens=tile))
    computed = waste * tokens
    assert computed == pytest.approx(-(-tokens // tile) * tile, rel=1e-12)
    assert tokens <= computed + 1e-6 < tokens + tile + 1e-3
    assert float(tile_waste(np.array(float(tokens)), np.array(2.0), tile_tokens=tile)) == 1.0


def test_the_grid_holds_both_sides_of_every_small_tiles_edge() -> None:
    grid = grid_tokens((256, 64), np.array([1.0, 1e6]))
    assert {256.0, 257.0, 512.0, 513.0, 64.0, 65.0, 1.0, 1e6} <= set(grid)
    assert np.all(np.diff(grid) > 0)


def test_one_token_past_a_full_tile_costs_more_than_one_before_it() -> None:
    shape = {"batch": 64, "kv_heads": 8, "head_dim": 64}
    before, full, one_more, two_more = (seconds(n, **shape) for n in (255.0, 256.0, 257.0, 258.0))
    assert full < 1.01 * before
    assert one_more > 1.1 * full
    assert two_more < 1.01 * one_more


def test_a_long_context_knows_no_tiles() -> None:
    assert seconds(32_769) < 1.01 * seconds(32_768)
