"""The operations between attention calls, in plain torch and as fused Triton kernels.

A matrix product may return partial sums (parts, rows, width), which the next operation adds up.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.kernels.rotary import Rotary, rms_norm, rotate
from runtime.parallel.groups import ALONE, Group
from runtime.parallel.inbox import Inbox

_SPLIT_COLUMNS, _SPLIT_DEPTH = 64, 128  # columns and depth of the weight tile of one block
_FEW_ROWS, _MOST_ROWS = 64, 128
_FEW_BLOCKS, _BLOCKS_WANTED = 64, 128
_SHALLOW, _SHALLOW_BLOCKS = 4096, 96  # depth, and blocks wanted of two or more parts
_SHARED_BYTES = 227 * 1024  # shared memory of one multiprocessor
SUM_BYTES = 8 * 2**20  # largest exchange between two ranks; every rank sends all to every peer
_BEST_ROWS = 4096  # most rows whose best token is exchanged through inboxes


class TorchOps:
    """Plain torch, for any device and type; the reference for the fused operations."""

    def __init__(self, group: Group = ALONE) -> None:
        self.group = group

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        """Embeddings of tokens (T,) in this rank's rows of the table (rows, width).

        Other ranks' tokens give zeros, so that the sum over ranks is the whole lookup.
        """
        if self.group.size == 1:
            return F.embedding(tokens, table)
        local = tokens - self.group.rank * len(table)
        is_local = (local >= 0) & (local < len(table))
        rows = F.embedding(local.where(is_local, torch.zeros_like(local)), table)
        return rows * is_local.unsqueeze(-1)

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (rows, depth) times weight (width, depth) transposed: (rows, width), or its parts."""
        return F.linear(x, weight, bias)

    def add_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """The norm of residual + x, and that sum; fused operations may change `residual`."""
        total = x if residual is None else residual + x
        return rms_norm(total, weight, epsilon), total

    def place(
        self,
        qkv: Tensor,
        query_heads: int,
        norms: tuple[Tensor, Tensor] | None,
        epsilon: float,
        rotary: Rotary,
        *,
        positions: Tensor,
        slots: Tensor,
        cache: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Norm and rotate; write keys and values to their slots; return the queries.

        qkv (rows, (query heads + 2 KV heads) * head_dim) -> (rows, query heads, head_dim).
        """
        keys, values = cache
        kv_heads, dim = keys.shape[1:]
        heads = qkv.view(len(qkv), -1, dim)
        query, key, value = heads.split([query_heads, kv_heads, kv_heads], dim=1)
        if norms is not None:
            query, key = rms_norm(query, norms[0], epsilon), rms_norm(key, norms[1], epsilon)
        angles = rotary.tables(positions, rotary.attention_factor)
        keys[slots] = rotate(key, *angles)
        values[slots] = value
        return rotate(query, *angles)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up: (rows, 2 * width) -> (rows, width)."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def partial(self, x: Tensor, weight: Tensor) -> Tensor:
        """This rank's part of a product that `sum_add_norm` sums over the ranks.

        It is written to the group's shared buffer, if there is one, which saves a copy.
        """
        buffer = self.group.partial_buffer((len(x), len(weight)), x.dtype)
        return F.linear(x, weight) if buffer is None else torch.mm(x, weight.t(), out=buffer)

    def sum_add_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """`add_norm` of the sum of every rank's `x`."""
        return self.add_norm(self.group.all_reduce(x), residual, weight, epsilon)

    def best(self, part: Tensor, vocab: int) -> Tensor:
        """The most likely token of each row (rows,), over all ranks' columns of the logits."""
        return self.group.gather_columns(part)[..., :vocab].argmax(-1)


class FusedOps(TorchOps):
    """Triton kernels for 16-bit types; products of few rows are split where that is faster."""

    def __init__(self, dtype: torch.dtype, group: Group = ALONE, hidden: int = 0) -> None:
        from runtime.kernels import exchange, triton_ops

        super().__init__(group)
        self.kernels, self.exchange, self.dtype = triton_ops, exchange, dtype
        self.processors = torch.cuda.get_device_properties().multi_processor_count
        self.sums = self.keys = None
        if group.workspace is not None and hidden % 8 == 0:  # a row is a multiple of 16 bytes
            rows = SUM_BYTES // (group.size - 1) ** 2 // (2 * hidden)
            bits = exchange.EMPTY_BITS
            self.sums = Inbox(group, rows=rows, width=hidden, dtype=torch.int16, empty=bits)
            self.keys = Inbox(group, rows=_BEST_ROWS, width=1, dtype=torch.int64, empty=0)

    def embed(self, tokens: Tensor, table: Tensor) -> Tensor:
        """One kernel."""
        if self.group.size == 1:
            return super().embed(tokens, table)
        return self.kernels.embed(tokens, table, self.group.rank * len(table))

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Split into parts for few rows, otherwise cuBLAS.

        With several ranks, weights are loaded into L2 during the sum over ranks that precedes: a
        draft step of Llama-3.1-8B on one of two ranks is 1.2 % shorter (`pass-kernels-h200.jsonl`).
        """
        return self._linear(x, weight, bias, ahead=self.group.size > 1)

    def _linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, ahead: bool = False
    ) -> Tensor:
        parts = None if bias is not None else split_parts(len(x), *weight.shape)
        if parts is None:
            return super().linear(x, weight, bias)
        rows = max(16, 1 << (len(x) - 1).bit_length())
        blocks = parts * -(-len(weight) // _SPLIT_COLUMNS)
        return self.kernels.split_linear(
            x,
            weight,
            tile=(rows, _SPLIT_COLUMNS, _SPLIT_DEPTH),
            parts=parts,
            warps=4,
            stages=pipeline_stages(rows, blocks, self.processors),
            ahead=ahead,
        )

    def add_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """One kernel; `residual` changes in place."""
        normed = self.kernels.add_norm(x, residual, weight, epsilon)
        return normed, x if residual is None else residual

    def place(self, *arguments: Any, **keywords: Any) -> Tensor:
        """One kernel."""
        return self.kernels.place(*arguments, **keywords)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """One kernel."""
        return self.kernels.silu_mul(gate_up, self.dtype)

    def partial(self, x: Tensor, weight: Tensor) -> Tensor:
        """Split like `linear`, except where the group's all-reduce does the sum."""
        if self.group.size == 1 or self._through_inbox(len(x), self.sums):
            return self._linear(x, weight)
        return super().partial(x, weight)

    def sum_add_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]:
        """One kernel for up to `SUM_BYTES`; `residual` changes in place."""
        if self._through_inbox(x.shape[-2], self.sums):
            return self.exchange.sum_add_norm(x, residual, weight, epsilon, self.sums)
        if self.group.size > 1:
            x = self.group.all_reduce(x)
        return self.add_norm(x, residual, weight, epsilon)

    def best(self, part: Tensor, vocab: int) -> Tensor:
        """Two kernels; ranks exchange one key per row."""
        group, (rows, width) = self.group, part.shape
        if group.size > 1 and not self._through_inbox(rows, self.keys):
            return super().best(part, vocab)
        first = group.rank * width
        return self.exchange.best_tokens(
            part, first=first, limit=min(width, vocab - first), inbox=self.keys
        )

    def _through_inbox(self, rows: int, inbox: Inbox | None) -> bool:
        return inbox is not None and rows <= inbox.rows


