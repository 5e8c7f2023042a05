"""Triton kernels that sum or maximise over ranks, through inboxes that peers write over NVLink.

A block stores its row in every peer's inbox and then reads the peers' rows from its own inbox as
they arrive: one kernel, one trip over the link, and no barrier. Empty slots hold a value that is
never sent, so the data serve as their own flag. Each row uses three slots in turn, with a counter
on the device: a block fills one slot, waits for it, and clears the previous one. A peer writes to
the cleared slot only after it has received this rank's next row, which is sent after this kernel.

Source: the low-latency ("Lamport") protocol of TensorRT-LLM's all-reduce.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.triton_ops import PDL, part_count, summed

TURNS = 3
EMPTY_BITS = -(2**15)  # -0.0 of a 16-bit float; a zero is sent as +0.0
_EMPTY: tl.constexpr = tl.constexpr(EMPTY_BITS)
_TURNS: tl.constexpr = tl.constexpr(TURNS)


@triton.jit
def _sum_add_norm_kernel(  # type: ignore[no-untyped-def]
    x, residual, weight, out, inbox, peers, turns, width, stride, room, epsilon,
    RANK: tl.constexpr, RANKS: tl.constexpr, PARTS: tl.constexpr, ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    kind: tl.constexpr = out.dtype.element_ty
    scale = tl.load(weight + column, mask=inside, other=0.0)
    tl.extra.cuda.gdc_wait()
    tl.extra.cuda.gdc_launch_dependents()
    turn = tl.load(turns + row)
    place, before = turn % _TURNS, (turn + _TURNS - 1) % _TURNS
    value = summed(x + row * width + column, inside, stride, PARTS, kind)
    bits = value.to(tl.int16, bitcast=True)
    bits = tl.where(bits == _EMPTY, 0, bits).to(tl.int16)
    for peer in tl.static_range(RANKS):
        if peer != RANK:
            theirs = tl.load(peers + peer).to(tl.pointer_type(tl.int16))
            theirs = tl.multiple_of(theirs, 16)
            tl.store(
                theirs + ((place * RANKS + RANK) * room + row) * width + column, bits, mask=inside
            )
    if ADD:
        held = tl.load(residual + row * width + column, mask=inside, other=0.0)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for source in tl.static_range(RANKS):
        if source == RANK:
            total += bits.to(kind, bitcast=True).to(tl.float32)
        else:
            start = inbox + ((place * RANKS + source) * room + row) * width + column
            word = tl.load(start, mask=inside, other=0, volatile=True)
            while tl.max((word == _EMPTY).to(tl.int32), axis=0) > 0:
                word = tl.load(start, mask=inside, other=0, volatile=True)
            total += word.to(kind, bitcast=True).to(tl.float32)
            last = inbox + ((before * RANKS + source) * room + row) * width + column
            tl.store(last, tl.full((BLOCK,), _EMPTY, tl.int16), mask=inside)
    tl.store(turns + row, turn + 1)
    value = total.to(kind)
    if ADD:
        value = (value.to(tl.float32) + held.to(tl.float32)).to(kind)
    tl.store(residual + row * width + column, value, mask=inside)
    wide = value.to(tl.float32)
    power = tl.sum(wide * wide, axis=0) / width
    normed = (wide * tl.rsqrt(power + epsilon)).to(kind)
    result = (normed.to(tl.float32) * scale.to(tl.float32)).to(kind)
    tl.store(out + row * width + column, result, mask=inside)


def sum_add_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float, inbox: Any
) -> tuple[Tensor, Tensor]:
    """Sum `x` ([parts,] rows, width) over ranks, add `residual`; return the norm and that total.

    `residual` changes in place. `inbox` is an `Inbox` with rows of `width` 16-bit floats.
    """
    rows, width = x.shape[-2:]
    out = torch.empty((rows, width), dtype=weight.dtype, device=x.device)
    total = torch.empty_like(out) if residual is None else residual
    block = triton.next_power_of_2(width)
    _sum_add_norm_kernel[(rows,)](
        x, total, weight, out, inbox.words, inbox.peers, inbox.turns, width, rows * width,
        inbox.rows, epsilon, RANK=inbox.rank, RANKS=inbox.ranks, PARTS=part_count(x),
        ADD=residual is not None, BLOCK=block, num_warps=max(1, min(16, block // 512)), **PDL,
    )  # fmt: skip
    return out, total


# ---- the most likely token --------------------------------------------------------------------

_INDEX: tl.constexpr = tl.constexpr(2**31 - 1)


@triton.jit
def _best_chunk_kernel(logits, keys, width, limit, first, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest key of one chunk of a row, ordered by value, then by the lowest column."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = chunk * CHUNK + tl.arange(0, CHUNK)
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()
    value = tl.load(logits + row * width + column, mask=column < limit, other=-float("inf"))
    bits = value.to(tl.float32).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ _INDEX, bits).to(tl.int64)
    key = (ordered << 32) | (_INDEX - first - column).to(tl.int64)
    tl.store(keys + row * tl.num_programs(1) + chunk, tl.max(key, axis=0))


@triton.jit
def _best_kernel(  # type: ignore[no-untyped-def]
    keys, out, inbox, peers, turns, chunks, room,
    RANK: tl.constexpr, RANKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest key over a row's chunks, then over ranks; no token has key 0."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.arange(0, BLOCK)
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()
    low: tl.constexpr = -(2**63)
    best = tl.max(tl.load(keys + row * chunks + chunk, mask=chunk < chunks, other=low), axis=0)
    if RANKS > 1:
        turn = tl.load(turns + row)
        place, before = turn % _TURNS, (turn + _TURNS - 1) % _TURNS
        sent = best
        for peer in tl.static_range(RANKS):
            if peer != RANK:
                theirs = tl.load(peers + peer).to(tl.pointer_type(tl.int64))
                tl.store(theirs + (place * RANKS + RANK) * room + row, sent)
        for source in tl.static_range(RANKS):
            if source != RANK:
                start = inbox + (place * RANKS + source) * room + row
                word = tl.load(start, volatile=True)
                while word == 0:
                    word = tl.load(start, volatile=True)
                best = tl.maximum(best, word)
                tl.store(inbox + (before * RANKS + source) * room + row, tl.zeros((), tl.int64))
        tl.debug_barrier()
        tl.store(turns + row, turn + 1)
    tl.store(out + row, _INDEX - (best & 0xFFFFFFFF))


def best_tokens(logits: Tensor, *, first: int, limit: int, inbox: Any | None) -> Tensor:
    """The column of each row's largest logit over all ranks (rows,); ties go to the lowest column.

    Parameters
    ----------
    logits : Tensor
        This rank's columns (rows, width).
    first : int
        Index in the vocabulary of this rank's first column.
    limit : int
        Number of this rank's columns that are tokens; the rest is padding.
    inbox : Inbox, optional
        An inbox with rows of one 64-bit word; not needed by a single rank.
    """
    rows, width = logits.shape
    chunk = 4096
    chunks = triton.cdiv(width, chunk)
    keys = torch.empty((rows, chunks), dtype=torch.int64, device=logits.device)
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _best_chunk_kernel[(rows, chunks)](
        logits, keys, width, limit, first, CHUNK=chunk, num_warps=8, **PDL
    )
    words, peers, turns, rank, ranks, room = keys, keys, keys, 0, 1, 1
    if inbox is not None:
        words, peers, turns = inbox.words, inbox.peers, inbox.turns
        rank, ranks, room = inbox.rank, inbox.ranks, inbox.rows
    _best_kernel[(rows,)](
        keys, out, words, peers, turns, chunks, room,
        RANK=rank, RANKS=ranks, BLOCK=triton.next_power_of_2(chunks), num_warps=1, **PDL,
    )  # fmt: skip
    return out
