"""Attention in plain torch, on any device: the oracle that every other backend is held against.

Ragged batches are padded to their longest sequence and masked. Scores and softmax are written out,
in at least float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.attention import AttentionPlan, PassLayout
from runtime.kv_cache import PagedCache
from runtime.layers import Rotary, compute_dtype, rotate


class ReferenceAttention:
    """Attention over `cache`; `rotary` is used where a layout rotates on read."""

    def __init__(self, cache: PagedCache, rotary: Rotary) -> None:
        self.cache = cache
        self.rotary = rotary

    def plan(self, layout: PassLayout) -> AttentionPlan:
        """Index tensors of one pass, from host numbers alone."""
        return _plan(layout, self.cache, self.rotary)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferencePlan:
    """B sequences, at most Q new and K read tokens each, T new tokens in all."""

    cache: PagedCache
    rotary: Rotary
    rotate_on_read: bool
    write_slots: Tensor  # (T,)
    read_slots: Tensor  # (B, K), padded with the first
    query_rows: Tensor  # (B, Q) rows among T, padded with the last
    output_rows: Tensor  # (T,) rows among B * Q
    query_index: Tensor  # (B, Q) index of each query among the tokens read
    hidden: Tensor  # (B, 1, Q, K) True where a query may not look

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Append, then softmax(q k / sqrt(head_dim)) v over what each query may see."""
        keys, values = self.cache.slots(layer)
        keys[self.write_slots] = key
        values[self.write_slots] = value
        seen_keys, seen_values = self._read(keys), self._read(values)  # (B, K, KV, D)
        padded = query[self.query_rows].contiguous()  # (B, Q, H, D)
        if self.rotate_on_read:
            index = torch.arange(seen_keys.shape[1], device=query.device)
            seen_keys = rotate(seen_keys, *self.rotary.tables(index))
            padded = rotate(padded, *self.rotary.tables(self.query_index))
        mixed = grouped_attention(padded, seen_keys, seen_values, self.hidden)
        return mixed.flatten(0, 1)[self.output_rows]

    def _read(self, slots: Tensor) -> Tensor:
        """(slots, KV, D) -> (B, K, KV, D), several times faster on a CPU than by `slots[...]`."""
        found = slots.index_select(0, self.read_slots.flatten())
        return found.view(*self.read_slots.shape, *slots.shape[1:])


def grouped_attention(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor) -> Tensor:
    """query (B, Q, H, D) over key and value (B, K, KV, D), query head h reading KV head h // group.

    `hidden` (B, 1, Q, K) is True where a query may not look. Returns (B, Q, H, D).
    """
    batch, queries, heads, dim = query.shape
    kv_heads = key.shape[2]
    group = heads // kv_heads
    grouped = query.view(batch, queries, kv_heads, group, dim).permute(0, 2, 3, 1, 4)
    rows = grouped.reshape(batch, kv_heads, group * queries, dim)  # (B, KV, group * Q, D)
    scores = rows @ key.permute(0, 2, 3, 1) / math.sqrt(dim)
    scores = scores.to(compute_dtype(query.dtype)).view(batch, kv_heads, group, queries, -1)
    scores = scores.masked_fill(hidden.unsqueeze(1), -torch.inf)  # (B, KV, group, Q, K)
    weights = scores.softmax(-1).to(value.dtype).flatten(2, 3)
    mixed = weights @ value.permute(0, 2, 1, 3)
    mixed = mixed.view(batch, kv_heads, group, queries, dim)
    return mixed.permute(0, 3, 1, 2, 4).reshape(query.shape)


def _plan(layout: PassLayout, cache: PagedCache, rotary: Rotary) -> ReferencePlan:
    device, page = cache.storage.device, cache.page_tokens
    longest_kv, longest_query = max(layout.kv_tokens), max(layout.query_tokens)
    pages = -(-longest_kv // page)
    padded = [
        [*table[:pages], *[table[0]] * (pages - len(table[:pages]))] for table in layout.page_tables
    ]
    tables = torch.tensor(padded, device=device)  # (B, pages)
    kv = torch.tensor(layout.kv_tokens, device=device)[:, None]  # (B, 1)
    new = torch.tensor(layout.query_tokens, device=device)[:, None]
    step = torch.arange(longest_query, device=device)[None]  # (1, Q)
    index = torch.arange(longest_kv, device=device)
    slots = tables[:, index // page] * page + index % page  # (B, K)
    query_index = torch.minimum(kv - new + step, kv - 1)  # (B, Q)
    real = step < new
    first_row = new.cumsum(0) - new
    query_rows = first_row + torch.minimum(step, new - 1)
    hidden = index > query_index[..., None]  # (B, Q, K)
    if layout.window_tokens is not None:
        hidden |= index <= query_index[..., None] - layout.window_tokens
    return ReferencePlan(
        cache=cache,
        rotary=rotary,
        rotate_on_read=layout.rotate_on_read,
        write_slots=slots.gather(1, query_index)[real],
        read_slots=slots,
        query_rows=query_rows,
        output_rows=real.flatten().nonzero().squeeze(1),
        query_index=query_index,
        hidden=hidden[:, None],
    )
