"""The time of latent attention and of gated delta networks.

Without measured curves, both take the longer of the times of their bytes and FLOPs, at the
efficiencies of the dense layers, and are marked "assumed".
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from perfmodel._typing import Floats
from perfmodel.kernels.attention import smooth_max
from perfmodel.passes.parts import Part
from perfmodel.passes.rank import Rank
from perfmodel.specs.dtypes import dtype_bytes
from perfmodel.specs.labels import Bound, Origin
from perfmodel.specs.layers import LatentAttention, LinearAttention


def latent_attention(
    rank: Rank, latent: LatentAttention, batch: Floats, kv: Floats, query: Floats
) -> Part:
    """Attention of all heads to the latent cache, which every rank reads whole.

    Each of n heads takes 2 (2 kv_rank + rope_dim) FLOPs per query and cached token: scores over
    `kv_rank + rope_dim` elements, and a sum of vectors of `kv_rank` (arXiv 2405.04434, appendix C).
    """
    heads, layers = rank.spec.query_heads_per_rank(rank.tp), rank.spec.cached_layers
    flops = 2.0 * batch * query * kv * heads * (2.0 * latent.kv_rank + latent.rope_dim)
    kv_bytes = batch * kv * latent.width * dtype_bytes(rank.kv_dtype)
    curve = rank.latent_curve
    if curve is None:
        return _roofline(rank, "latent_attention", layers, flops, kv_bytes)
    at: dict[str, Any] = {"batch": batch, "kv_tokens": kv, "query_tokens": query, "heads": heads}
    gpu = rank.machine.gpu
    seconds = curve.seconds(**at, peak_flops=gpu.peak_flops, hbm_bandwidth=gpu.hbm_bandwidth)
    return Part(
        "latent_attention",
        layers * np.maximum(rank.engine.attention_factor * seconds, kv_bytes / gpu.hbm_bandwidth),
        layers * flops / gpu.peak_flops,
        layers * kv_bytes / gpu.hbm_bandwidth,
        Bound.KV,
        rank.layer_origin("latent attention"),
        partial(curve.in_range, **at),
    )


def latent_prefill(
    rank: Rank, latent: LatentAttention, batch: Floats, prompt: Floats, cached: Floats
) -> Part:
    """Causal attention with keys and values of full width, as engines run it for prompts."""
    spec, gpu = rank.spec, rank.machine.gpu
    heads, layers = spec.query_heads_per_rank(rank.tp), spec.cached_layers
    peaks = {"peak_flops": gpu.peak_flops, "hbm_bandwidth": gpu.hbm_bandwidth}
    curve, width = rank.latent_curve, latent.query_dim + latent.value_dim
    if curve is None:  # the dense curve at the mean width of keys and values
        seconds = rank.curves.attention.prefill_seconds(
            batch=batch,
            new_tokens=prompt,
            cached_tokens=cached,
            query_heads=heads,
            kv_heads=heads,
            head_dim=width // 2,
            **peaks,
        )
    else:
        seconds = curve.prefill_seconds(
            batch=batch, new_tokens=prompt, cached_tokens=cached, heads=heads, **peaks
        )
    flops = batch * prompt * (prompt + 2.0 * cached) * heads * width
    kv_bytes = batch * (prompt + cached) * latent.width * dtype_bytes(rank.kv_dtype)
    return Part(
        "latent_attention",
        layers * seconds,
        layers * flops / gpu.peak_flops,
        layers * kv_bytes / gpu.hbm_bandwidth,
        Bound.KV,
        Origin.ASSUMED if curve is None else rank.layer_origin("latent attention"),
    )


def linear_attention(rank: Rank, linear: LinearAttention, batch: Floats, query: Floats) -> Part:
    """Gated delta networks: the state is read once, and written after every query token.

    Engines keep the states of all verified tokens, because a state cannot be rolled back.
    """
    state = linear.state_bytes(rank.tp) / linear.layers
    matrix = linear.value_heads * linear.key_dim * linear.value_dim / rank.tp
    # Decay, product with the key, update and product with the query.
    flops = 7.0 * batch * query * matrix
    traffic = batch * state * (1.0 + query)
    return _roofline(rank, "linear_attention", linear.layers, flops, traffic)


def linear_prefill(rank: Rank, linear: LinearAttention, batch: Floats, prompt: Floats) -> Part:
    """The same for prompts, which read and write the state once."""
    matrix = linear.value_heads * linear.key_dim * linear.value_dim / rank.tp
    traffic = np.asarray(2.0 * batch * linear.state_bytes(rank.tp) / linear.layers)
    flops = 7.0 * batch * prompt * matrix
    return _roofline(rank, "linear_attention", linear.layers, flops, traffic)


def _roofline(rank: Rank, name: str, layers: int, flops: Floats, traffic: Floats) -> Part:
    """A part with the time of its FLOPs and bytes per layer, at the dense layers' efficiencies."""
    gpu, gemm = rank.machine.gpu, rank.curves.gemm
    memory = traffic / (rank.machine.gpu.hbm_bandwidth * gemm.memory_efficiency)
    compute = flops / (rank.engine.compute_factor * gpu.peak_flops * gemm.compute_efficiency)
    seconds = gemm.kernel_latency_s + smooth_max(memory, compute)
    return Part(
        name,
        layers * rank.engine.attention_factor * seconds,
        layers * flops / gpu.peak_flops,
        layers * traffic / gpu.hbm_bandwidth,
        Bound.KV,
        Origin.ASSUMED,
    )
