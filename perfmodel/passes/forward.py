"""The time of one forward pass; prefill, decode, draft and verify differ only in their tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats
from perfmodel.kernels.gemm import GemmCurve
from perfmodel.passes.attention_kinds import (
    latent_attention,
    latent_prefill,
    linear_attention,
    linear_prefill,
)
from perfmodel.passes.communication import comm_parts
from perfmodel.passes.experts import PERMUTE_KERNELS, expert_parts
from perfmodel.passes.parts import Part, StepTime
from perfmodel.passes.rank import ACTIVATION_BYTES, Rank
from perfmodel.specs.dtypes import UNQUANTISED, dtype_bytes
from perfmodel.specs.engine import EngineProfile
from perfmodel.specs.labels import Bound, Origin
from perfmodel.specs.model import ModelSpec

_ZERO = np.zeros(())


def forward_pass(
    rank: Rank,
    *,
    batch: ArrayLike,
    context_tokens: ArrayLike,
    query_tokens: ArrayLike = 1,
    kv_read_tokens: ArrayLike | None = None,
    logit_tokens: ArrayLike | None = None,
) -> StepTime:
    """Time of a pass over a cache: T_T at one query token, T_V at γ+1, T_D with a draft's cache.

    Parameters
    ----------
    rank : Rank
        Machine, model, engine, kernel curves, TP degree and storage types.
    batch, context_tokens, query_tokens : float or array, mutually broadcastable
        Sequences; cached tokens per sequence; new tokens per sequence. [1]
    kv_read_tokens : float or array, optional
        Cached tokens that attention reads per sequence; by default the whole context. [tokens]
    logit_tokens : float or array, optional
        New tokens per sequence with logits; by default all. [1]

    Returns
    -------
    StepTime
        Seconds per part, each with the smallest shape that broadcasts.

    Notes
    -----
    Weights and the KV cache are read once per pass, regardless of the number of query tokens
    (Leviathan et al. 2023, section 3; MagicDec section 3).
    """
    batch, query = np.asarray(batch, float), np.asarray(query_tokens, float)
    kv = np.asarray(context_tokens if kv_read_tokens is None else kv_read_tokens, float)
    rows = batch * query
    heads = rows if logit_tokens is None else batch * np.asarray(logit_tokens, float)
    return StepTime(
        (
            *_linear_parts(rank, rows, head_rows=heads),
            *expert_parts(rank, rows),
            *_attention_parts(rank, batch, kv, query, whole_cache=kv_read_tokens is None),
            *_elementwise_parts(rank, rows, head_rows=heads),
            *comm_parts(rank, rows, head_rows=heads),
            *_overhead_parts(rank, batch),
        )
    )


def prefill_pass(
    rank: Rank, *, batch: ArrayLike, prompt_tokens: ArrayLike, cached_tokens: ArrayLike = 0
) -> StepTime:
    """Time of prefilling prompts; only the last token of each has logits.

    Parameters
    ----------
    batch, prompt_tokens, cached_tokens : float or array, mutually broadcastable
        Sequences; tokens of each prompt or chunk; tokens cached before the chunk. [1]
    """
    batch, prompt = np.asarray(batch, float), np.asarray(prompt_tokens, float)
    cached = np.asarray(cached_tokens, float)
    rows = batch * prompt
    return StepTime(
        (
            *_linear_parts(rank, rows, head_rows=batch),
            *expert_parts(rank, rows),
            *_prefill_attention_parts(rank, batch, prompt, cached),
            *_elementwise_parts(rank, rows, head_rows=batch),
            *comm_parts(rank, rows, head_rows=batch),
            *_overhead_parts(rank, batch),
        )
    )


# ---- dense layers -----------------------------------------------------------------------------


def linear_shapes(rank: Rank) -> dict[str, tuple[int, int, int]]:
    """(outputs, inputs, count) of each dense layer on one rank; qkv and gate-up are fused."""
    spec, tp = rank.spec, rank.tp
    vocab = spec.padded_vocab_per_rank(tp) if rank.engine.vocab_parallel else spec.vocab
    shapes = {
        **_attention_shapes(spec, tp),
        **_mlp_shapes(spec, tp),
        "lm_head": (vocab, spec.hidden, 1),
    }
    if spec.fusion_inputs:
        shapes["fusion_proj"] = (spec.hidden, spec.fusion_inputs * spec.hidden, 1)
    return shapes


def _attention_shapes(spec: ModelSpec, tp: int) -> dict[str, tuple[int, int, int]]:
    heads, kv_heads = spec.query_heads_per_rank(tp), spec.kv_heads_per_rank(tp)
    hidden, layers = spec.hidden, spec.cached_layers
    if (latent := spec.latent) is not None:
        queries = heads * latent.query_dim
        down = latent.width + (latent.q_rank or 0)
        return {
            "qkv_down_proj": (down, hidden, layers),
            "q_up_proj": (queries, latent.q_rank or hidden, layers),
            # Products of each head, as one matrix with the same weights and FLOPs.
            "k_absorb": (heads * latent.kv_rank, latent.nope_dim, layers),
            "v_absorb": (heads * latent.value_dim, latent.kv_rank, layers),
            "o_proj": (hidden, heads * latent.value_dim, layers),
        }
    outputs = (heads * (2 if spec.attention_gate else 1) + 2 * kv_heads) * spec.head_dim
    shapes = {
        "qkv_proj": (outputs, spec.qkv_inputs * hidden, layers),
        "o_proj": (hidden, heads * spec.head_dim, layers),
    }
    if (linear := spec.linear) is not None:
        shapes["linear_in_proj"] = (linear.input_width // tp, hidden, linear.layers)
        shapes["linear_out_proj"] = (hidden, linear.value_width // tp, linear.layers)
    return shapes


def _mlp_shapes(spec: ModelSpec, tp: int) -> dict[str, tuple[int, int, int]]:
    hidden, shapes = spec.hidden, {}
    if spec.dense_layers:
        shapes["gate_up_proj"] = (2 * spec.ffn_hidden // tp, hidden, spec.dense_layers)
        shapes["down_proj"] = (hidden, spec.ffn_hidden // tp, spec.dense_layers)
    if (experts := spec.experts) is not None:
        shapes["router"] = (experts.count, hidden, experts.layers)
        if experts.shared_width:
            shared = experts.shared_width // tp
            shapes["shared_gate_up_proj"] = (2 * shared, hidden, experts.layers)
            shapes["shared_down_proj"] = (hidden, shared, experts.layers)
    return shapes


def _linear_parts(rank: Rank, rows: Floats, *, head_rows: Floats) -> list[Part]:
    gpu = rank.machine.gpu
    parts = []
    for name, (n, k, count) in linear_shapes(rank).items():
        m = head_rows if name == "lm_head" else rows
        dtype = "bf16" if name in ("lm_head", "router") else rank.weight_dtype
        curve, peak_ratio, origin = _gemm_curve(rank, dtype)
        element = dtype_bytes(dtype)
        seconds = curve.seconds(
            m=m,
            n=n,
            k=k,
            peak_flops=rank.engine.compute_factor * peak_ratio * gpu.peak_flops,
            hbm_bandwidth=rank.hbm_bandwidth,
            weight_bytes_per_element=element,
        )
        traffic_bytes = element * n * k + ACTIVATION_BYTES * m * (n + k)
        parts.append(
            Part(
                name,
                count * rank.engine.linear_factor * rank.bounded(seconds, traffic_bytes),
                count * 2.0 * m * n * k / (peak_ratio * gpu.peak_flops),
                count * traffic_bytes / gpu.hbm_bandwidth,
                Bound.WEIGHTS,
                origin,
                partial(curve.in_range, m=m, n=n, k=k),
            )
        )
    return parts


def _gemm_curve(rank: Rank, dtype: str) -> tuple[GemmCurve, float, Origin]:
    """The GEMM curve of a weight type, its peak FLOP/s over that of bf16, and its origin.

    Quantised GEMMs were only measured with the kernels of libraries.
    """
    curves = rank.curves
    if dtype in UNQUANTISED:
        return (curves.gemm if rank.tp == 1 else curves.gemm_of_ranks), 1.0, rank.origin
    quantised = curves.quantised[dtype]
    measured = quantised.measured and rank.engine.linear_kernels == "library"
    origin = rank.origin if measured else Origin.EXTRAPOLATED
    return quantised.curve, quantised.peak_ratio, origin


# ---- attention --------------------------------------------------------------------------------


def _kv_factor(rank: Rank, units: Floats, kv: Floats) -> tuple[Floats | float, Origin]:
    """The time with the rank's KV type over that of its bytes alone, and its origin."""
    if rank.kv_dtype in UNQUANTISED:
        return 1.0, rank.origin
    table = rank.curves.kv_fp8
    if table is None or not rank.has_kv_curve:
        return 1.0, Origin.EXTRAPOLATED
    return table.factor(units, kv), rank.origin


