"""KV tiles have the sizes of FlashInfer's headers, and partly filled tiles have a cost."""

from typing import Any

import pytest

from calibration.fit.measured.kv_tiles import kv_tile_tokens
from perfmodel import catalog
from perfmodel.catalog.kernels import efficiency

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
    fitted = [t.tile_tokens for t in CURVE.blocks if t.head_dim == head_dim]
    assert tuple(found) == tiles and tuple(fitted) == tiles[: len(fitted)]


def test_a_gpu_of_less_shared_memory_takes_no_larger_tiles() -> None:
    for head_dim in (64, 128, 256):
        for rows in (16, 64, 128):
            few, many = (
                kv_tile_tokens(head_dim=head_dim, tile_rows=rows, shared_bytes=size * 512.0)
                for size in (100, 228)
            )
            assert 16 <= few <= many


def test_one_token_past_a_full_tile_costs_more_than_one_before_it() -> None:
    shape = {"batch": 64, "kv_heads": 8, "head_dim": 64}
    before, full, one_more, two_more = (seconds(n, **shape) for n in (255.0, 256.0, 257.0, 258.0))
    assert full < 1.01 * before
    assert one_more > 1.05 * full
    assert two_more < 1.01 * one_more


def test_tiles_do_not_matter_for_a_long_context() -> None:
    assert seconds(32_769) < 1.01 * seconds(32_768)
