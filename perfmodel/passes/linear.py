"""Dense layers of a pass: their shapes on one rank, and their time in the weights' type."""

from __future__ import annotations

from functools import partial

import numpy as np

from perfmodel._typing import Floats
from perfmodel.kernels.gemm import GemmCurve
from perfmodel.passes.communication import loaded_during_sum
from perfmodel.passes.parts import Part
from perfmodel.passes.rank import ACTIVATION_BYTES, Rank
from perfmodel.specs.dtypes import PARTS, UNQUANTISED, stored_bytes, timed_bytes
from perfmodel.specs.labels import Bound, Origin
from perfmodel.specs.model import ModelSpec

# Layers that read the sum over ranks of the layer before them, as many as there are sums.
AFTER_SUM = frozenset({"qkv_proj", "qkv_down_proj", "linear_in_proj", "gate_up_proj", "lm_head"})


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


def part_parameters(spec: ModelSpec, tp: int) -> dict[str, int]:
    """Parameters of each of `specs.dtypes.PARTS` on one of `tp` ranks."""
    shapes = _attention_shapes(spec, tp) | _mlp_shapes(spec, tp)
    shapes["lm_head"] = (spec.padded_vocab_per_rank(tp), spec.hidden, 1)
    parameters: dict[str, int] = dict.fromkeys(PARTS.values(), 0)
    for name, (outputs, inputs, count) in shapes.items():
        if name in PARTS:
            parameters[PARTS[name]] += outputs * inputs * count
    return parameters


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


def linear_parts(rank: Rank, rows: Floats, *, head_rows: Floats) -> list[Part]:
    """One part per dense layer; the LM head has `head_rows` rows, the others `rows`."""
    gpu, types = rank.machine.gpu, rank.types
    ahead, parts = loaded_during_sum(rank, rows), []
    for name, (n, k, count) in linear_shapes(rank).items():
        m = head_rows if name == "lm_head" else rows
        dtype = types.of_layer(name)
        curve, peak_ratio, origin = _gemm_curve(rank, dtype)
        seconds = curve.seconds(
            m=m,
            n=n,
            k=k,
            peak_flops=rank.engine.compute_factor * peak_ratio * gpu.peak_flops,
            hbm_bandwidth=gpu.hbm_bandwidth,
            weight_bytes_per_element=timed_bytes(dtype, rank.spec.scale_bytes),
        )
        stored = stored_bytes(dtype, rank.spec.scale_bytes) * n * k
        traffic_bytes = stored + ACTIVATION_BYTES * m * (n + k)
        memory_s = count * traffic_bytes / gpu.hbm_bandwidth
        # A curve of another GPU, or of other shapes, may read faster than this memory.
        seconds = np.maximum(count * rank.engine.linear_factor * seconds, memory_s)
        if name in AFTER_SUM or (name == "router" and rank.ep == 1):
            seconds = seconds - count * ahead
        parts.append(
            Part(
                name,
                seconds,
                count * 2.0 * m * n * k / (peak_ratio * gpu.peak_flops),
                memory_s,
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