def _attention_parts(
    rank: Rank, batch: Floats, kv: Floats, query: Floats, *, whole_cache: bool
) -> list[Part]:
    """Attention by kind of layer: layers with a window read at most as many tokens."""
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
    shape = {"query_heads": heads, "kv_heads": kv_heads, "head_dim": spec.head_dim}
    read = kv + query if curve.counts_new_tokens else kv
    seconds = curve.seconds(
        batch=batch,
        kv_tokens=read,
        query_tokens=query,
        **shape,
        peak_flops=gpu.peak_flops,
        hbm_bandwidth=rank.hbm_bandwidth,
        kv_bytes_per_element=element,
    )
    ratio, origin = _kv_factor(rank, batch * kv_heads, kv)
    seconds = seconds * ratio
    engine = rank.engine
    factor: Floats | float = (
        engine.attention_factor if whole_cache else engine.draft_attention_factor
    )
    if engine.verify_attention_factor != 1.0:
        factor = factor * np.where(query > 1, engine.verify_attention_factor, 1.0)
    flops = 4.0 * batch * query * kv * heads * spec.head_dim
    share = layers / spec.cached_layers
    kv_bytes = batch * kv * spec.kv_bytes_per_token_per_rank(rank.tp, rank.kv_dtype) * share
    return Part(
        "attention",
        layers * factor * rank.bounded(seconds, kv_bytes / layers),
        layers * flops / gpu.peak_flops,
        kv_bytes / gpu.hbm_bandwidth,
        Bound.KV,
        origin,
        partial(curve.in_range, batch=batch, kv_tokens=kv, query_tokens=query, **shape),
    )


