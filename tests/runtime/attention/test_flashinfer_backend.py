"""FlashInfer's backend on a CPU: an emulation reads every argument that the kernel gets.

`PagedRun` does on the CPU, in float64, what `BatchPrefillWithPagedKVCache` of flashinfer 0.6.6 does
(`attention/prefill.cuh`, `cascade.cuh`): blocks of query rows by ranges of KV, then their merge.
"""

import math
import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from runtime.attention import flashinfer_backend
from runtime.attention.base import PassLayout
from runtime.attention.flashinfer_backend import FlashInferAttention
from runtime.attention.paged_cache import PagedCache
from runtime.attention.reference import ReferenceAttention
from runtime.config import DecoderConfig
from runtime.execution.draft_steps import DraftPhase

torch.set_num_threads(1)
CPU = torch.device("cpu")
HEAD_DIM, POOL = 64, 700
CAUSAL, NHD = 1, 0


class PagedRun:
    """Stands in for the kernel module of one combination of types and window."""

    def __init__(self, dtype: torch.dtype, head_dim: int, windowed: bool) -> None:
        assert dtype is torch.bfloat16 and head_dim == HEAD_DIM
        self.windowed = windowed

    def paged_run(
        self, workspace: Tensor, blocks: Tensor, info: list[int], query: Tensor, keys: Tensor,
        values: Tensor, query_offsets: Tensor, page_offsets: Tensor, pages: Tensor,
        last_page: Tensor, out: Tensor, lse: None, mask_mode: int, kv_layout: int, window_left: int,
        pdl: bool, *rest: Any,
    ) -> None:  # fmt: skip
        assert lse is None and kv_layout == NHD and pdl is True
        assert (window_left >= 0) == self.windowed
        scale, room = 1 / math.sqrt(HEAD_DIM), workspace.numel()
        assert rest == (*[None] * 6, 0.0, scale, None, None, None, 1.0, 1e4, 0, room)
        (count, rows, rows_at, tile, requests_at, tiles_at, ranges_at, merges_at, outputs_at,
         range_at, values_at, sums_at, valid_at, graph, split) = info  # fmt: skip
        heads, kv_heads, page = query.shape[1], keys.shape[2], keys.shape[1]
        group, batch = heads // kv_heads, len(last_page)
        assert graph == 1 and values_at == 0 and sums_at % 16 == 0

        def ints(at: int, size: int) -> list[int]:
            assert at % 16 == 0
            return blocks[at : at + 4 * size].view(torch.int32).tolist()

        outputs, merges = ints(outputs_at, batch + 1), ints(merges_at, rows + 1)
        (range_tokens,) = ints(range_at, 1)
        assert ints(rows_at, 1) == [rows] == [query_offsets[-1].item()] == [len(query)]
        if split:  # in float32 on a GPU: outputs in the query's type, then log-sum-exps
            assert room >= sums_at + 4 * heads * merges[-1]
            assert sums_at >= merges[-1] * heads * HEAD_DIM * 2
        size = merges[-1] if split else rows  # one partial row per query and range
        partial = torch.zeros(size, heads, HEAD_DIM, dtype=torch.float64)
        sums = torch.zeros(size, heads, dtype=torch.float64)
        written = torch.zeros(size, heads, dtype=torch.long)
        tables = zip(ints(requests_at, count), ints(tiles_at, count), ints(ranges_at, count),
                     blocks[valid_at : valid_at + count].tolist(), strict=True)  # fmt: skip
        for request, tile_index, range_index, valid in tables:
            if not valid:
                continue
            first, stop = query_offsets[request : request + 2].tolist()
            begin, end = page_offsets[request : request + 2].tolist()
            # In 32 bits without sign: a full table plus a negative last page is the length.
            kv_tokens = ((end - begin - 1) * page + last_page[request].item()) % 2**32
            new, begin_kv, ranges = stop - first, 0, 1
            if window_left >= 0:
                ahead = kv_tokens + tile_index * tile // group
                begin_kv = max(0, ahead - new - window_left)
            end_kv = kv_tokens
            if split:
                seen = kv_tokens if window_left < 0 else min(kv_tokens, window_left + tile)
                ranges = -(-seen // range_tokens)
                begin_kv = min(begin_kv + range_index * range_tokens, kv_tokens)
                end_kv = min(begin_kv + range_tokens, kv_tokens)
            place = torch.arange(begin_kv, end_kv)
            at = pages[begin + place // page], place % page
            for index in range(tile_index * tile // group, new):
                packed = index * group + torch.arange(heads) % group  # its heads, of each KV head
                in_tile = packed // tile == tile_index
                ahead = place - (kv_tokens - new + index)
                visible = (ahead <= 0) if mask_mode == CAUSAL else torch.ones_like(place).bool()
                if window_left >= 0:
                    visible &= ahead >= -window_left
                output, total = attention(
                    query[first + index], keys[at], values[at], visible, scale
                )
                row = outputs[request] + index * ranges + range_index if split else first + index
                partial[row, in_tile], sums[row, in_tile] = output[in_tile], total[in_tile]
                written[row] += in_tile
        assert (written == 1).all()
        for row in range(rows):
            part = slice(merges[row], merges[row + 1]) if split else slice(row, row + 1)
            weights = sums[part].softmax(0)
            out[row] = (partial[part] * weights[..., None]).sum(0)


def attention(
    query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Outputs (heads, dim) and log-sum-exps (heads,) of one query (heads, dim) over some keys."""
    group = len(query) // keys.shape[1]
    wide = (part.double().repeat_interleave(group, dim=1) for part in (keys, values))
    key, value = wide
    scores = torch.einsum("hd,khd->hk", query, key) * scale
    scores = scores.masked_fill(~visible, -torch.inf)
    total = scores.logsumexp(1)
    weights = (scores - total[:, None]).exp().nan_to_num(0.0)  # nothing visible: no weight
    return torch.einsum("hk,khd->hd", weights, value), total


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(flashinfer_backend, "batch_prefill_kernel", PagedRun)
    h200 = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: h200)
    yield


def backends(
    source: random.Random, kv_heads: int, group: int
) -> tuple[FlashInferAttention, ReferenceAttention]:
    """Both backends over the same random keys and values, in bfloat16 and float64."""
    config = DecoderConfig(
        name="c", layers=2, hidden=64, query_heads=kv_heads * group, kv_heads=kv_heads,
        head_dim=HEAD_DIM, ffn_hidden=8, vocab=10, max_context_tokens=99,
    )  # fmt: skip
    page = source.choice([4, 16])
    fast, exact = (
        PagedCache(config, kv_heads=kv_heads, pages=POOL, page_tokens=page, dtype=dtype, device=CPU)
        for dtype in (torch.bfloat16, torch.float64)
    )
    fast.storage.normal_(generator=torch.Generator().manual_seed(source.randrange(99)))
    exact.storage.copy_(fast.storage)
    return FlashInferAttention(fast, kv_heads * group), ReferenceAttention(exact)


def assert_same(plan: Any, expected: Any, heads: int) -> None:
    """Compare one pass; the plan may have idle rows after those of the layout."""
    count = len(expected.positions)
    assert plan.positions.tolist()[:count] == expected.positions.tolist()
    assert plan.write_slots.tolist()[:count] == expected.write_slots.tolist()
    shape, generator = (len(plan.positions), heads, HEAD_DIM), torch.Generator().manual_seed(0)
    query = torch.randn(shape, generator=generator, dtype=torch.float64)
    output = plan.attend(1, query)[:count]
    torch.testing.assert_close(output, expected.attend(1, query[:count]), atol=1e-11, rtol=0)


@pytest.mark.parametrize("trial", range(24))
def test_a_ragged_pass_equals_the_reference(trial: int, emulated: None) -> None:
    source = random.Random(trial)
    kv_heads, group = source.choice([1, 2]), source.choice([1, 4, 7])
    fast, plain = backends(source, kv_heads, group)
    page, free = fast.cache.page_tokens, list(range(POOL))
    source.shuffle(free)
    new = [source.choice([1, 4, 9, 40]) for _ in range(source.choice([1, 2, 5]))]
    old = [source.choice([0, 15, 16, 17, source.randrange(300)]) for _ in new]
    layout = PassLayout(
        page_tables=[
            [free.pop() for _ in range(-(-(a + b) // page))] for a, b in zip(old, new, strict=True)
        ],
        kv_tokens=[a + b for a, b in zip(old, new, strict=True)],
        query_tokens=new,
        window_tokens=source.choice([None, None, 50]),
    )
    assert_same(fast.plan(layout), plain.plan(layout), kv_heads * group)


@pytest.mark.parametrize("trial", range(24))
def test_refilled_tables_of_a_draft_phase_equal_the_reference(trial: int, emulated: None) -> None:
    """Three rounds over the same tables: lengths change, and in the last some have finished."""
    source = random.Random(100 + trial)
    kv_heads, group = source.choice([1, 2]), source.choice([1, 4])
    fast, plain = backends(source, kv_heads, group)
    page, free = fast.cache.page_tokens, list(range(POOL))
    gamma, first, batch = source.choice([1, 3]), source.choice([1, 2]), source.choice([2, 3, 5])
    window = source.choice([None, None, 50])
    tables = [[free.pop() for _ in range(-(-520 // page))] for _ in range(batch)]

    def layouts(used: int) -> list[PassLayout]:
        cached = [source.choice([30, source.randrange(20, 510)]) for _ in range(used)]
        return DraftPhase(
            first_tokens=[[3] * first] * used,
            first_positions=[5 * tokens for tokens in cached],
            page_tables=tables[:used],
            cached=cached,
            window_tokens=window,
        ).layouts(gamma)

    planned = fast.plan_passes(layouts(batch), batch=batch, page_room=140)
    for used in (batch, batch, batch // 2):
        phase = layouts(used)
        assert planned.tables.fits(used, max(map(len, tables)))
        planned.tables.fill(phase, range(used * first))
        assert planned.tables.tokens.tolist()[: used * first] == list(range(used * first))
        for plan, layout in zip(planned.plans, phase, strict=True):
            assert_same(plan, plain.plan(layout), kv_heads * group)
