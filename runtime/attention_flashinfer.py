"""Attention by FlashInfer on a GPU; the only module that imports it.

One kernel (`fa2` batch prefill over pages) serves prefill, decoding and verification. It is called
below its public wrapper, with block tables of our own (`split_schedule`): they are filled from host
numbers in microseconds, never wait for the device, and fit a captured graph whatever the lengths.
Page tables have a fixed stride; a sequence's length is told by its last page's length alone, which
the kernel adds to the pages before it (modulo 2**32, so that it may be negative).

Source: flashinfer 0.6.6, `csrc/batch_prefill.cu`, `attention/prefill.cuh`, `page.cuh`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.attention import Counts, PassLayout
from runtime.errors import InputError
from runtime.kv_cache import PagedCache
from runtime.split_schedule import BlockGrid, Ints, pages_read, schedule

_ALIGN = 4  # int32 words: FlashInfer's tables start at multiples of 16 bytes
_NON_CAUSAL, _CAUSAL, _NHD = 0, 1, 0
HEAD_DIMS = (64, 128, 256)


class FlashInferAttention:
    """Attention over one paged cache, for `query_heads` query heads of this rank."""

    def __init__(self, cache: PagedCache, query_heads: int) -> None:
        storage = cache.storage
        if storage.dtype not in (torch.bfloat16, torch.float16):
            raise InputError(f"FlashInfer runs in bfloat16 or float16, not {storage.dtype}")
        self.cache, self.query_heads = cache, query_heads
        self.kv_heads, self.head_dim = storage.shape[-2:]
        if self.head_dim not in HEAD_DIMS:
            raise InputError(
                f"FlashInfer has no kernel for heads of {self.head_dim}, only of "
                f"{', '.join(map(str, HEAD_DIMS))}; use --dtype float32, which runs plain torch"
            )
        self.device, self.dtype = storage.device, storage.dtype
        properties = torch.cuda.get_device_properties(self.device)
        self.processors = properties.multi_processor_count
        self.workspace = torch.empty(0, dtype=torch.uint8, device=self.device)

    @property
    def group(self) -> int:
        """Query heads a KV head."""
        return self.query_heads // self.kv_heads

    def plan(self, layout: PassLayout) -> FlashInferPlan:
        """Tables of one pass of its own."""
        tables = PlanTables(self, [layout], batch=len(layout.kv_tokens))
        tables.fill([layout])
        return tables.plans[0]

    def room_for_partials(self, grid: BlockGrid) -> None:
        """Grow the workspace that split ranges leave their partial results in."""
        if grid.split:
            per_row = (self.head_dim + 1) * 4
            asked = self.query_heads * grid.blocks * grid.tile_rows * per_row + 1024
            if self.workspace.numel() < asked:
                self.workspace = torch.empty(asked, dtype=torch.uint8, device=self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashInferPlan:
    """One planned pass: tensors of fixed address, whose contents `PlanTables.fill` renews."""

    backend: FlashInferAttention
    grid: BlockGrid
    kernel: Any
    info: list[int]
    workspace: Tensor  # held so that a captured graph never outlives it
    write_slots: Tensor  # (query_rows,)
    positions: Tensor  # (query_rows,)
    query_offsets: Tensor
    page_offsets: Tensor
    pages: Tensor
    last_page: Tensor
    blocks: Tensor  # the integer workspace, as bytes
    causal: bool

    @property
    def cache(self) -> PagedCache:
        """Where keys and values go, and are read from."""
        return self.backend.cache

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """softmax(q k / sqrt(head_dim)) v of each query over what it may see."""
        keys, values = self.backend.cache.storage[layer]
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        window = self.grid.window_tokens
        self.kernel.paged_run(
            self.workspace, self.blocks, self.info, query, keys, values, self.query_offsets,
            self.page_offsets, self.pages, self.last_page, out, None,
            _CAUSAL if self.causal else _NON_CAUSAL, _NHD, -1 if window is None else window - 1,
            True, None, None, None, None, None, None, 0.0, 1.0 / math.sqrt(self.backend.head_dim),
            None, None, None, 1.0, 1e4, 0, self.workspace.numel(),
        )  # fmt: skip
        return out


class PlanTables:
    """Device tables of one or more passes that read the same pages, renewed by one copy.

    Parameters
    ----------
    layouts : list of PassLayout
        One a pass; they fix query counts and windows, and by how even their lengths are whether KV
        may be split, but not the lengths.
    batch : int
        Sequences to make room for; those beyond a layout's own are idle rows.
    page_room : int, optional
        Pages a sequence to make room for; those of the layouts if left.
    """

    def __init__(
        self,
        backend: FlashInferAttention,
        layouts: Sequence[PassLayout],
        *,
        batch: int,
        page_room: int | None = None,
    ) -> None:
        self.backend, self.batch = backend, batch
        self.page_room = page_room or max(len(table) for table in layouts[0].page_tables)
        cache = backend.cache
        self._queries = [self._padded(layout.query_tokens, 1) for layout in layouts]
        grids = [
            BlockGrid.of(
                queries,
                self._padded(layout.kv_tokens, 1),
                group=backend.group,
                kv_heads=backend.kv_heads,
                page_tokens=cache.page_tokens,
                processors=backend.processors,
                window_tokens=layout.window_tokens,
            )
            for queries, layout in zip(self._queries, layouts, strict=True)
        ]
        for grid in grids:
            backend.room_for_partials(grid)
        self._segments = [_Segments.of(grid, self.page_room) for grid in grids]
        pages = batch * self.page_room
        first_tokens = grids[0].query_rows
        words = pages + sum(segments.words for segments in self._segments) + first_tokens
        self._tokens = slice(words - first_tokens, words)
        self._staged = torch.zeros(words, dtype=torch.int32, pin_memory=True)
        self._host: Ints = self._staged.numpy()
        self._device = torch.zeros(words, dtype=torch.int32, device=backend.device)
        self._pages = self._host[:pages].reshape(batch, self.page_room)
        self.plans: list[FlashInferPlan] = []
        start = pages
        for grid, segments, queries in zip(grids, self._segments, self._queries, strict=True):
            region = self._host[start : start + segments.words]
            segments.write_constants(region, queries)
            device = self._device[start : start + segments.words]
            self.plans.append(self._plan(grid, segments, device, self._device[:pages], queries))
            start += segments.words

    def fits(self, layouts: Sequence[PassLayout]) -> bool:
        """Whether these passes have as many sequences and pages at most."""
        first = layouts[0]
        return len(first.kv_tokens) <= self.batch and self.page_room >= max(
            len(table) for table in first.page_tables
        )

    @property
    def tokens(self) -> Tensor:
        """The tokens that the first pass feeds, on the device."""
        return self._device[self._tokens]

    def fill(self, layouts: Sequence[PassLayout], tokens: Sequence[int] = ()) -> None:
        """Copy lengths, pages, blocks and the first pass's tokens to the device, without waiting.

        The copy before must have been done: a round's one read of the device sees to that.
        """
        page = self.backend.cache.page_tokens
        for row, table in enumerate(layouts[0].page_tables):
            self._pages[row, : len(table)] = table
        used = len(layouts[0].page_tables)
        self._pages[used:] = self.backend.cache.idle_page
        start = self._pages.size
        for layout, plan, segments, queries in zip(
            layouts, self.plans, self._segments, self._queries, strict=True
        ):
            region = self._host[start : start + segments.words]
            kv = self._padded(layout.kv_tokens, 0)
            kv[used:] = queries[used:]
            segments.write_lengths(region, kv, queries, self._pages, page)
            segments.write_blocks(region, plan.grid, pages_read(plan.grid, kv), queries)
            region[segments.positions][: len(layout.positions)] = layout.positions
            start += segments.words
        self._host[self._tokens][: len(tokens)] = tokens
        self._device.copy_(self._staged, non_blocking=True)

    def _padded(self, values: Counts, idle: int) -> Ints:
        found = np.full(self.batch, idle, dtype=np.int32)
        found[: len(values)] = values
        if idle and len(values):
            found[len(values) :] = values[0]
        return found

    def _plan(
        self, grid: BlockGrid, segments: _Segments, device: Tensor, pages: Tensor, queries: Ints
    ) -> FlashInferPlan:
        backend = self.backend
        base = segments.blocks.start
        offsets = [4 * (part.start - base) for part in segments.block_parts]
        requests, tiles, ranges, outputs, range_tokens, rows, merges, mask = offsets
        sums = backend.query_heads * grid.blocks * grid.tile_rows * backend.head_dim * 4
        info = [grid.blocks, grid.query_rows, rows, grid.tile_rows, requests, tiles, ranges,
                merges, outputs, range_tokens, 0, sums, mask, 1, int(grid.split)]  # fmt: skip
        return FlashInferPlan(
            backend=backend,
            grid=grid,
            kernel=_kernel(backend.dtype, backend.head_dim, grid.window_tokens is not None),
            info=info,
            workspace=backend.workspace,
            write_slots=device[segments.slots],
            positions=device[segments.positions],
            query_offsets=device[segments.query_offsets],
            page_offsets=device[segments.page_offsets],
            pages=pages,
            last_page=device[segments.last_page],
            blocks=device[segments.blocks].view(torch.uint8),
            causal=bool((queries > 1).any()),
        )


@dataclass(frozen=True, slots=True)
class _Segments:
    """Where one pass's numbers lie in its region of 32-bit words."""

    slots: slice
    positions: slice
    query_offsets: slice
    page_offsets: slice
    last_page: slice
    block_parts: tuple[slice, ...]  # requests, tiles, ranges, outputs, range, rows, merges, mask
    grid: BlockGrid
    page_room: int
    words: int
    written: dict[str, Ints] = field(default_factory=dict)  # pages that the blocks were made for

    @classmethod
    def of(cls, grid: BlockGrid, page_room: int) -> _Segments:
        batch, rows, blocks = grid.batch, grid.query_rows, grid.blocks
        sizes = [rows, rows, batch + 1, batch + 1, batch,
                 blocks, blocks, blocks, batch + 1, 1, 1, rows + 1, -(-blocks // 4)]  # fmt: skip
        parts, start = [], 0
        for size in sizes:
            parts.append(slice(start, start + size))
            start += -(-size // _ALIGN) * _ALIGN
        slots, positions, query_offsets, page_offsets, last_page, *blocks_parts = parts
        return cls(
            slots,
            positions,
            query_offsets,
            page_offsets,
            last_page,
            block_parts=tuple(blocks_parts),
            grid=grid,
            page_room=page_room,
            words=start,
        )

    @property
    def blocks(self) -> slice:
        """All of FlashInfer's integer workspace."""
        return slice(self.block_parts[0].start, self.words)

    def write_constants(self, region: Ints, queries: Ints) -> None:
        """What lengths do not change."""
        region[self.query_offsets] = np.concatenate(([0], np.cumsum(queries)))
        region[self.page_offsets] = np.arange(self.grid.batch + 1) * self.page_room
        region[self.block_parts[5]] = self.grid.query_rows

    def write_lengths(
        self, region: Ints, kv: Ints, queries: Ints, pages: Ints, page_tokens: int
    ) -> None:
        """Lengths, as the last page's, and the slots that the pass's own tokens go to."""
        region[self.last_page] = kv - (self.page_room - 1) * page_tokens
        owner = np.repeat(np.arange(len(kv)), queries)
        first = np.cumsum(queries) - queries
        place = (kv - queries - first)[owner] + np.arange(len(owner))
        region[self.slots] = pages[owner, place // page_tokens] * page_tokens + place % page_tokens

    def write_blocks(self, region: Ints, grid: BlockGrid, pages: Ints, queries: Ints) -> None:
        """Who does what, unless it is what the region holds; blocks past the count are masked off.

        Without a split, lengths change nothing.
        """
        known = self.written.get("pages")
        if known is not None and (not grid.split or np.array_equal(known, pages)):
            return
        self.written["pages"] = pages
        blocks = schedule(grid, pages, queries)
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


@functools.cache
def _kernel(dtype: torch.dtype, head_dim: int, windowed: bool) -> Any:
    """The compiled kernel (nvcc builds it once, into FlashInfer's cache)."""
    from flashinfer.prefill import get_batch_prefill_module

    types = (dtype, dtype, dtype, torch.int32)
    return get_batch_prefill_module("fa2", *types, head_dim, head_dim, 0, windowed, False, False)
