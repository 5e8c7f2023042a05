"""Index tables for FlashInfer's batch-prefill kernel, on the host and on the device.

The tables of one or more passes over the same pages form one array of 32-bit words,

    page tables | pass 0 | pass 1 | ... | tokens of the first pass

so that each round copies them to the device in one transfer. Every sequence has `page_room` entries
for its page table. The kernel computes a sequence's length as (page_room - 1) * page_tokens +
last_page, modulo 2**32, so the length is set by `last_page` alone, which may be negative.

Source: flashinfer 0.6.6, `csrc/batch_prefill.cu`, `page.cuh`, `attention/scheduler.cuh`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.attention.base import Counts, PassLayout, runs_of_equal_queries
from runtime.attention.split_kv import BlockGrid, Blocks, Ints, pages_read, schedule

_ALIGN = 4  # words: FlashInfer's tables start at multiples of 16 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """The heads of one rank, the page size and the GPU."""

    group: int  # query heads per KV head
    kv_heads: int
    head_dim: int
    page_tokens: int
    idle_page: int  # for the idle rows of a batch
    num_sms: int


@dataclass(frozen=True, slots=True)
class Segments:
    """Slices of one pass's words; from `requests` on they are FlashInfer's integer workspace."""

    slots: slice
    positions: slice
    query_offsets: slice
    page_offsets: slice
    last_page: slice
    requests: slice
    query_tiles: slice
    kv_ranges: slice
    outputs: slice
    range_tokens: slice
    rows: slice
    merges: slice
    valid: slice  # one byte per block
    words: int

    @classmethod
    def of(cls, grid: BlockGrid) -> Segments:
        """The segments of a pass with this grid."""
        batch, rows, blocks = grid.batch, grid.query_rows, grid.blocks
        sizes = [  # in the order of the fields
            *(rows, rows, batch + 1, batch + 1, batch, blocks, blocks, blocks),
            *(batch + 1, 1, 1, rows + 1, -(-blocks // 4)),
        ]
        parts, start = {}, 0
        for field, size in zip(fields(cls), sizes, strict=False):
            parts[field.name] = slice(start, start + size)
            start += -(-size // _ALIGN) * _ALIGN
        return cls(**parts, words=start)

    @property
    def blocks(self) -> slice:
        """FlashInfer's integer workspace."""
        return slice(self.requests.start, self.words)

    def byte_offset(self, part: slice) -> int:
        """Offset of a part of the integer workspace, in bytes."""
        return 4 * int(part.start - self.requests.start)


class DeviceTables:
    """One pass's tables: tensors at fixed addresses that `PassTables.fill` refills.

    `pages` (batch * page_room,) are shared by all passes; `words` (segments.words,) are this one's.
    """

    def __init__(
        self, grid: BlockGrid, segments: Segments, *, causal: bool, pages: Tensor, words: Tensor
    ) -> None:
        self.grid, self.segments, self.causal, self.pages = grid, segments, causal, pages
        self.write_slots = words[segments.slots]  # (query_rows,) cache slots of new tokens
        self.positions = words[segments.positions]  # (query_rows,) rotary positions
        self.query_offsets = words[segments.query_offsets]  # (batch + 1,) into the query rows
        self.page_offsets = words[segments.page_offsets]  # (batch + 1,) into `pages`
        self.last_page = words[segments.last_page]  # (batch,) see above
        self.blocks = words[segments.blocks].view(torch.uint8)  # FlashInfer's integer workspace

    def plan_info(self, partial_output_bytes: int) -> list[int]:
        """FlashInfer's `PrefillPlanInfo`: sizes, and byte offsets into its two workspaces.

        `partial_output_bytes` is the offset of the log-sum-exps, after the partial outputs.
        """
        grid, parts, at = self.grid, self.segments, self.segments.byte_offset
        return [
            grid.blocks,
            grid.query_rows,
            at(parts.rows),
            grid.tile_rows,
            at(parts.requests),
            at(parts.query_tiles),
            at(parts.kv_ranges),
            at(parts.merges),
            at(parts.outputs),
            at(parts.range_tokens),
            0,
            partial_output_bytes,
            at(parts.valid),
            1,  # CUDA graph mode
            int(grid.split),
        ]


