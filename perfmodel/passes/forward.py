"""The time of one forward pass; prefill, decode, draft and verify differ only in their tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, wraps

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats
from perfmodel.passes.attention import attention_parts, prefill_attention_parts
from perfmodel.passes.communication import comm_parts
from perfmodel.passes.experts import PERMUTE_KERNELS, expert_parts
from perfmodel.passes.linear import linear_parts, linear_shapes
from perfmodel.passes.parts import Part, StepTime
from perfmodel.passes.rank import ACTIVATION_BYTES, Rank
from perfmodel.specs.labels import Bound, Origin
from perfmodel.specs.model import ModelSpec
from perfmodel.specs.workload import fullest_group

_ZERO = np.zeros(())
Pass = Callable[..., StepTime]
LARGEST_KEPT = 512  # points


def _kept(function: Pass) -> Pass:
    """Keep the latest passes over few points: drafts of a target share its T_T, T_V and prefill."""

    @lru_cache(maxsize=512)
    def by_content(rank: Rank, arrays: tuple[tuple[tuple[int, ...], bytes], ...]) -> StepTime:
        return function(rank, *(np.frombuffer(data).reshape(shape) for shape, data in arrays))

    @wraps(function)
    def keeping(rank: Rank, *arrays: Floats) -> StepTime:
        if np.broadcast(*arrays).size > LARGEST_KEPT:
            return function(rank, *arrays)
        return by_content(rank, tuple((a.shape, a.tobytes()) for a in arrays))

    return keeping


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
    whole, query = np.asarray(batch, float), np.asarray(query_tokens, float)
    kv = np.asarray(context_tokens if kv_read_tokens is None else kv_read_tokens, float)
    logits = query if logit_tokens is None else np.asarray(logit_tokens, float)
    reads_whole = np.asarray(float(kv_read_tokens is None))
    return _over_cache(rank, whole, kv, query, logits, reads_whole)


@_kept
def _over_cache(
    rank: Rank, whole: Floats, kv: Floats, query: Floats, logits: Floats, reads_whole: Floats
) -> StepTime:
    batch = fullest_group(whole, rank.dp)
    rows, heads = batch * query, batch * logits
    all_rows = whole * query
    return _step(
        rank,
        (
            *linear_parts(rank, rows, head_rows=heads),
            *expert_parts(rank, all_rows),
            *attention_parts(rank, batch, kv, query, whole_cache=bool(reads_whole)),
            *_elementwise_parts(rank, rows, head_rows=heads),
            *comm_parts(rank, rows, head_rows=heads, all_rows=all_rows),
            *_overhead_parts(rank, batch),
        ),
    )


def prefill_pass(
    rank: Rank, *, batch: ArrayLike, prompt_tokens: ArrayLike, cached_tokens: ArrayLike = 0
) -> StepTime:
    """Time of prefilling prompts; only the last token of each has logits.

    `prompt_tokens` are those of each prompt or chunk, `cached_tokens` those before the chunk.
    Arrays broadcast.
    """
    arrays = (np.asarray(a, float) for a in (batch, prompt_tokens, cached_tokens))
    return _of_prompts(rank, *arrays)


@_kept
def _of_prompts(rank: Rank, whole: Floats, prompt: Floats, cached: Floats) -> StepTime:
    batch = fullest_group(whole, rank.dp)
    rows = batch * prompt
    all_rows = whole * prompt
    engine = rank.engine
    if engine.prefill_compute_factor != 1.0:
        share = min(1.0, engine.compute_factor * engine.prefill_compute_factor)
        rank = replace(rank, engine=replace(engine, compute_factor=share))
    return _step(
        rank,
        (
            *linear_parts(rank, rows, head_rows=batch),
            *expert_parts(rank, all_rows),
            *prefill_attention_parts(rank, batch, prompt, cached),
            *_elementwise_parts(rank, rows, head_rows=batch),
            *comm_parts(rank, rows, head_rows=batch, all_rows=all_rows),
            *_overhead_parts(rank, batch),
        ),
    )


# The best GEMMs and attention of the measured GPUs reach 0.80 to 0.93 of the datasheet's bandwidth.
BOUND_SHARE = 0.95


def _step(rank: Rank, parts: tuple[Part, ...]) -> StepTime:
    """The pass, or its lower bound: FLOPs at the peak, bytes at a share that no kernel exceeds.

    In a bound, the activations of small kernels never leave the cache.
    """
    if not rank.engine.is_bound:
        return StepTime(parts)
    shares = {Bound.LINK: 1.0, Bound.ACTIVATIONS: np.inf}
    return StepTime(
        tuple(
            replace(
                part,
                seconds=np.maximum(
                    part.compute_s, part.memory_s / shares.get(part.traffic, BOUND_SHARE)
                ),
                origin=Origin.DATASHEET,
            )
            for part in parts
        )
    )


# ---- small ops --------------------------------------------------------------------------------


def _elementwise_parts(rank: Rank, rows: Floats, *, head_rows: Floats) -> list[Part]:
    """Small fused kernels, each of which moves its activations once and has a fixed latency."""
    spec, layers = rank.spec, rank.spec.layers
    vocab, norms = linear_shapes(rank)["lm_head"][0], spec.norms_per_layer * layers + 1
    if rank.engine.gathers_logits:
        vocab = spec.vocab
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
    """Argmax of the logits: a latency and their bytes."""
    engine, bandwidth = rank.engine, rank.machine.gpu.hbm_bandwidth
    memory_s = ACTIVATION_BYTES * vocab * rows / bandwidth
    seconds = engine.sampling_factor * memory_s + engine.sampling_s
    if not engine.sampling_s:
        seconds = engine.activation_factor * memory_s + kernels * engine.kernel_latency_s
    origin = _small_origin(rank)
    return Part("sampling", np.asarray(seconds), _ZERO, memory_s, Bound.ACTIVATIONS, origin)


def _small_origin(rank: Rank) -> Origin:
    """The origin of the cost of small kernels, which the engine profile states."""
    origin = rank.overhead_origin
    return origin if origin in (Origin.FITTED, Origin.EXTRAPOLATED) else Origin.ASSUMED


def _small_op(rank: Rank, name: str, elements: float, kernels: float, rows: Floats) -> Part:
    gpu = rank.machine.gpu
    memory_s = ACTIVATION_BYTES * elements * rows / gpu.hbm_bandwidth
    seconds = rank.engine.activation_factor * memory_s + kernels * rank.engine.kernel_latency_s
    origin = _small_origin(rank)
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
        Part(name, np.asarray(seconds), _ZERO, _ZERO, Bound.HOST, rank.overhead_origin)
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
