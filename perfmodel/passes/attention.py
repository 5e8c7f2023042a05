"""Attention of a pass, by kind of layer, with the curves of the rank's GPU and KV type."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from perfmodel._typing import Floats
from perfmodel.kernels import saturating_share, tail_ratio
from perfmodel.passes.attention_kinds import (
    latent_attention,
    latent_prefill,
    linear_attention,
    linear_prefill,
)
from perfmodel.passes.parts import Part
from perfmodel.passes.rank import Rank
from perfmodel.specs.dtypes import UNQUANTISED, dtype_bytes
from perfmodel.specs.labels import Bound, Origin

WINDOW_TILE = 128  # tokens
_BF16_BYTES = 2.0
# vLLM's Triton kernel has one block per sequence and KV head if these are more than so many, or if
# sequences have several new tokens (`unified_attention` in vllm/v1/attention/ops of 0.26).
UNSPLIT_BLOCKS = 128
# It pads the query heads of a KV head to a tile of 16 rows, so one takes as long as two, whereas
# FlashAttention 2 does not split sequences for one.
LEAST_GROUP = 2


def _kv_factor(rank: Rank, units: Floats, kv: Floats) -> tuple[Floats | float, Origin]:
    """The time with the rank's KV type over that of its bytes alone, and its origin."""
    if rank.kv_dtype in UNQUANTISED:
        return 1.0, rank.origin
    table = rank.curves.kv_fp8
    if table is None or not rank.has_kv_curve:
        return 1.0, Origin.EXTRAPOLATED
    return table.factor(units, kv), rank.origin


def attention_parts(
    rank: Rank, batch: Floats, kv: Floats, query: Floats, *, whole_cache: bool
) -> list[Part]:
    """Attention by kind of layer; layers with a window read at most the tokens in it."""
    spec = rank.spec
    if spec.latent is not None:
        return [latent_attention(rank, spec.latent, batch, kv, query)]
    parts = []
    for layers, window in spec.attention_layers:
        read = kv if window is None else np.minimum(kv, window)
        name = "attention" if spec.local is None or window is None else "windowed_attention"
        part = _attention(rank, batch, read, query, layers=layers, whole_cache=whole_cache)
        parts.append(replace(part, name=name))
    if spec.linear is not None:
        parts.append(linear_attention(rank, spec.linear, batch, query))
    return parts


def _attention(
    rank: Rank, batch: Floats, kv: Floats, query: Floats, *, layers: int, whole_cache: bool
) -> Part:
    spec, gpu, curve = rank.spec, rank.machine.gpu, rank.curves.attention
    heads, kv_heads = spec.query_heads_per_rank(rank.tp), spec.kv_heads_per_rank(rank.tp)
    element = dtype_bytes(rank.kv_dtype)
    uses_other = rank.engine.uses_other_attention(spec, gpu)
    timed_heads = max(heads, LEAST_GROUP * kv_heads) if uses_other else heads
    shape = {"query_heads": timed_heads, "kv_heads": kv_heads, "head_dim": spec.head_dim}
    timed = partial(
        curve.seconds,
        batch=batch,
        **shape,
        peak_flops=gpu.peak_flops,
        hbm_bandwidth=gpu.hbm_bandwidth,
        kv_bytes_per_element=element,
    )
    new = query if curve.counts_new_tokens else np.zeros(())
    seconds = timed(kv_tokens=kv + new, query_tokens=query)
    if rank.origin == Origin.EXTRAPOLATED and np.any(query > 1):
        # Another GPU's tables may have taller tiles faster; the same cache is read all the same.
        plain = timed(kv_tokens=kv + np.minimum(new, 1.0), query_tokens=np.ones(()))
        seconds = np.maximum(seconds, plain)
    ratio, origin = _kv_factor(rank, batch * kv_heads, kv)
    seconds = seconds * ratio
    if element < _BF16_BYTES and curve.tensor_core_error and np.any(query > 1):
        # The ratio is that of decoding; operations at an assumed rate take no longer than in bf16.
        wide = timed(kv_tokens=kv + new, query_tokens=query, kv_bytes_per_element=_BF16_BYTES)
        decoding = timed(kv_tokens=kv + np.minimum(new, 1.0), query_tokens=np.ones(())) * ratio
        least = np.minimum(seconds, np.maximum(wide, decoding))
        seconds = np.where(query > 1, least, seconds)
    engine = rank.engine
    factor: Floats | float = (
        engine.attention_factor if whole_cache else engine.draft_attention_factor
    )
    least_s: Floats | float = 0.0
    if uses_other:
        factor = factor * engine.prefix_attention_factor
        unsplit = (query > 1) | (batch * kv_heads > UNSPLIT_BLOCKS)
        least_s = np.where(unsplit, kv * engine.prefix_attention_token_s, 0.0)
    if engine.attention_tail_share:
        factor = factor * tail_ratio(
            batch * kv_heads,
            kv,
            sm_count=gpu.sm_count,
            measured_sm_count=curve.sm_count,
            saturating_share=saturating_share(engine.attention_tail_share, spec.head_dim),
            is_measured=rank.curves.name == gpu.name,
        )
    if engine.verify_attention_factor != 1.0:
        factor = factor * np.where(query > 1, engine.verify_attention_factor, 1.0)
    if engine.sustained_attention_factor != 1.0:
        tall = curve.has_tall_tiles(query * (heads / kv_heads))
        factor = factor * np.where(tall, engine.sustained_attention_factor, 1.0)
    flops = 4.0 * batch * query * kv * heads * spec.head_dim
    share = layers / spec.cached_layers
    kv_bytes = batch * kv * spec.kv_bytes_per_token_per_rank(rank.tp, rank.kv_dtype) * share
    # No factor of an engine makes attention read faster than the memory delivers.
    memory_s = kv_bytes / gpu.hbm_bandwidth
    return Part(
        "attention",
        np.maximum(layers * np.maximum(factor * seconds, least_s), memory_s),
        layers * flops / gpu.peak_flops,
        memory_s,
        Bound.KV,
        origin,
        partial(curve.in_range, batch=batch, kv_tokens=kv, query_tokens=query, **shape),
    )