def split_parts(rows: int, width: int, depth: int) -> int | None:
    """How many parts `split_linear` splits a product's depth into; None where cuBLAS is as fast.

    From 2,000 timings of two models' products on an H200 with cold weights
    (`benchmarks/tuning/tune_linear.py`): up to 64 rows, blocks of 64 columns are as fast as cuBLAS
    for many columns and up to 37 % faster for few columns; from 65 to 128 rows they are faster
    only for few columns. Two parts of a shallow product are added up faster than four: QKV of
    Llama-3.1-8B on one of two ranks and its rotation take 8.9 us instead of 9.9 for 32 rows, and
    12.1 instead of 15.9 for 128 (`pass-kernels-h200.jsonl`).
    """
    blocks = -(-width // _SPLIT_COLUMNS)
    few = blocks <= _FEW_BLOCKS
    if rows > _MOST_ROWS or (rows > _FEW_ROWS and not few):
        return None
    parts, wanted = 1, _BLOCKS_WANTED
    while blocks * parts < wanted and depth % (2 * parts * _SPLIT_DEPTH) == 0:
        parts *= 2
        wanted = _SHALLOW_BLOCKS if depth <= _SHALLOW else wanted
    whole = depth % (parts * _SPLIT_DEPTH) == 0 and depth // parts >= 2 * _SPLIT_DEPTH
    return parts if whole else None


def pipeline_stages(rows: int, blocks: int, processors: int) -> int:
    """The deepest load pipeline, of at most 5 stages, with which all blocks run concurrently.

    At most 6 stages for up to 16 rows. Compared with at most 4 stages, a draft step of Llama-3.1-8B
    on an H200 is shorter by 1.7 % for 32 rows on one GPU and 2.5 % on two, and by 1.4 % and 0.4 %
    for 8 rows (`calibration/measured/step-table-h200-tp2.jsonl`, tags none, st5 and st6).
    """
    stage_bytes = 2 * _SPLIT_DEPTH * (_SPLIT_COLUMNS + rows)
    for stages in range(6 if rows <= 16 else 5, 1, -1):
        if blocks <= processors * (_SHARED_BYTES // (stages * stage_bytes)):
            return stages
    return 2 if rows <= 32 else 3


def ops_for(
    dtype: torch.dtype, device: torch.device, group: Group = ALONE, hidden: int = 0
) -> TorchOps:
    """Fused operations on a GPU in 16 bits, otherwise plain torch.

    Every rank of `group` must call this. `hidden` is the width of the sums over ranks.
    """
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        return FusedOps(dtype, group, hidden)
    return TorchOps(group)