class PassTables:
    """Tables of one or more passes that read the same pages.

    Parameters
    ----------
    layouts : list of PassLayout
        One per pass. Query counts and windows stay fixed, as does whether KV may be split, which is
        decided from these lengths; lengths and pages may change with each `fill`.
    batch : int
        Capacity in sequences; rows beyond those of the layouts are idle.
    page_room : int, optional
        Capacity in pages per sequence, by default that of the longest layout.
    """

    def __init__(
        self,
        layouts: Sequence[PassLayout],
        shape: AttentionShape,
        *,
        batch: int,
        page_room: int | None = None,
        device: torch.device,
    ) -> None:
        self.batch, self._shape = batch, shape
        self.page_room = page_room or max(len(table) for table in layouts[0].page_tables)
        runs = runs_of_equal_queries(layouts)
        grids = [self._grid(run) for run in runs]
        pages, first_tokens = batch * self.page_room, grids[0][0].query_rows
        segments = [Segments.of(grid) for grid, _ in grids]
        words = pages + first_tokens
        words += sum(len(run) * parts.words for run, parts in zip(runs, segments, strict=True))
        self.staged = torch.zeros(words, dtype=torch.int32, pin_memory=device.type == "cuda")
        self.words = torch.zeros(words, dtype=torch.int32, device=device)
        self.copied = torch.cuda.Event() if device.type == "cuda" else None
        host: Ints = self.staged.numpy()
        self.token_words = slice(words - first_tokens, words)
        self._host_tokens = host[self.token_words]
        self.pages = host[:pages].reshape(batch, self.page_room)
        self.runs: list[PassRun] = []
        self.passes: list[DeviceTables] = []
        start = pages
        for run, parts, (grid, queries) in zip(runs, segments, grids, strict=True):
            stop = start + len(run) * parts.words
            region = host[start:stop].reshape(len(run), -1)
            self.runs.append(PassRun(grid, parts, queries, region, self.page_room))
            self.passes += [
                DeviceTables(
                    grid,
                    parts,
                    causal=bool((queries > 1).any()),
                    pages=self.words[:pages],
                    words=row,
                )
                for row in self.words[start:stop].view(len(run), -1)
            ]
            start = stop

    def fits(self, batch: int, pages: int) -> bool:
        """Whether there is room for so many sequences of at most so many pages."""
        return batch <= self.batch and pages <= self.page_room

    @property
    def tokens(self) -> Tensor:
        """Input tokens of the first pass, on the device."""
        return self.words[self.token_words]

    def fill(self, layouts: Sequence[PassLayout], tokens: Counts = ()) -> None:
        """Copy lengths, pages, blocks and the first pass's tokens to the device.

        Waits only for the previous copy, which reads the same host memory.
        """
        self.write_pages(layouts[0].page_tables)
        used, done = len(layouts[0].page_tables), 0
        for run in self.runs:
            passes = layouts[done : done + run.steps]
            kv = self._padded([layout.kv_tokens for layout in passes])
            kv[:, used:] = run.queries[used:]
            first = None
            if passes[0].first_positions is not None:
                first = self._padded([layout.first_positions for layout in passes])
            run.fill(kv, first, self.pages)
            done += run.steps
        self.send(tokens)

    def write_pages(self, page_tables: Sequence[Sequence[int]]) -> None:
        """Write the page tables of the first rows on the host, once the last copy has ended."""
        if self.copied is not None:
            self.copied.synchronize()
        for row, table in enumerate(page_tables):
            self.pages[row, : len(table)] = table
        self.pages[len(page_tables) :] = self._shape.idle_page

    def send(self, tokens: Counts) -> None:
        """Copy the host's tables and these tokens to the device."""
        self._host_tokens[: len(tokens)] = tokens
        self.words.copy_(self.staged, non_blocking=True)
        if self.copied is not None:
            self.copied.record()

    def _padded(self, rows: Sequence[Counts | None]) -> Ints:
        """Counts of each pass (passes, batch), zero for idle rows."""
        padded = np.zeros((len(rows), self.batch), dtype=np.int32)
        for row, values in zip(padded, rows, strict=True):
            if values is not None:
                row[: len(values)] = values
        return padded

    def _grid(self, run: Sequence[PassLayout]) -> tuple[BlockGrid, Ints]:
        """Grid and query counts of a run; the split is chosen for its last, longest pass."""
        shape, last = self._shape, run[-1]
        used = len(last.kv_tokens)
        queries, kv = self._padded([last.query_tokens, last.kv_tokens])
        queries[used:], kv[used:] = queries[0], kv[0]
        grid = BlockGrid.of(
            queries,
            kv,
            group=shape.group,
            kv_heads=shape.kv_heads,
            page_tokens=shape.page_tokens,
            num_sms=shape.num_sms,
            head_dim=shape.head_dim,
            window_tokens=last.window_tokens,
        )
        return grid, queries


