"""Triton kernels of a decode pass: matrix products of few rows, add and norm, rotary, activation.

A product may leave partial sums over ranges of the depth, which the next kernel adds up as it reads
them, so that a matrix of few columns still keeps every multiprocessor loading. Values are rounded
where `TorchOps` rounds, so that results agree to the last bits of the storage type. Each kernel is
launched as soon as its predecessor's blocks run and waits for it on the device (programmatic
dependent launch), which hides the launch latency.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.rotary import Rotary

PDL: dict[str, Any] = {"launch_pdl": True}
_AHEAD_BYTES = 1024  # of a weight's row
_PREFETCH: tl.constexpr = tl.constexpr("cp.async.bulk.prefetch.L2.global [$1], 256; mov.u32 $0, 0;")


@triton.jit
def summed(source, mask, stride, PARTS: tl.constexpr, kind: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sum of the parts, rounded to the storage type."""
    total = tl.load(source, mask=mask, other=0.0)
    if PARTS > 1:
        for part in tl.static_range(1, PARTS):
            total += tl.load(source + part * stride, mask=mask, other=0.0)
    return total.to(kind)


# ---- product ---------------------------------------------------------------------------------


@triton.jit
def _linear_kernel(  # type: ignore[no-untyped-def]
    x, weight, out, rows, width, depth, range_depth,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    tile, part = tl.program_id(0), tl.program_id(1)
    n = tile * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    k = part * range_depth + tl.arange(0, BK)
    weights = weight + n.to(tl.int64)[:, None] * depth + k[None, :]
    inputs = x + m[None, :] * depth + k[:, None]
    inside_n, inside_m = (n < width)[:, None], (m < rows)[None, :]
    total = tl.zeros((BN, BM), dtype=tl.float32)
    tl.extra.cuda.gdc_launch_dependents()
    if AHEAD:
        begin = tl.minimum(n, width - 1).to(tl.int64)[:, None] * depth + part * range_depth
        begin = weight + begin + 128 * tl.arange(0, AHEAD)[None, :]
        tl.inline_asm_elementwise(
            _PREFETCH, "=r,l", [begin.to(tl.int64)], dtype=tl.int32, is_pure=False, pack=1
        )
    tl.extra.cuda.gdc_wait()
    for _ in range(0, range_depth, BK):
        w = tl.load(weights, mask=inside_n, other=0.0, eviction_policy="evict_first")
        v = tl.load(inputs, mask=inside_m, other=0.0)
        total = tl.dot(w, v, total)
        weights += BK
        inputs += BK
    place = out + part * rows * width + m[None, :] * width + n[:, None]
    tl.store(place, total.to(out.dtype.element_ty), mask=inside_n & inside_m)


def split_linear(
    x: Tensor,
    weight: Tensor,
    *,
    tile: tuple[int, int, int],
    parts: int,
    warps: int,
    stages: int,
    ahead: bool = False,
) -> Tensor:
    """Partial products (parts, rows, width) of x (rows, depth) and weight (width, depth).

    `tile` is (rows, width, depth) of one block. The result has the type of `x` if `parts` is 1,
    otherwise it is float32 and the caller adds up the parts. With `ahead`, each block loads the
    first weights of its range into L2 while it waits for the kernel before it.
    """
    rows, depth = x.shape
    width = len(weight)
    bm, bn, bk = tile
    kind = x.dtype if parts == 1 else torch.float32
    out = torch.empty((parts, rows, width), dtype=kind, device=x.device)
    ahead = ahead and 2 * (depth // parts) >= _AHEAD_BYTES
    _linear_kernel[(triton.cdiv(width, bn), parts)](
        x, weight, out, rows, width, depth, depth // parts,
        BM=bm, BN=bn, BK=bk, AHEAD=_AHEAD_BYTES // 256 if ahead else 0,
        num_warps=warps, num_stages=stages, **PDL,
    )  # fmt: skip
    return out


# ---- embedding ---------------------------------------------------------------------------------


@triton.jit
def _embed_kernel(tokens, table, out, first, count, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()
    token = tl.load(tokens + row).to(tl.int64) - first
    inside = (column < width) & (token >= 0) & (token < count)
    value = tl.load(table + token * width + column, mask=inside, other=0.0)
    tl.store(out + row * width + column, value, mask=column < width)


def embed(tokens: Tensor, table: Tensor, first: int) -> Tensor:
    """Rows of tokens (T,) in `table` (tokens from `first`, width); zeros for other tokens."""
    count, width = table.shape
    out = torch.empty((len(tokens), width), dtype=table.dtype, device=table.device)
    block = 1024
    _embed_kernel[(len(tokens), triton.cdiv(width, block))](
        tokens, table, out, first, count, width, BLOCK=block, num_warps=4, **PDL
    )
    return out


# ---- operations on products -------------------------------------------------------------------


@triton.jit
def _add_norm_kernel(  # type: ignore[no-untyped-def]
    x, residual, weight, out, width, stride, epsilon,
    PARTS: tl.constexpr, ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    scale = tl.load(weight + column, mask=inside, other=0.0)
    kind: tl.constexpr = out.dtype.element_ty
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()
    value = summed(x + row * width + column, inside, stride, PARTS, kind)
    if ADD:
        held = tl.load(residual + row * width + column, mask=inside, other=0.0)
        value = (value.to(tl.float32) + held.to(tl.float32)).to(kind)
        tl.store(residual + row * width + column, value, mask=inside)
    wide = value.to(tl.float32)
    power = tl.sum(wide * wide, axis=0) / width
    normed = (wide * tl.rsqrt(power + epsilon)).to(kind)
    result = (normed.to(tl.float32) * scale.to(tl.float32)).to(kind)
    tl.store(out + row * width + column, result, mask=inside)


def add_norm(x: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float) -> Tensor:
    """The norm of residual + x ([parts,] rows, width); `residual`, if any, becomes the sum."""
    rows, width = x.shape[-2:]
    out = torch.empty((rows, width), dtype=weight.dtype, device=x.device)
    block = triton.next_power_of_2(width)
    _add_norm_kernel[(rows,)](
        x, out if residual is None else residual, weight, out, width, rows * width, epsilon,
        PARTS=part_count(x), ADD=residual is not None, BLOCK=block,
        num_warps=max(1, min(16, block // 512)), **PDL,
    )  # fmt: skip
    return out


@triton.jit
def _silu_mul_kernel(  # type: ignore[no-untyped-def]
    x, out, width, stride, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    kind: tl.constexpr = out.dtype.element_ty
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()
    gate = summed(x + row * 2 * width + column, inside, stride, PARTS, kind)
    up = summed(x + row * 2 * width + width + column, inside, stride, PARTS, kind)
    wide = gate.to(tl.float32)
    active = (wide * tl.sigmoid(wide)).to(kind)
    result = (active.to(tl.float32) * up.to(tl.float32)).to(kind)
    tl.store(out + row * width + column, result, mask=inside)


def silu_mul(gate_up: Tensor, dtype: torch.dtype) -> Tensor:
    """silu(gate) * up: ([parts,] rows, 2 * width) -> (rows, width)."""
    rows, double = gate_up.shape[-2:]
    width = double // 2
    out = torch.empty((rows, width), dtype=dtype, device=gate_up.device)
    block = 1024
    _silu_mul_kernel[(rows, triton.cdiv(width, block))](
        gate_up, out, width, rows * double, PARTS=part_count(gate_up), BLOCK=block, num_warps=4,
        **PDL,
    )  # fmt: skip
    return out


@triton.jit
def _half_norm(first, second, weight, column, epsilon, HALF: tl.constexpr, kind: tl.constexpr):  # type: ignore[no-untyped-def]
    """Norm of heads held as two halves (heads, HALF), by `weight` (heads, 2 * HALF)."""
    a, b = first.to(tl.float32), second.to(tl.float32)
    power = (tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / (2 * HALF)
    scale = tl.rsqrt(power + epsilon)[:, None]
    wa = tl.load(weight + column).to(tl.float32)
    wb = tl.load(weight + HALF + column).to(tl.float32)
    a = ((a * scale).to(kind).to(tl.float32) * wa).to(kind)
    b = ((b * scale).to(kind).to(tl.float32) * wb).to(kind)
    return a, b


@triton.jit
def _place_kernel(  # type: ignore[no-untyped-def]
    qkv, positions, slots, frequencies, query_norm, key_norm, queries, keys, values, stride,
    epsilon, factor, PARTS: tl.constexpr, QUERY_HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    HALF: tl.constexpr, NORM: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]  # (HEADS, 1)
    column = tl.arange(0, HALF)[None, :]
    dim: tl.constexpr = 2 * HALF
    kind: tl.constexpr = queries.dtype.element_ty
    is_query = head < QUERY_HEADS
    is_key = (head >= QUERY_HEADS) & (head < QUERY_HEADS + KV_HEADS)
    is_value = (head >= QUERY_HEADS + KV_HEADS) & (head < QUERY_HEADS + 2 * KV_HEADS)
    inside = (head < QUERY_HEADS + 2 * KV_HEADS) & (column < HALF)
    angle = tl.load(positions + token).to(tl.float32) * tl.load(frequencies + column)
    turned = is_query | is_key
    cos = tl.where(turned, tl.cos(angle) * factor, 1.0)
    sin = tl.where(turned, tl.sin(angle) * factor, 0.0)
    slot = tl.load(slots + token).to(tl.int64)
    source = qkv + token * (QUERY_HEADS + 2 * KV_HEADS) * dim + head * dim + column
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()
    first = summed(source, inside, stride, PARTS, kind)
    second = summed(source + HALF, inside, stride, PARTS, kind)
    if NORM:
        qa, qb = _half_norm(first, second, query_norm, column, epsilon, HALF, kind)
        ka, kb = _half_norm(first, second, key_norm, column, epsilon, HALF, kind)
        first = tl.where(is_query, qa, tl.where(is_key, ka, first))
        second = tl.where(is_query, qb, tl.where(is_key, kb, second))
    a, b = first.to(tl.float32), second.to(tl.float32)
    first, second = (a * cos - b * sin).to(kind), (b * cos + a * sin).to(kind)
    place = queries + (token * QUERY_HEADS + head) * dim + column
    tl.store(place, first, mask=is_query & inside)
    tl.store(place + HALF, second, mask=is_query & inside)
    place = keys + (slot * KV_HEADS + head - QUERY_HEADS) * dim + column
    tl.store(place, first, mask=is_key & inside)
    tl.store(place + HALF, second, mask=is_key & inside)
    place = values + (slot * KV_HEADS + head - QUERY_HEADS - KV_HEADS) * dim + column
    tl.store(place, first, mask=is_value & inside)
    tl.store(place + HALF, second, mask=is_value & inside)


def place(
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
    """Norm and rotate queries and keys; write keys and values to their slots of the cache.

    Parameters
    ----------
    qkv : Tensor
        ([parts,] tokens, (query heads + 2 KV heads) * head_dim), contiguous.
    norms : (Tensor, Tensor), optional
        Weights of QK-norm, each (head_dim,).
    positions, slots : Tensor
        (tokens,) integers.
    cache : (Tensor, Tensor)
        Keys and values of one layer, each (slots, KV heads, head_dim), contiguous.

    Returns
    -------
    Tensor
        The rotated queries (tokens, query heads, head_dim).
    """
    keys, values = cache
    tokens, width = qkv.shape[-2:]
    kv_heads, dim = keys.shape[1:]
    queries = torch.empty((tokens, query_heads, dim), dtype=keys.dtype, device=qkv.device)
    frequencies = rotary.frequencies
    first, second = norms or (frequencies, frequencies)
    heads = 8 if tokens < 256 else 16  # of one block
    _place_kernel[(tokens, triton.cdiv(query_heads + 2 * kv_heads, heads))](
        qkv, positions, slots, frequencies, first, second, queries, keys, values, tokens * width,
        epsilon, rotary.attention_factor, PARTS=part_count(qkv), QUERY_HEADS=query_heads,
        KV_HEADS=kv_heads, HALF=dim // 2, NORM=norms is not None, HEADS=heads, num_warps=2, **PDL,
    )  # fmt: skip
    return queries


def part_count(x: Tensor) -> int:
    """Number of parts of a product."""
    return x.shape[0] if x.dim() == 3 else 1
