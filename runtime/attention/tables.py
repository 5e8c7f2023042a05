"""The tables that FlashInfer's kernel reads of a pass, as numbers on the host.

Page tables have a fixed stride; a sequence's length is told by its last page's length alone, which
the kernel adds to the pages before it (modulo 2**32, so that it may be negative).

Source: flashinfer 0.6.6, `csrc/batch_prefill.cu`, `page.cuh`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime.attention.base import PassLayout
from runtime.attention.split_kv import BlockGrid, Blocks, Ints, pages_read, schedule

_ALIGN = 4  # int32 words: FlashInfer's tables start at multiples of 16 bytes


def alike_runs(layouts: Sequence[PassLayout]) -> list[list[PassLayout]]:
    """Layouts in order, neighbours with the same query counts and window together."""
    found: list[list[PassLayout]] = []
    for layout in layouts:
        if found and _alike(found[-1][-1], layout):
            found[-1].append(layout)
        else:
            found.append([layout])
    return found


def _alike(one: PassLayout, other: PassLayout) -> bool:
    same_window = one.window_tokens == other.window_tokens
    return same_window and np.array_equal(one.query_tokens, other.query_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlikePasses:
    """Passes one after another that differ in their lengths alone: filled together."""

    grid: BlockGrid
    segments: Segments
    queries: Ints  # (batch,)
    owner: Ints  # (query_rows,) whose token each row is
    within: Ints  # (query_rows,) which of that sequence's tokens in this pass
    steps: int
    page_room: int
    written: dict[str, Ints] = field(default_factory=dict)  # pages that the blocks were made for

    @classmethod
    def of(cls, grid: BlockGrid, queries: Ints, *, steps: int, page_room: int) -> AlikePasses:
        """For `steps` passes of `queries` (batch,) tokens, over tables of `page_room` pages."""
        owner = np.repeat(np.arange(len(queries), dtype=np.int32), queries)
        first = np.cumsum(queries) - queries
        return cls(
            grid=grid,
            segments=Segments.of(grid),
            queries=queries,
            owner=owner,
            within=(np.arange(len(owner)) - first[owner]).astype(np.int32),
            steps=steps,
            page_room=page_room,
        )

    @property
    def words(self) -> int:
        """32-bit words of all its passes."""
        return self.steps * self.segments.words

    def write_constants(self, region: Ints) -> None:
        """What lengths do not change, for (steps, words)."""
        parts = self.segments
        region[:, parts.query_offsets] = np.concatenate(([0], np.cumsum(self.queries)))
        region[:, parts.page_offsets] = np.arange(self.grid.batch + 1) * self.page_room
        region[:, parts.block_parts[5]] = self.grid.query_rows

    def write(self, region: Ints, kv: Ints, first: Ints | None, pages: Ints) -> None:
        """Lengths, as the last page's; positions; the slots of the passes' own tokens; blocks.

        Parameters
        ----------
        region : array (steps, words)
        kv, first : arrays (steps, batch)
            Tokens read, the pass's own included; rotary position of each one's first new token.
        pages : array (batch, page_room)
        """
        parts, page = self.segments, self.grid.page_tokens
        region[:, parts.last_page] = kv - (self.page_room - 1) * page
        before = kv - self.queries
        place = before[:, self.owner] + self.within
        index, offset = np.divmod(place, page)
        region[:, parts.slots] = pages[self.owner, index] * page + offset
        region[:, parts.positions] = place if first is None else first[:, self.owner] + self.within
        self._write_blocks(region, pages_read(self.grid, kv))

    def _write_blocks(self, region: Ints, pages: Ints) -> None:
        """Who does what, where that is not what the region holds: (steps, batch) pages read.

        Without a split, lengths change nothing.
        """
        known = self.written.get("pages")
        if known is not None and (not self.grid.split or np.array_equal(known, pages)):
            return
        self.written["pages"] = pages
        whole = self.segments.blocks
        for step, row in enumerate(pages):
            if step and np.array_equal(row, pages[step - 1]):
                region[step, whole] = region[step - 1, whole]
            elif known is None or not np.array_equal(row, known[step]):
                self.segments.write_blocks(region[step], schedule(self.grid, row, self.queries))


@dataclass(frozen=True, slots=True)
class Segments:
    """Where one pass's numbers lie in its region of 32-bit words."""

    slots: slice
    positions: slice
    query_offsets: slice
    page_offsets: slice
    last_page: slice
    block_parts: tuple[slice, ...]  # requests, tiles, ranges, outputs, range, rows, merges, mask
    words: int

    @classmethod
    def of(cls, grid: BlockGrid) -> Segments:
        batch, rows, blocks = grid.batch, grid.query_rows, grid.blocks
        sizes = [rows, rows, batch + 1, batch + 1, batch,
                 blocks, blocks, blocks, batch + 1, 1, 1, rows + 1, -(-blocks // 4)]  # fmt: skip
        parts, start = [], 0
        for size in sizes:
            parts.append(slice(start, start + size))
            start += -(-size // _ALIGN) * _ALIGN
        slots, positions, query_offsets, page_offsets, last_page, *block_parts = parts
        return cls(
            slots,
            positions,
            query_offsets,
            page_offsets,
            last_page,
            block_parts=tuple(block_parts),
            words=start,
        )

    @property
    def blocks(self) -> slice:
        """All of FlashInfer's integer workspace."""
        return slice(self.block_parts[0].start, self.words)

    def write_blocks(self, region: Ints, blocks: Blocks) -> None:
        """One pass's blocks; those past the count are masked off."""
        requests, tiles, ranges, outputs, range_tokens, _, merges, mask = self.block_parts
        count = blocks.count
        region[requests][:count] = blocks.requests
        region[tiles][:count] = blocks.query_tiles
        region[ranges][:count] = blocks.kv_ranges
        region[outputs] = blocks.outputs
        region[range_tokens] = blocks.range_tokens
        region[merges] = blocks.merges
        valid = region[mask].view(np.uint8)
        valid[:count], valid[count:] = 1, 0
