"""Split-K sizes for products with few rows, and argmax over a padded vocabulary, on the CPU."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.kernels.ops import TorchOps, pipeline_stages, split_parts
from runtime.parallel.groups import Group

SHARED_BYTES = 227 * 1024  # of an H200's multiprocessor, for blocks


@given(st.sampled_from((16, 32, 64, 128)), st.integers(1, 600), st.integers(60, 160))
def test_a_deep_pipeline_lets_all_blocks_run_concurrently(
    rows: int, blocks: int, processors: int
) -> None:
    stages = pipeline_stages(rows, blocks, processors)
    assert 2 <= stages <= (6 if rows <= 16 else 5)
    stage_bytes = 2 * 128 * (64 + rows)
    if stages > 3:
        assert -(-blocks // processors) * stages * stage_bytes <= SHARED_BYTES
    assert stages * stage_bytes <= SHARED_BYTES


@given(st.integers(1, 200), st.integers(1, 500), st.integers(1, 120))
def test_parts_divide_the_depth(rows: int, columns: int, depth: int) -> None:
    parts = split_parts(rows, 64 * columns, 128 * depth)
    if parts is not None:
        assert depth % parts == 0 and rows <= 128


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_embeddings_of_all_ranks_add_up_to_the_lookup(ranks: int) -> None:
    table, tokens = torch.randn(24, 5), torch.randint(0, 24, (40,))
    parts = [
        TorchOps(Group(rank=rank, size=ranks)).embed(tokens, part)
        for rank, part in enumerate(table.chunk(ranks))
    ]
    assert torch.equal(torch.stack(parts).sum(0), TorchOps().embed(tokens, table))


@pytest.mark.parametrize("vocab", [5, 8])
def test_the_likeliest_token_is_never_padding(vocab: int) -> None:
    part = torch.arange(16.0).reshape(2, 8)
    assert TorchOps().best(part, vocab).tolist() == [vocab - 1] * 2
