"""Attention in plain torch, for any device: the reference for other backends.

Ragged batches are padded to the longest sequence and masked. Softmax is computed in at least
float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.attention.base import AttentionPlan, PassLayout
from runtime.attention.paged_cache import PagedCache
from runtime.kernels.rotary import compute_dtype


class ReferenceAttention:
    """Attention over `cache`."""

    def __init__(self, cache: PagedCache) -> None:
        self.cache = cache

    def plan(self, layout: PassLayout) -> AttentionPlan:
        """Build the index tensors of one pass."""
        return _plan(layout, self.cache)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencePlan:
    """B sequences with at most Q new and K cached tokens each, and T new tokens in total."""

    cache: PagedCache
    positions: Tensor  # (T,)
    write_slots: Tensor  # (T,)
    read_slots: Tensor  # (B, K), padded with the first
    query_rows: Tensor  # (B, Q) indices into T, padded with the last
    output_rows: Tensor  # (T,) indices into B * Q
    masked: Tensor  # (B, 1, Q, K) True for keys that a query must not read

    def attend(self, layer: int, query: Tensor) -> Tensor:
        """softmax(q k / sqrt(head_dim)) v of each query over the tokens visible to it."""
        keys, values = (self._read(slots) for slots in self.cache.slots(layer))  # (B, K, KV, D)
        padded = query[self.query_rows].contiguous()  # (B, Q, H, D)
        output = grouped_attention(padded, keys, values, self.masked)
        return output.flatten(0, 1)[self.output_rows]

    def _read(self, slots: Tensor) -> Tensor:
        """(slots, KV, D) -> (B, K, KV, D), several times faster on a CPU than `slots[...]`."""
        rows = slots.index_select(0, self.read_slots.flatten())
        return rows.view(*self.read_slots.shape, *slots.shape[1:])


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, masked: Tensor) -> Tensor:
    """Attention of query (B, Q, H, D) over key and value (B, K, KV, D); returns (B, Q, H, D).

    Query head h reads KV head h // group. `masked` is (B, 1, Q, K).
    """
    batch, queries, heads, dim = query.shape
    kv_heads = key.shape[2]
    group = heads // kv_heads
    grouped = query.view(batch, queries, kv_heads, group, dim).permute(0, 2, 3, 1, 4)
    rows = grouped.reshape(batch, kv_heads, group * queries, dim)  # (B, KV, group * Q, D)
    scores = rows @ key.permute(0, 2, 3, 1) / math.sqrt(dim)
    scores = scores.to(compute_dtype(query.dtype)).view(batch, kv_heads, group, queries, -1)
    scores = scores.masked_fill(masked.unsqueeze(1), -torch.inf)  # (B, KV, group, Q, K)
    weights = scores.softmax(-1).to(value.dtype).flatten(2, 3)
    output = weights @ value.permute(0, 2, 1, 3)
    output = output.view(batch, kv_heads, group, queries, dim)
    return output.permute(0, 3, 1, 2, 4).reshape(query.shape)


def _plan(layout: PassLayout, cache: PagedCache) -> ReferencePlan:
    page = cache.page_tokens
    kv = np.asarray(layout.kv_tokens)[:, None]  # (B, 1)
    new = np.asarray(layout.query_tokens)[:, None]
    step = np.arange(int(new.max()))[None]  # (1, Q)
    index = np.arange(int(kv.max()))
    tables = np.zeros((len(kv), -(-len(index) // page)), dtype=np.int64)
    for row, table in enumerate(layout.page_tables):
        pages = table[: tables.shape[1]]
        tables[row, : len(pages)], tables[row, len(pages) :] = pages, table[0]
    slots = tables[:, index // page] * page + index % page  # (B, K)
    query_index = np.minimum(kv - new + step, kv - 1)  # (B, Q)
    real = step < new
    query_rows = np.cumsum(new)[:, None] - new + np.minimum(step, new - 1)
    masked = index > query_index[..., None]  # (B, Q, K)
    if layout.window_tokens is not None:
        masked |= index <= query_index[..., None] - layout.window_tokens

    def on_device(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(cache.storage.device)

    return ReferencePlan(
        cache=cache,
        positions=on_device(layout.positions),
        write_slots=on_device(np.take_along_axis(slots, query_index, axis=1)[real]),
        read_slots=on_device(slots),
        query_rows=on_device(query_rows),
        output_rows=on_device(np.flatnonzero(real)),
        masked=on_device(masked[:, None]),
    )