def _prefill_attention_parts(
    rank: Rank, batch: Floats, prompt: Floats, cached: Floats
) -> list[Part]:
    """Attention of prompts by kind of layer.

    A window w divides a longer prompt of n tokens into n/w pieces that each attend to themselves
    and to (w/2) (1 - w/n) tokens before them, which is as many pairs of tokens.
    """
    spec = rank.spec
    if spec.latent is not None:
        return [latent_prefill(rank, spec.latent, batch, prompt, cached)]
    full = spec.cached_layers - (spec.local.layers if spec.local else 0)
    parts = [_prefill_attention(rank, batch, prompt, cached, layers=full)] if full else []
    if spec.local is not None:
        window, layers = spec.local.window_tokens, spec.local.layers
        pieces = np.maximum(prompt / window, 1.0)
        before = np.where(
            prompt < window, np.minimum(cached, window), 0.5 * window * (1.0 - 1.0 / pieces)
        )
        piece = np.minimum(prompt, window)
        part = _prefill_attention(rank, batch * pieces, piece, before, layers=layers)
        parts.append(replace(part, name="windowed_attention"))
    if spec.linear is not None:
        parts.append(linear_prefill(rank, spec.linear, batch, prompt))
    return parts


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


# ---- small ops --------------------------------------------------------------------------------


def _elementwise_parts(rank: Rank, rows: Floats, *, head_rows: Floats) -> list[Part]:
    """Small fused kernels, each of which moves its activations once and has a fixed latency."""
    spec, layers = rank.spec, rank.spec.layers
    vocab, norms = linear_shapes(rank)["lm_head"][0], spec.norms_per_layer * layers + 1
    widths = {  # elements moved per row, kernels, rows
        "embedding": (2 * spec.hidden, 1, rows),
        "norm": (4 * spec.hidden * norms, norms, rows),
        "rotary": (_rotary_width(spec, rank.tp) * spec.cached_layers, 2 * layers, rows),
        "activation": (3 * _mlp_width(spec, rank.tp), layers, rows),
    }
    share = rank.engine.kernels_per_layer / 5.0
    parts = [
        _small_op(rank, name, elements, kernels * share, at)
        for name, (elements, kernels, at) in widths.items()
    ]
    return [*parts, _sampling(rank, vocab, head_rows, share)]


