"""Index tables of FlashInfer's kernel, on a CPU."""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES

from runtime.attention.base import PassLayout, runs_of_equal_queries
from runtime.attention.choices import TableChoices
from runtime.attention.paged_cache import PagedCache
from runtime.attention.reference import ReferenceAttention
from runtime.attention.tables import AttentionShape, DeviceTables, PassTables

PAGE, ROOM = 4, 1024


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
    """Query counts of a batch, its lengths in three rounds, and the passes per round."""
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


def tables_of(layouts: Sequence[PassLayout]) -> PassTables:
    shape = AttentionShape(
        group=2, kv_heads=2, head_dim=64, page_tokens=PAGE, idle_page=0, num_sms=16
    )
    batch = len(layouts[0].kv_tokens)
    return PassTables(layouts, shape, batch=batch, page_room=ROOM, device=torch.device("cpu"))


def visible_blocks(tables: DeviceTables) -> list[list[int]]:
    """The block tables without masked blocks."""
    parts, words = tables.segments, tables.blocks.view(torch.int32)
    start = parts.blocks.start

    def read(part: slice) -> list[int]:
        return words[part.start - start : part.stop - start].tolist()

    at = parts.byte_offset(parts.valid)
    valid = tables.blocks[at : at + tables.grid.blocks].bool().tolist()
    rows = [
        list(itertools.compress(read(part), valid))
        for part in (parts.requests, parts.query_tiles, parts.kv_ranges)
    ]
    others = (parts.outputs, parts.range_tokens, parts.rows, parts.merges)
    return rows + [read(part) for part in others]


@given(phases())
@settings(max_examples=60, deadline=None)
def test_slots_and_positions_equal_the_reference(
    phase: tuple[list[int], list[list[int]], int],
) -> None:
    queries, rounds, steps = phase
    plain = reference()
    layouts = layouts_of(queries, rounds[0], steps)
    tables = tables_of(layouts)
    tables.fill(layouts)
    for one, layout in zip(tables.passes, layouts, strict=True):
        plan = plain.plan(layout)
        assert one.write_slots.tolist() == plan.write_slots.tolist()
        assert one.positions.tolist() == plan.positions.tolist()
        assert (one.last_page + (ROOM - 1) * PAGE).tolist() == list(layout.kv_tokens)


def check_blocks(one: DeviceTables, queries: list[int], kv: list[int]) -> None:
    """Every tile's ranges cover its KV once, if it is split."""
    if not one.grid.split:  # lengths change nothing in the blocks
        return
    requests, tiles, ranges, outputs, (range_tokens,), _, merges = visible_blocks(one)
    cuts = [-(-count // range_tokens) for count in kv]
    tile_counts = [-(-2 * count // one.grid.tile_rows) for count in queries]
    assert list(zip(requests, tiles, ranges, strict=True)) == [
        (row, tile, cut)
        for row in range(len(queries))
        for tile in range(tile_counts[row])
        for cut in range(cuts[row])
    ]
    rows = [cuts[row] for row, count in enumerate(queries) for _ in range(count)]
    assert merges == [0, *itertools.accumulate(rows)]
    parts = [cut * count for cut, count in zip(cuts, queries, strict=True)]
    assert outputs == [0, *itertools.accumulate(parts)]


@given(phases())
@settings(max_examples=60, deadline=None)
def test_after_refills_blocks_cover_every_page_once(
    phase: tuple[list[int], list[list[int]], int],
) -> None:
    queries, rounds, steps = phase
    used = tables_of(layouts_of(queries, rounds[0], steps))
    for kv in (rounds[0], rounds[1], rounds[0], rounds[2]):
        used.fill(layouts_of(queries, kv, steps))
    for step, one in enumerate(used.passes):
        kv = [count + step for count in rounds[2]]
        assert (one.last_page + (ROOM - 1) * PAGE).tolist() == kv
        check_blocks(one, queries, kv)


@given(phases(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_choice_among_prepared_lengths_equals_filling_them(
    phase: tuple[list[int], list[list[int]], int], data: st.DataObject
) -> None:
    _, rounds, steps = phase
    batch = len(rounds[0])
    ones = [1] * batch
    idle = data.draw(st.integers(0, 2))
    first = layouts_of([1] * (batch + idle), [*rounds[0], *[9] * idle], steps)
    prepared, filled = tables_of(first), tables_of(first)
    prepared.fill(first)
    filled.fill(first)
    more = data.draw(st.lists(st.integers(0, 6), min_size=3, max_size=3))
    counts = np.minimum(rounds[0], PAGE * ROOM - 10) + np.sort(more)[:, None]
    tables = layouts_of(ones, rounds[0], 1)[0].page_tables
    shifted = [[[page + index for page in row] for row in tables] for index in range(3)]
    vary = data.draw(st.lists(st.booleans(), min_size=batch, max_size=batch))
    pages = [
        [shifted[index][row] if vary[row] else tables[row] for index in range(3)]
        for row in range(batch)
    ]
    kv = counts[:, None] + np.arange(steps)[:, None]
    choices = TableChoices(prepared, 3)
    choice = data.draw(st.lists(st.integers(0, 2), min_size=batch, max_size=batch))
    if not choices.prepare(pages, kv, 3 * kv):
        assert prepared.passes[0].grid.split
        return
    choices.select(torch.tensor(choice), torch.arange(batch))
    chosen = kv[choice, :, range(batch)]  # (batch, steps)
    layouts = [
        PassLayout(
            page_tables=[pages[row][index] for row, index in enumerate(choice)],
            kv_tokens=chosen[:, step].tolist(),
            query_tokens=ones,
            first_positions=(3 * chosen[:, step]).tolist(),
        )
        for step in range(steps)
    ]
    filled.fill(layouts, range(batch))
    for one, other in zip(prepared.passes, filled.passes, strict=True):
        assert one.write_slots.tolist() == other.write_slots.tolist()
        assert one.positions.tolist() == other.positions.tolist()
        assert one.last_page.tolist() == other.last_page.tolist()
        assert one.pages.tolist() == other.pages.tolist()
        lengths = one.last_page + (ROOM - 1) * PAGE
        check_blocks(one, [1] * (batch + idle), lengths.tolist())
    assert prepared.tokens.tolist() == filled.tokens.tolist()


def test_choices_that_need_different_blocks_are_not_prepared() -> None:
    layouts = layouts_of([1], [4000], 1)
    tables = tables_of(layouts)
    tables.fill(layouts)
    assert tables.passes[0].grid.split
    pages = [[layouts[0].page_tables[0]] * 2]
    for fewest, same in ((3999, True), (400, False)):
        kv = np.array([fewest, 4000])[:, None, None]
        assert TableChoices(tables, 2).prepare(pages, kv, kv) == same


def test_runs_are_consecutive_layouts_with_the_same_query_counts() -> None:
    one, two = layouts_of([1, 1], [20, 30], 3), layouts_of([2, 2], [20, 30], 1)
    assert [len(run) for run in runs_of_equal_queries([*two, *one])] == [1, 3]
    assert [len(run) for run in runs_of_equal_queries(one)] == [3]
