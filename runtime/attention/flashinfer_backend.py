"""Attention on a GPU with FlashInfer; no other module imports it.

One kernel (`fa2` batch prefill over pages) serves prefill, decoding and verification. It is called
without its public wrapper, with the index tables of `attention.tables`: they are filled from host
values in microseconds, never wait for the device, and suit a captured graph at any lengths.

Source: flashinfer 0.6.6, `csrc/batch_prefill.cu`, `attention/prefill.cuh`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime.attention.base import PassLayout
from runtime.attention.paged_cache import PagedCache
from runtime.attention.split_kv import BlockGrid
from runtime.attention.tables import AttentionShape, DeviceTables, PassTables
from runtime.errors import InputError

_ALIGN_BYTES = 256
_NON_CAUSAL, _CAUSAL, _NHD = 0, 1, 0
HEAD_DIMS = (64, 128, 256)


class FlashInferAttention:
    """Attention over one paged cache, for `query_heads` query heads of this rank."""

    def __init__(self, cache: PagedCache, query_heads: int) -> None:
        storage = cache.storage
        if storage.dtype not in (torch.bfloat16, torch.float16):
            raise InputError(
                f"{storage.dtype} is not supported by FlashInfer; use bfloat16 or float16"
            )
        self.cache, self.query_heads = cache, query_heads
        kv_heads, self.head_dim = storage.shape[-2:]
        if self.head_dim not in HEAD_DIMS:
            raise InputError(
                f"head_dim={self.head_dim} is not supported by FlashInfer (only "
                f"{', '.join(map(str, HEAD_DIMS))}); use --dtype float32, which runs in plain torch"
            )
        self.device, self.dtype = storage.device, storage.dtype
        self.shape = AttentionShape(
            group=query_heads // kv_heads,
            kv_heads=kv_heads,
            head_dim=self.head_dim,
            page_tokens=cache.page_tokens,
            idle_page=cache.idle_page,
            num_sms=torch.cuda.get_device_properties(self.device).multi_processor_count,
        )
        self.workspace = torch.empty(0, dtype=torch.uint8, device=self.device)

    def plan(self, layout: PassLayout) -> FlashInferPlan:
        """Plan one pass with its own tables."""
        planned = self.plan_passes([layout], batch=len(layout.kv_tokens))
        planned.tables.fill([layout])
        return planned.plans[0]

    def plan_passes(
        self, layouts: Sequence[PassLayout], *, batch: int, page_room: int | None = None
    ) -> PlannedPasses:
        """Plan consecutive passes over the same pages; for the parameters, see `PassTables`.

        The tables are still empty: call `tables.fill` before each run.
        """
        tables = PassTables(
            layouts, self.shape, batch=batch, page_room=page_room, device=self.device
        )
        return PlannedPasses(tables, [self._plan(one) for one in tables.passes])

    def _plan(self, tables: DeviceTables) -> FlashInferPlan:
        output_bytes, sum_bytes = self._partial_bytes(tables.grid)
        needed = output_bytes + sum_bytes + _ALIGN_BYTES
        if self.workspace.numel() < needed:
            self.workspace = torch.empty(needed, dtype=torch.uint8, device=self.device)
        windowed = tables.grid.window_tokens is not None
        return FlashInferPlan(
            cache=self.cache,
            tables=tables,
            kernel=batch_prefill_kernel(self.dtype, self.head_dim, windowed),
            info=tables.plan_info(output_bytes),
            workspace=self.workspace,
        )

    def _partial_bytes(self, grid: BlockGrid) -> tuple[int, int]:
        """Bytes of the partial outputs of split ranges and of their log-sum-exps."""
        rows = self.query_heads * grid.partial_rows
        outputs = rows * self.head_dim * self.dtype.itemsize
        return -(-outputs // _ALIGN_BYTES) * _ALIGN_BYTES, rows * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashInferPlan:
    """One planned pass, which can be run repeatedly as its tables are refilled."""

    cache: PagedCache
    tables: DeviceTables
    kernel: Any
    info: list[int]
    workspace: Tensor  # referenced here so that it outlives a captured graph

    @property
    def positions(self) -> Tensor:
        """(query_rows,) rotary positions."""
        return self.tables.positions

    @property
    def write_slots(self) -> Tensor:
        """(query_rows,) cache slots for the pass's keys and values."""
        return self.tables.write_slots

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """softmax(q k / sqrt(head_dim)) v of each query over the tokens visible to it."""
        keys, values = self.cache.storage[layer]
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        tables, window = self.tables, self.tables.grid.window_tokens
        self.kernel.paged_run(
            self.workspace, tables.blocks, self.info, query, keys, values, tables.query_offsets,
            tables.page_offsets, tables.pages, tables.last_page, out, None,
            _CAUSAL if tables.causal else _NON_CAUSAL, _NHD, -1 if window is None else window - 1,
            True, None, None, None, None, None, None, 0.0, 1.0 / math.sqrt(query.shape[-1]),
            None, None, None, 1.0, 1e4, 0, self.workspace.numel(),
        )  # fmt: skip
        return out


@dataclass(frozen=True, slots=True)
class PlannedPasses:
    """Plans of consecutive passes and the tables that they share."""

    tables: PassTables
    plans: list[FlashInferPlan]


@functools.cache
def batch_prefill_kernel(dtype: torch.dtype, head_dim: int, windowed: bool) -> Any:
    """The compiled kernel; nvcc builds it once and FlashInfer caches it on disk."""
    from flashinfer.prefill import get_batch_prefill_module

    types = (dtype, dtype, dtype, torch.int32)
    return get_batch_prefill_module("fa2", *types, head_dim, head_dim, 0, windowed, False, False)