class PassRun:
    """Host tables of consecutive passes that differ only in lengths."""

    def __init__(
        self, grid: BlockGrid, parts: Segments, queries: Ints, region: Ints, page_room: int
    ) -> None:
        """Use `region` (steps, words) of the host array; `queries` (batch,) are tokens per pass."""
        self.grid, self.parts, self.queries, self.region = grid, parts, queries, region
        self.page_room = page_room
        self.sequence = np.repeat(np.arange(len(queries), dtype=np.int32), queries)  # (query_rows,)
        first = np.cumsum(queries) - queries
        self.index = (np.arange(len(self.sequence)) - first[self.sequence]).astype(np.int32)
        self._range_pages = np.zeros((len(region), 1), dtype=np.int32)  # 0: not scheduled yet
        self._ranges = np.zeros((len(region), len(queries)), dtype=np.int32)
        region[:, parts.query_offsets] = np.concatenate(([0], np.cumsum(queries)))
        region[:, parts.page_offsets] = np.arange(grid.batch + 1) * page_room
        region[:, parts.rows] = grid.query_rows

    @property
    def steps(self) -> int:
        return len(self.region)

    def fill(self, kv: Ints, first: Ints | None, pages: Ints) -> None:
        """Write lengths, positions, slots and blocks.

        `kv` (steps, batch) are the tokens read, `first` (steps, batch) the rotary positions of each
        sequence's first new token, and `pages` (batch, page_room) the page tables.
        """
        page, cached = self.grid.page_tokens, kv - self.queries
        place = cached[:, self.sequence] + self.index
        table_index, offset = np.divmod(place, page)
        slots = pages[self.sequence, table_index] * page + offset
        if first is not None:
            place = first[:, self.sequence] + self.index
        self.write(self.region, self.last_page(kv), slots, place)
        self.fill_blocks(pages_read(self.grid, kv))

    def last_page(self, kv: Ints) -> Ints:
        """The words that set lengths; see the module's docstring."""
        return kv - (self.page_room - 1) * self.grid.page_tokens

    def write(self, region: NDArray[Any], last_page: Ints, slots: Ints, positions: Ints) -> None:
        """Write these words (..., steps, words) into `region`."""
        parts = self.parts
        region[..., parts.last_page] = last_page
        region[..., parts.slots] = slots
        region[..., parts.positions] = positions

    def has_blocks_for(self, pages: Ints) -> bool:
        """Whether the blocks suit these pages (..., steps, batch) too."""
        if not self.grid.split:
            return True
        return bool((-(-pages // self._range_pages) == self._ranges).all())

    def fill_blocks(self, pages: Ints) -> None:
        """Write the blocks of the passes that need other ones for these pages (steps, batch).

        Blocks depend on lengths only through the number of ranges of each sequence, so they stay as
        long as ranges of the present length give the same numbers; without a split, always.
        """
        first = not self._range_pages[0, 0]
        if not first and not self.grid.split:
            return
        ranges = -(-pages // np.maximum(self._range_pages, 1))
        changed = (ranges != self._ranges).any(1)
        for step in np.flatnonzero(changed | first):
            blocks = schedule(self.grid, pages[step], self.queries)
            self._range_pages[step] = blocks.range_tokens // self.grid.page_tokens
            self._ranges[step] = -(-pages[step] // self._range_pages[step])
            self._write_blocks(self.region[step], blocks)

    def _write_blocks(self, words: Ints, blocks: Blocks) -> None:
        """Write the blocks of one pass and mask off the unused ones."""
        parts, count = self.parts, blocks.count
        words[parts.requests][:count] = blocks.requests
        words[parts.query_tiles][:count] = blocks.query_tiles
        words[parts.kv_ranges][:count] = blocks.kv_ranges
        words[parts.outputs] = blocks.outputs
        words[parts.range_tokens] = blocks.range_tokens
        words[parts.merges] = blocks.merges
        valid = words[parts.valid].view(np.uint8)
        valid[:count], valid[count:] = 1, 0