def _rotary_width(spec: ModelSpec, tp: int) -> int:
    """Elements that rotary positions and the cache append move per row and layer."""
    heads, kv_heads = spec.query_heads_per_rank(tp), spec.kv_heads_per_rank(tp)
    if spec.latent is not None:
        return 2 * (heads + 1) * spec.latent.rope_dim + 2 * spec.latent.width
    return 2 * (heads + kv_heads) * spec.head_dim + 2 * kv_heads * spec.head_dim


def _mlp_width(spec: ModelSpec, tp: int) -> int:
    """Width of the MLPs that one token passes through, over all layers, on one rank."""
    width = spec.ffn_hidden // tp * spec.dense_layers
    if (experts := spec.experts) is not None:
        active = experts.top_k * experts.width + experts.shared_width
        width += experts.layers * active // tp
    return width


def _sampling(rank: Rank, vocab: int, rows: Floats, kernels: float) -> Part:
    """Argmax of the logits: limited by their bytes, or by the latency of one row for few rows."""
    engine, bandwidth = rank.engine, rank.machine.gpu.hbm_bandwidth
    memory_s = ACTIVATION_BYTES * vocab * rows / bandwidth
    factor = engine.sampling_factor * engine.activation_factor
    row_s = engine.sampling_column_s * vocab
    seconds = np.maximum(factor * memory_s, row_s) + kernels * engine.kernel_latency_s
    if rank.tp > 1 and engine.rank_choice_s:
        seconds = engine.rank_choice_s + engine.rank_choice_factor * memory_s
    origin = _small_origin(engine)
    return Part("sampling", np.asarray(seconds), _ZERO, memory_s, Bound.ACTIVATIONS, origin)


def _small_origin(engine: EngineProfile) -> Origin:
    """The origin of the cost of small kernels, which the engine profile states."""
    fitted = engine.origin in (Origin.FITTED, Origin.EXTRAPOLATED)
    return engine.origin if fitted else Origin.ASSUMED


def _small_op(rank: Rank, name: str, elements: float, kernels: float, rows: Floats) -> Part:
    gpu = rank.machine.gpu
    memory_s = ACTIVATION_BYTES * elements * rows / gpu.hbm_bandwidth
    seconds = rank.engine.activation_factor * memory_s + kernels * rank.engine.kernel_latency_s
    origin = _small_origin(rank.engine)
    return Part(name, seconds, _ZERO, memory_s, Bound.ACTIVATIONS, origin)


# ---- overhead -----------------------------------------------------------------------------------


def _overhead_parts(rank: Rank, batch: Floats) -> list[Part]:
    engine, layers = rank.engine, rank.spec.layers
    gemms, attention, reduces = 4, 1, 2 if rank.tp > 1 and rank.exchange is None else 0
    kernels = layers * (engine.kernels_per_layer + gemms + attention + reduces) + 4
    kernels += _more_kernels(rank.spec)
    per_layer = engine.layer_overhead_s + engine.layer_overhead_per_sequence_s * batch
    launch = kernels * engine.kernel_gap_s + layers * per_layer
    host = engine.draft_step_overhead_s if rank.is_draft else engine.step_overhead_s
    return [
        Part(name, np.asarray(seconds), _ZERO, _ZERO, Bound.HOST, engine.origin)
        for name, seconds in (("launch", launch), ("host", host))
    ]


def _more_kernels(spec: ModelSpec) -> int:
    """Kernels of a pass in addition to those of dense layers with grouped-query attention."""
    more = 0
    if (experts := spec.experts) is not None:
        more += experts.layers * (1 + PERMUTE_KERNELS + (3 if experts.shared_width else 0))
    if spec.latent is not None:
        more += 3 * spec.cached_layers  # a second query projection, two products of each head
    if spec.linear is not None:
        more += 2 * spec.linear.layers  # convolution and gates
    return more + (spec.norms_per_layer - 2) * spec.layers
