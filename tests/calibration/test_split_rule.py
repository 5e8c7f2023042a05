"""The split-KV rules of perfmodel and of the runtime are the same."""

import numpy as np
import pytest

from perfmodel.kernels import TILE_ROWS, AttentionCall
from perfmodel.kernels.attention_split import call_seconds, tile_index
from runtime.attention.split_kv import (
    BlockGrid,
    Blocks,
    pages_read,
    pass_seconds,
    query_tile_rows,
    schedule,
)

HEADS = [(32, 8, 128), (32, 32, 128), (32, 8, 64), (32, 4, 64), (28, 4, 128), (8, 1, 128),
         (16, 4, 128), (64, 8, 128), (16, 2, 256)]  # fmt: skip
BATCHES = 2500  # of either kind
PAGE = 16


def runtime_blocks(kv: np.ndarray, call: AttentionCall) -> Blocks:
    """The runtime's blocks for a pass whose graph was captured at the same lengths."""
    queries = np.full(len(kv), call.query_tokens, np.int32)
    grid = BlockGrid.of(
        queries, kv, group=int(call.query_heads // call.kv_heads), kv_heads=int(call.kv_heads),
        page_tokens=PAGE, num_sms=call.sm_count, head_dim=call.head_dim,
    )  # fmt: skip
    return schedule(grid, pages_read(grid, kv), queries)


@pytest.mark.parametrize("equal", [True, False])
def test_every_batch_is_split_as_in_the_runtime(equal: bool) -> None:
    draw = np.random.default_rng(int(equal))
    for _ in range(BATCHES):
        query_heads, kv_heads, head_dim = HEADS[draw.integers(len(HEADS))]
        call = AttentionCall(
            query_tokens=int(draw.integers(1, 20)), query_heads=query_heads, kv_heads=kv_heads,
            head_dim=head_dim, sm_count=int(draw.choice([108, 132, 142])),
        )  # fmt: skip
        batch = int(np.exp(draw.uniform(0.0, np.log(257.0))))
        drawn = np.exp(draw.uniform(0.0, np.log(130_000.0), 1 if equal else batch))
        lengths = np.maximum(drawn.astype(np.int32), np.int32(call.query_tokens))
        kv = np.broadcast_to(lengths, batch).astype(np.int32)
        cut = call.split_kv(lengths[None].astype(float), batch if equal else 1.0)
        run, longest = runtime_blocks(kv, call), float(kv.max())
        assert cut.blocks.tolist() == [run.count * kv_heads], (call, lengths)
        assert cut.range_tokens.tolist() == [min(float(run.range_tokens), longest)], (call, lengths)
        assert cut.merged.tolist() == [float(run.kv_ranges.max() > 0)], (call, lengths)


def test_many_batches_are_split_at_once_as_one_by_one() -> None:
    draw = np.random.default_rng(2)
    heads = np.array([HEADS[i] for i in draw.integers(2, size=300)], float)
    queries, batch = draw.integers(1, 20, 300).astype(float), draw.integers(1, 200, 300)
    tokens = np.exp(draw.uniform(5.0, 11.0, 300))
    shape = {"head_dim": 128, "sm_count": 132}
    together = AttentionCall(
        query_tokens=queries, query_heads=heads[:, 0], kv_heads=heads[:, 1], **shape
    ).split_kv(tokens[:, None], batch[:, None])
    for i in range(300):
        alone = AttentionCall(
            query_tokens=queries[i], query_heads=heads[i, 0], kv_heads=heads[i, 1], **shape
        ).split_kv(tokens[i : i + 1, None], float(batch[i]))
        assert [part[i] for part in together] == [part[0] for part in alone]


def test_the_estimates_are_the_same() -> None:
    draw = np.random.default_rng(3)
    for rows in (1, 16, 17, 64, 65, 500):
        blocks, longest = np.array([8.0, *draw.integers(9, 3000, 50)]), draw.uniform(128, 1e5, 51)
        total, merged = float(draw.uniform(1e4, 1e7)), float(draw.integers(1, 10_000))
        shape = {"head_dim": 64, "blocks": blocks}
        theirs = pass_seconds(
            longest_tokens=longest, total_tokens=total, merged_rows=merged, num_sms=132,
            tile_rows=query_tile_rows(rows, 1), **shape,
        )  # fmt: skip
        tile = np.full(51, tile_index(np.array(rows)))
        assert TILE_ROWS[tile[0]] == query_tile_rows(rows, 1)
        ours = call_seconds(
            longest=longest, total=np.full(51, total), sm_count=132, tile=tile,
            merged=np.array([0.0] + 50 * [merged]), **shape,
        )  # fmt: skip
        np.testing.assert_allclose(ours, theirs, rtol=1e-14)
