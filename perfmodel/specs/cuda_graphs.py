"""Which rounds replay a full CUDA graph in an engine that also captures piecewise graphs.

vLLM captures graphs of 1, 2, 4, 8, 16, ... 256, 272, ... tokens, and pads a pass to the smallest
captured size. A full graph of a round with γ drafts has a multiple of γ + 1 tokens, so each size is
also rounded up to such a multiple. vLLM's model runner V2 captures both kinds of sizes and takes
the smallest that holds the round. If that is not a multiple of γ + 1, only a piecewise graph has
it, and the host launches the attention of each layer. With γ = 4, a batch of 10 (50 tokens) replays
a full graph, and a batch of 9 (45 tokens, padded to 48) does not. If all sizes are multiples of
γ + 1, as in a configuration written by `specroof export`, every round replays one.

Source: `CudaGraphManager._init_candidates` and `dispatch` in vllm/v1/worker/gpu/cudagraph_utils.py,
and `_set_cudagraph_sizes` in vllm/config/vllm.py of vLLM 0.26.0.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

DEFAULT_GRAPH_TOKENS = 512


def captured_sizes(most: int) -> NDArray[np.int64]:
    """vLLM's default sizes of graphs, in tokens, up to `most`."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, most + 1, 16)]
    return np.array([size for size in sizes if size <= most], dtype=np.int64)


def replays_full_graph(batch: ArrayLike, gamma: ArrayLike, *, most: float) -> NDArray[np.bool_]:
    """Whether a round replays a full graph if piecewise graphs of other sizes are captured too.

    The arrays broadcast. Fractions of a sequence are rounded up; `most` are the tokens of the
    largest graph.
    """
    sizes = captured_sizes(int(most))
    drafts = np.floor(np.asarray(gamma, dtype=float)).astype(np.int64)
    per_round = drafts + 1
    tokens = np.ceil(np.asarray(batch, dtype=float)).astype(np.int64) * per_round
    nearest = _smallest(sizes, tokens)
    # The smallest multiple that some size is rounded up to, and that holds the round.
    multiple = -(-_smallest(sizes, tokens - drafts) // per_round) * per_round
    return np.asarray((tokens <= most) & (multiple <= np.minimum(nearest, most)))


def padded_tokens(tokens: ArrayLike, *, most: float) -> NDArray[np.float64]:
    """Tokens of the smallest default graph that holds a pass, or of the pass if none does.

    vLLM leaves the tokens of earlier passes in the rows that it adds, and only attention skips
    them. Sizes are not rounded up to multiples of γ + 1 here. `most` is that of the largest graph.
    """
    exact = np.asarray(tokens, dtype=float)
    whole = np.ceil(np.minimum(exact, most)).astype(np.int64)
    return np.where(exact <= most, _smallest(captured_sizes(int(most)), whole), exact)


def largest_multiple(gamma: ArrayLike, *, most: float) -> NDArray[np.int64]:
    """Tokens of the largest graph if default sizes are rounded up to multiples of γ + 1.

    Sizes that exceed `most` after that are dropped: with γ = 4, 512 tokens leave 500.
    """
    per_round = np.floor(np.asarray(gamma, dtype=float)).astype(np.int64)[..., None] + 1
    rounded = -(-captured_sizes(int(most)) // per_round) * per_round
    return np.asarray(np.where(rounded <= most, rounded, 0).max(axis=-1))


def full_graph_sizes(
    rows: Sequence[tuple[int, int, int]], *, step: int, others: Collection[int] = ()
) -> list[int]:
    """Tokens of graphs with which every round of a γ schedule replays a full one.

    `rows` are (lowest batch, highest batch, γ), from batch 1. Several rows need vLLM's model runner
    V2, which rounds each size up to a multiple of γ + 1 for every γ of the schedule. A round
    replays a full graph if the smallest that holds it is one of its own γ. `step` are the sequences
    between graphs from 64 sequences on, and `others` sizes that are captured too.
    """
    sizes = set(others)
    for low, high, gamma in rows:
        sizes |= {(gamma + 1) * count for count in _counts(low, high, step)}
    limits = rows[-1][1], {gamma + 1 for _, _, gamma in rows}
    complete = False
    while not complete:
        complete, full = True, _full_graphs(sizes, *limits)
        for low, high, gamma in rows:
            per_round = gamma + 1
            for tokens in range(high * per_round, low * per_round - 1, -per_round):
                smallest = min(size for size in full if size >= tokens)
                if per_round not in full[smallest]:
                    sizes.add(tokens)
                    complete, full = False, _full_graphs(sizes, *limits)
    return sorted(sizes)


def _counts(low: int, high: int, step: int) -> set[int]:
    counts = {*range(1, 8), *range(8, 64, 8), *range(64, high, step), low, high}
    return {count for count in counts if low <= count <= high}


def _full_graphs(sizes: Collection[int], batch: int, lengths: set[int]) -> dict[int, set[int]]:
    """The tokens of each graph, and the tokens per sequence of the full ones of that size."""
    most, graphs = max(sizes), {size: set[int]() for size in sizes}
    for size, length in product(sizes, lengths):
        rounded = -(-size // length) * length
        if rounded <= min(most, batch * length):
            graphs.setdefault(rounded, set()).add(length)
    return graphs


def default_graph_notes(launch_s: float, tokens: int) -> list[str]:
    """What default graphs cost a pass of so many tokens; empty if nothing."""
    note = (
        f"{tokens:,} tokens are not in a full CUDA graph of default size, so the host would launch "
        f"each layer, {1e3 * launch_s:.1f} ms in all; `specroof export` sets sizes that fit"
    )
    return [note] if launch_s else []


def _smallest(sizes: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest size of at least so many tokens; more than the largest size if there is none."""
    with_end = np.append(sizes, 2 * sizes[-1] + 1)
    return np.asarray(with_end[np.minimum(np.searchsorted(with_end, tokens), len(sizes))])