def prefill_attention_parts(
    rank: Rank, batch: Floats, prompt: Floats, cached: Floats
) -> list[Part]:
    """Attention of prompts by kind of layer; layers with a window attend to the tokens in it."""
    spec = rank.spec
    if spec.latent is not None:
        return [latent_prefill(rank, spec.latent, batch, prompt, cached)]
    parts = []
    for layers, window in spec.attention_layers:
        name = "attention" if spec.local is None or window is None else "windowed_attention"
        pieces, piece, before = _pieces(prompt, cached, window)
        part = _prefill_attention(rank, batch * pieces, piece, before, layers=layers)
        parts.append(replace(part, name=name))
    if spec.linear is not None:
        parts.append(linear_prefill(rank, spec.linear, batch, prompt))
    return parts


def _pieces(prompt: Floats, cached: Floats, window: int | None) -> tuple[Floats, Floats, Floats]:
    """Prompts without a window that have as many query-key pairs: number, tokens, tokens before.

    The token at position i attends to min(i, w) tokens. A prompt of more than w tokens is divided
    into pieces of w, which also attend to tokens before them. Kernels compute whole tiles, so a
    shorter window than `WINDOW_TILE` takes as long.
    """
    if window is None:
        return np.ones(()), prompt, cached
    window = max(window, WINDOW_TILE)
    growing = np.clip(window - cached, 0.0, prompt)  # tokens before which the window is not full
    pairs = growing * (cached + 0.5 * growing) + (prompt - growing) * window
    piece = np.minimum(prompt, window)
    return prompt / piece, piece, pairs / prompt - 0.5 * piece


def _prefill_attention(
    rank: Rank, batch: Floats, prompt: Floats, cached: Floats, *, layers: int
) -> Part:
    spec, gpu = rank.spec, rank.machine.gpu
    heads, kv_heads = spec.query_heads_per_rank(rank.tp), spec.kv_heads_per_rank(rank.tp)
    seconds = rank.curves.attention.prefill_seconds(
        batch=batch,
        new_tokens=prompt,
        cached_tokens=cached,
        query_heads=heads,
        kv_heads=kv_heads,
        head_dim=spec.head_dim,
        peak_flops=gpu.peak_flops,
        hbm_bandwidth=gpu.hbm_bandwidth,
    )
    flops = 2.0 * batch * prompt * (prompt + 2.0 * cached) * heads * spec.head_dim
    per_token = spec.kv_bytes_per_token_per_rank(rank.tp) * (layers / spec.cached_layers)
    kv_bytes = batch * (prompt + cached) * per_token
    return Part(
        "attention",
        layers * seconds,
        layers * flops / gpu.peak_flops,
        kv_bytes / gpu.hbm_bandwidth,
        Bound.KV,
        rank.origin,
    )
