"""The time of one forward pass; prefill, decode, draft and verify differ only in their tokens."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats
from perfmodel.kernels.gemm import GemmCurve
from perfmodel.passes.communication import comm_parts
from perfmodel.passes.parts import Part, StepTime
from perfmodel.passes.rank import ACTIVATION_BYTES, Rank
from perfmodel.specs.dtypes import UNQUANTISED, dtype_bytes
from perfmodel.specs.engine import EngineProfile
from perfmodel.specs.labels import Bound, Origin

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
    if rank.spec.sliding_window_tokens is not None:
        kv = np.minimum(kv, rank.spec.sliding_window_tokens)
    rows = batch * query
    heads = rows if logit_tokens is None else batch * np.asarray(logit_tokens, float)
    return StepTime(
        (
            *_linear_parts(rank, rows, head_rows=heads),
            _attention(rank, batch, kv, query, whole_cache=kv_read_tokens is None),
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
            _prefill_attention(rank, batch, prompt, cached),
            *_elementwise_parts(rank, rows, head_rows=batch),
            *comm_parts(rank, rows, head_rows=batch),
            *_overhead_parts(rank, batch),
        )
    )


# ---- dense layers -----------------------------------------------------------------------------


def linear_shapes(rank: Rank) -> dict[str, tuple[int, int, int]]:
    """(outputs, inputs, count) of each dense layer on one rank; qkv and gate-up are fused."""
    spec, tp = rank.spec, rank.tp
    heads, kv_heads = spec.query_heads_per_rank(tp), spec.kv_heads_per_rank(tp)
    vocab = spec.padded_vocab_per_rank(tp) if rank.engine.vocab_parallel else spec.vocab
    qkv_inputs = spec.qkv_inputs * spec.hidden
    shapes = {
        "qkv_proj": ((heads + 2 * kv_heads) * spec.head_dim, qkv_inputs, spec.layers),
        "o_proj": (spec.hidden, heads * spec.head_dim, spec.layers),
        "gate_up_proj": (2 * spec.ffn_hidden // tp, spec.hidden, spec.layers),
        "down_proj": (spec.hidden, spec.ffn_hidden // tp, spec.layers),
        "lm_head": (vocab, spec.hidden, 1),
    }
    if spec.fusion_inputs:
        shapes["fusion_proj"] = (spec.hidden, spec.fusion_inputs * spec.hidden, 1)
    return shapes


def _linear_parts(rank: Rank, rows: Floats, *, head_rows: Floats) -> list[Part]:
    gpu = rank.machine.gpu
    parts = []
    for name, (n, k, count) in linear_shapes(rank).items():
        m = head_rows if name == "lm_head" else rows
        dtype = "bf16" if name == "lm_head" else rank.weight_dtype
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
    """The time with the rank's KV type over that of its bytes alone, and its origin.

    It was only measured for fp8, and with the kernels of libraries.
    """
    if rank.kv_dtype in UNQUANTISED:
        return 1.0, rank.origin
    table = rank.curves.kv_fp8
    if rank.kv_dtype != "fp8" or table is None or rank.curves.attention.counts_new_tokens:
        return 1.0, Origin.EXTRAPOLATED
    return table.factor(units, kv), rank.origin


def _attention(rank: Rank, batch: Floats, kv: Floats, query: Floats, *, whole_cache: bool) -> Part:
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
    kv_bytes = batch * kv * spec.kv_bytes_per_token_per_rank(rank.tp, rank.kv_dtype)
    return Part(
        "attention",
        spec.layers * factor * rank.bounded(seconds, kv_bytes / spec.layers),
        spec.layers * flops / gpu.peak_flops,
        kv_bytes / gpu.hbm_bandwidth,
        Bound.KV,
        origin,
        partial(curve.in_range, batch=batch, kv_tokens=kv, query_tokens=query, **shape),
    )


def _prefill_attention(rank: Rank, batch: Floats, prompt: Floats, cached: Floats) -> Part:
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
    kv_bytes = batch * (prompt + cached) * spec.kv_bytes_per_token_per_rank(rank.tp)
    return Part(
        "attention",
        spec.layers * seconds,
        spec.layers * flops / gpu.peak_flops,
        kv_bytes / gpu.hbm_bandwidth,
        Bound.KV,
        rank.origin,
    )


# ---- small ops --------------------------------------------------------------------------------


def _elementwise_parts(rank: Rank, rows: Floats, *, head_rows: Floats) -> list[Part]:
    """Small fused kernels, each of which moves its activations once and has a fixed latency."""
    spec, layers = rank.spec, rank.spec.layers
    heads, kv_heads = spec.query_heads_per_rank(rank.tp), spec.kv_heads_per_rank(rank.tp)
    ffn, vocab = spec.ffn_hidden // rank.tp, linear_shapes(rank)["lm_head"][0]
    rotary_width = 2 * (heads + kv_heads) * spec.head_dim + 2 * kv_heads * spec.head_dim
    widths = {  # elements moved per row, kernels, rows
        "embedding": (2 * spec.hidden, 1, rows),
        "norm": (4 * spec.hidden * (2 * layers + 1), 2 * layers + 1, rows),
        "rotary": (rotary_width * layers, 2 * layers, rows),
        "activation": (3 * ffn * layers, layers, rows),
    }
    share = rank.engine.kernels_per_layer / 5.0
    parts = [
        _small_op(rank, name, elements, kernels * share, at)
        for name, (elements, kernels, at) in widths.items()
    ]
    return [*parts, _sampling(rank, vocab, head_rows, share)]


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
    per_layer = engine.layer_overhead_s + engine.layer_overhead_per_sequence_s * batch
    launch = kernels * engine.kernel_gap_s + layers * per_layer
    host = engine.draft_step_overhead_s if rank.is_draft else engine.step_overhead_s
    return [
        Part(name, np.asarray(seconds), _ZERO, _ZERO, Bound.HOST, engine.origin)
        for name, seconds in (("launch", launch), ("host", host))
    ]
