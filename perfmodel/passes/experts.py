"""The time of routed experts: their grouped GEMMs, the permutation of tokens, and all-to-alls.

A pass reads each expert that at least one of its tokens is routed to (`Experts.read`). A verified
batch has γ+1 times as many tokens as a plain step and reads more experts, so T_V exceeds T_T until
both read all of them (MoESD: Huang et al. 2025, arXiv 2505.19645). Without measurements, a kernel
takes the time of a dense layer with the weights of the experts read and the rows of one expert.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np

from perfmodel._typing import Floats
from perfmodel.kernels.gemm import GemmCurve
from perfmodel.passes.parts import Part
from perfmodel.passes.rank import ACTIVATION_BYTES, Rank
from perfmodel.specs.dtypes import stored_bytes, timed_bytes
from perfmodel.specs.labels import Bound, Origin
from perfmodel.specs.layers import Experts

SIZES = 17  # numbers of experts at which the dense curve is evaluated
PERMUTE_KERNELS = 4  # choice of experts, sorting of tokens, gather, weighted sum


def expert_parts(rank: Rank, rows: Floats) -> list[Part]:
    """The routed experts of a pass with `rows` tokens; empty for dense models.

    Rows that pad a pass to the size of its CUDA graph choose experts, too.
    """
    experts = rank.spec.experts
    if experts is None:
        return []
    rows = rank.engine.graph_rows(rows)
    parts = [_grouped_gemms(rank, experts, rows)]
    if rank.curves.experts_curve(rank.expert_dtype) is None:
        parts.append(_permutation(rank, experts, rows))
    return parts


def _grouped_gemms(rank: Rank, experts: Experts, rows: Floats) -> Part:
    gpu, hidden = rank.machine.gpu, rank.spec.hidden
    width, local_k = experts.width * rank.ep // rank.gpus, experts.top_k / rank.ep
    # The busiest rank has at least one expert to read.
    touched = np.maximum(experts.read(rows) / rank.ep, 1.0)
    pairs = rows * local_k  # of tokens and experts, on this rank
    scales = rank.spec.scale_bytes
    peaks: dict[str, Any] = {
        "peak_flops": rank.engine.compute_factor * gpu.peak_flops,
        "hbm_bandwidth": rank.machine.gpu.hbm_bandwidth,
        "weight_bytes_per_element": timed_bytes(rank.expert_dtype, scales, experts=True),
    }
    curve, inside = rank.curves.experts_curve(rank.expert_dtype), lambda: np.ones((), bool)
    if curve is None:
        dense = rank.curves.gemm if rank.gpus == 1 else rank.curves.gemm_of_ranks
        most = experts.count // rank.ep
        seconds = _as_dense(dense, pairs, touched, most, 2 * width, hidden, peaks)
        seconds = seconds + _as_dense(dense, pairs, touched, most, hidden, width, peaks)
        seconds = rank.engine.linear_factor * seconds
    else:
        shape: dict[str, Any] = {"hidden": hidden, "inter": width, "top_k": local_k}
        divided = {"ranks": rank.ep, "count": experts.count}
        seconds = curve.seconds(tokens=rows, touched=touched, **shape, **divided, **peaks)
        inside = partial(curve.in_range, tokens=rows, touched=touched, **shape)
    weights = stored_bytes(rank.expert_dtype, scales) * 3.0 * touched * hidden * width
    traffic = weights + ACTIVATION_BYTES * pairs * (2.0 * hidden + 3.0 * width)
    memory_s = experts.layers * traffic / gpu.hbm_bandwidth
    return Part(
        "experts",
        # Small tables were measured in L2.
        np.maximum(experts.layers * seconds, memory_s),
        experts.layers * 6.0 * pairs * hidden * width / gpu.peak_flops,
        memory_s,
        Bound.WEIGHTS,
        Origin.ASSUMED if curve is None else rank.layer_origin("experts"),
        inside,
    )


def _as_dense(
    curve: GemmCurve,
    pairs: Floats,
    touched: Floats,
    most: int,
    outputs: int,
    inputs: int,
    peaks: dict[str, Any],
) -> Floats:
    """A dense layer with the weights of `touched` experts, interpolated in ln(touched).

    It has `touched * outputs` columns and `pairs / touched` rows. With one expert it is that of the
    dense curve.
    """
    sizes, rows = _sizes(most), pairs / touched
    first = np.searchsorted(sizes, np.min(touched), side="right") - 1
    sizes = sizes[first : np.searchsorted(sizes, np.max(touched)) + 1]
    times = [curve.seconds(m=rows, n=int(size) * outputs, k=inputs, **peaks) for size in sizes]
    if len(sizes) == 1:
        return times[0]
    place = np.interp(np.log(touched), np.log(sizes), np.arange(float(len(sizes))))
    below = np.minimum(place.astype(int), len(sizes) - 2)
    stacked = np.log(np.stack(times))
    low = np.take_along_axis(stacked, below[None], axis=0)[0]
    high = np.take_along_axis(stacked, below[None] + 1, axis=0)[0]
    return np.asarray(np.exp(low + (high - low) * (place - below)))


@lru_cache(maxsize=256)
def _sizes(most: int) -> Floats:
    """Numbers of experts from 1 to `most`, evenly spaced in their logarithm."""
    return np.unique(np.geomspace(1, most, SIZES).round())


def _permutation(rank: Rank, experts: Experts, rows: Floats) -> Part:
    """Routing, and moving each token to its experts and back."""
    engine, gpu = rank.engine, rank.machine.gpu
    width, local_k = rank.spec.hidden, experts.top_k / rank.ep
    elements = experts.count + 2.0 * local_k * width + (local_k + 1.0) * width
    memory_s = experts.layers * ACTIVATION_BYTES * elements * rows / gpu.hbm_bandwidth
    latency_s = experts.layers * PERMUTE_KERNELS * engine.kernel_latency_s
    seconds = engine.activation_factor * memory_s + latency_s
    return Part("permute", seconds, np.zeros(()), memory_s, Bound.ACTIVATIONS, Origin.ASSUMED)


def all_to_all(rank: Rank, rows: Floats) -> list[Part]:
    """Sending each token to the ranks of its experts and the results back; empty if ep is 1.

    The ranks share the tokens of a pass. Each rank receives the tokens of the others that chose one
    of its experts, a share 1 - (1 - 1/ep)^k, so an all-to-all takes the time of an all-gather of
    the same number of bytes.
    """
    experts, link = rank.spec.experts, rank.machine.link
    if experts is None or rank.ep == 1:
        return []
    share = 1.0 - (1.0 - 1.0 / rank.ep) ** experts.top_k
    message = np.asarray(ACTIVATION_BYTES * rank.spec.hidden * share * rows)
    seconds = rank.curves.collectives.all_gather_seconds(
        message_bytes=message, ranks=rank.gpus, link_bandwidth=link.bandwidth
    )
    calls = 2.0 * experts.layers
    least = calls * message / link.bandwidth
    return [
        Part(
            "all_to_all",
            np.maximum(calls * rank.engine.comm_factor * seconds, least),
            np.zeros(()),
            least,
            Bound.LINK,
            Origin.ASSUMED,
        )
    ]
