"""Properties of the tables that FlashInfer's kernel reads, on the host alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES

from runtime.attention.base import PassLayout
from runtime.attention.paged_cache import PagedCache
from runtime.attention.reference import ReferenceAttention
from runtime.attention.split_kv import BlockGrid, Ints
from runtime.attention.tables import AlikePasses, alike_runs

PAGE, ROOM = 4, 64


def reference() -> ReferenceAttention:
    cache = PagedCache(
        FAMILIES["llama-2"],
        kv_heads=1,
        pages=4 * ROOM,
        page_tokens=PAGE,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return ReferenceAttention(cache)


@st.composite
def phases(draw: st.DrawFn) -> tuple[list[int], list[list[int]], int]:
    """Query counts of a batch; its lengths in three rounds; how many passes a round has."""
    batch = draw(st.integers(1, 4))
    queries = draw(st.lists(st.integers(1, 5), min_size=batch, max_size=batch))
    lengths = st.lists(st.integers(5, ROOM * PAGE - 8), min_size=batch, max_size=batch)
    return queries, draw(st.lists(lengths, min_size=3, max_size=3)), draw(st.integers(1, 4))


def layouts_of(queries: list[int], kv: list[int], steps: int) -> list[PassLayout]:
    tables = [list(range(row * ROOM, (row + 1) * ROOM))[::-1] for row in range(len(queries))]
    return [
        PassLayout(
            page_tables=tables,
            kv_tokens=[count + step for count in kv],
            query_tokens=queries,
            first_positions=[7 * count + step for count in kv],
        )
        for step in range(steps)
    ]


def passes_of(layouts: Sequence[PassLayout]) -> AlikePasses:
    queries = np.array(layouts[-1].query_tokens, dtype=np.int32)
    grid = BlockGrid.of(
        queries,
        np.array(layouts[-1].kv_tokens, dtype=np.int32),
        group=2,
        kv_heads=2,
        page_tokens=PAGE,
        processors=16,
    )
    return AlikePasses.of(grid, queries, steps=len(layouts), page_room=ROOM)


def write(passes: AlikePasses, region: Ints, layouts: Sequence[PassLayout]) -> None:
    pages = np.array(layouts[0].page_tables, dtype=np.int32)
    kv = np.array([layout.kv_tokens for layout in layouts], dtype=np.int32)
    first = np.array([layout.first_positions for layout in layouts], dtype=np.int32)
    passes.write(region, kv, first, pages)


def read_blocks(passes: AlikePasses, row: Ints) -> list[list[int]]:
    """What the kernel heeds of the blocks: those that the mask leaves on."""
    *per_block, outputs, tokens, rows, merges, mask = (
        row[part] for part in passes.segments.block_parts
    )
    on = mask.view(np.uint8)[: passes.grid.blocks] == 1
    lists = [part[on].tolist() for part in per_block]
    return [*lists, outputs.tolist(), tokens.tolist(), rows.tolist(), merges.tolist()]


@given(phases())
@settings(max_examples=60, deadline=None)
def test_slots_and_positions_are_those_of_plain_attention(
    phase: tuple[list[int], list[list[int]], int],
) -> None:
    queries, rounds, steps = phase
    plain = reference()
    layouts = layouts_of(queries, rounds[0], steps)
    passes = passes_of(layouts)
    region = np.zeros((steps, passes.segments.words), dtype=np.int32)
    write(passes, region, layouts)
    for row, layout in zip(region, layouts, strict=True):
        plan = plain.plan(layout)
        assert row[passes.segments.slots].tolist() == plan.write_slots.tolist()
        assert row[passes.segments.positions].tolist() == plan.positions.tolist()
        pages = row[passes.segments.last_page] + (ROOM - 1) * PAGE
        assert pages.tolist() == list(layout.kv_tokens)


@given(phases())
@settings(max_examples=60, deadline=None)
def test_what_was_written_before_leaves_no_trace(
    phase: tuple[list[int], list[list[int]], int],
) -> None:
    queries, rounds, steps = phase
    used = passes_of(layouts_of(queries, rounds[0], steps))
    region = np.zeros((steps, used.segments.words), dtype=np.int32)
    used.write_constants(region)
    for kv in (rounds[0], rounds[1], rounds[0], rounds[2]):
        write(used, region, layouts_of(queries, kv, steps))
    fresh = AlikePasses.of(used.grid, used.queries, steps=1, page_room=ROOM)
    for row, layout in zip(region, layouts_of(queries, rounds[2], steps), strict=True):
        alone = np.zeros((1, fresh.segments.words), dtype=np.int32)
        fresh.write_constants(alone)
        fresh.written.clear()
        write(fresh, alone, [layout])
        if used.grid.split:
            assert read_blocks(used, row) == read_blocks(fresh, alone[0])


def test_runs_are_neighbours_that_feed_as_many_tokens() -> None:
    one, two = layouts_of([1, 1], [20, 30], 3), layouts_of([2, 2], [20, 30], 1)
    assert [len(run) for run in alike_runs([*two, *one])] == [1, 3]
    assert [len(run) for run in alike_runs(one)] == [3]
