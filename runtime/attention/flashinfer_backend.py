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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from runtime.attention.base import Counts, PassLayout
from runtime.attention.paged_cache import PagedCache
from runtime.attention.split_kv import BlockGrid, Ints
from runtime.attention.tables import AlikePasses, alike_runs
from runtime.errors import InputError

_ALIGN_BYTES = 256
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
        sums, maxima = self.partial_bytes(grid)
        asked = sums + maxima + _ALIGN_BYTES
        if self.workspace.numel() < asked:
            self.workspace = torch.empty(asked, dtype=torch.uint8, device=self.device)

    def partial_bytes(self, grid: BlockGrid) -> tuple[int, int]:
        """Bytes of the partial outputs of split ranges, then of their log-sum-exps."""
        rows = self.query_heads * grid.partial_rows
        sums = rows * self.head_dim * self.dtype.itemsize
        return -(-sums // _ALIGN_BYTES) * _ALIGN_BYTES, rows * 4


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
        self._alike = [self._passes(run) for run in alike_runs(layouts)]
        pages, first_tokens = batch * self.page_room, self._alike[0].grid.query_rows
        words = pages + sum(alike.words for alike in self._alike) + first_tokens
        self._tokens = slice(words - first_tokens, words)
        self._staged = torch.zeros(words, dtype=torch.int32, pin_memory=True)
        self._host: Ints = self._staged.numpy()
        self._device = torch.zeros(words, dtype=torch.int32, device=backend.device)
        self._pages = self._host[:pages].reshape(batch, self.page_room)
        self.plans: list[FlashInferPlan] = []
        start = pages
        for alike in self._alike:
            backend.room_for_partials(alike.grid)
            alike.write_constants(self._region(start, alike))
            for _ in range(alike.steps):
                device = self._device[start : start + alike.segments.words]
                self.plans.append(self._plan(alike, device, self._device[:pages]))
                start += alike.segments.words

    def fits(self, layouts: Sequence[PassLayout]) -> bool:
        """Whether these passes have as many sequences and pages at most."""
        first = layouts[0]
        longest = max(map(len, first.page_tables))
        return len(first.kv_tokens) <= self.batch and longest <= self.page_room

    @property
    def tokens(self) -> Tensor:
        """The tokens that the first pass feeds, on the device."""
        return self._device[self._tokens]

    def fill(self, layouts: Sequence[PassLayout], tokens: Sequence[int] = ()) -> None:
        """Copy lengths, pages, blocks and the first pass's tokens to the device, without waiting.

        The copy before must have been done: a round's one read of the device sees to that.
        """
        for row, table in enumerate(layouts[0].page_tables):
            self._pages[row, : len(table)] = table
        used = len(layouts[0].page_tables)
        self._pages[used:] = self.backend.cache.idle_page
        start, done = self._pages.size, 0
        for alike in self._alike:
            run = layouts[done : done + alike.steps]
            kv = self._padded([layout.kv_tokens for layout in run])
            kv[:, used:] = alike.queries[used:]
            first = None
            if run[0].first_positions is not None:
                first = self._padded([layout.first_positions for layout in run])
            alike.write(self._region(start, alike), kv, first, self._pages)
            start, done = start + alike.words, done + alike.steps
        self._host[self._tokens][: len(tokens)] = tokens
        self._device.copy_(self._staged, non_blocking=True)

    def _padded(self, rows: Sequence[Counts | None]) -> Ints:
        """Counts of one or more passes, zero for idle rows: (passes, batch)."""
        found = np.zeros((len(rows), self.batch), dtype=np.int32)
        for row, values in zip(found, rows, strict=True):
            if values is not None:
                row[: len(values)] = values
        return found

    def _passes(self, run: Sequence[PassLayout]) -> AlikePasses:
        """For passes of these query counts; KV is split as their longest, the last, asks."""
        backend, last = self.backend, run[-1]
        used = len(last.kv_tokens)
        queries, kv = self._padded([last.query_tokens, last.kv_tokens])
        queries[used:], kv[used:] = queries[0], kv[0]
        grid = BlockGrid.of(
            queries,
            kv,
            group=backend.group,
            kv_heads=backend.kv_heads,
            page_tokens=backend.cache.page_tokens,
            processors=backend.processors,
            head_dim=backend.head_dim,
            window_tokens=last.window_tokens,
        )
        return AlikePasses.of(grid, queries, steps=len(run), page_room=self.page_room)

    def _region(self, start: int, alike: AlikePasses) -> Ints:
        return self._host[start : start + alike.words].reshape(alike.steps, -1)

    def _plan(self, alike: AlikePasses, device: Tensor, pages: Tensor) -> FlashInferPlan:
        backend, grid, segments = self.backend, alike.grid, alike.segments
        base = segments.blocks.start
        offsets = [4 * (part.start - base) for part in segments.block_parts]
        requests, tiles, ranges, outputs, range_tokens, rows, merges, mask = offsets
        sums, _ = backend.partial_bytes(grid)
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
            causal=bool((alike.queries > 1).any()),
        )


@functools.cache
def _kernel(dtype: torch.dtype, head_dim: int, windowed: bool) -> Any:
    """The compiled kernel (nvcc builds it once, into FlashInfer's cache)."""
    from flashinfer.prefill import get_batch_prefill_module

    types = (dtype, dtype, dtype, torch.int32)
    return get_batch_prefill_module("fa2", *types, head_dim, head_dim, 0, windowed, False, False)
