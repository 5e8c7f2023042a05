"""The last wave of thread blocks in FlashAttention-3's decode attention.

FlashAttention-3 runs one block per multiprocessor. It splits the KV of all sequences into ranges so
that there are about 1.1 ranges per multiprocessor, but at least one per sequence and KV head. Few
blocks are then left for a last wave, in which most multiprocessors are idle; since one of them
reads at most a multiple of its share of the memory bandwidth, this wave takes longer than its bytes
would. The tiles of narrower heads than 128 have as many tokens, so a multiprocessor has fewer bytes
in flight, and that multiple is smaller. With 8 KV heads on 132 multiprocessors, a batch of 6 has
144 blocks: a wave of 132 and one of 12. A kernel table measured at powers of two, which divide the
work evenly, does not show this.

Sources: `prepare_varlen_num_blocks_kernel` in hopper/flash_prepare_scheduler.cu of FlashAttention,
and `tile_size_fwd_sm90` in hopper/tile_size.h (128 tokens of a paged cache for heads up to 128).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from perfmodel._typing import Floats
from perfmodel.specs.gpu import GPU

BLOCK_TOKENS = 128.0  # of KV that a block processes at once
RANGES = 1.1  # wanted ranges per multiprocessor

WIDE_HEAD = 128  # from which on tiles have fewer tokens, but as many bytes

# Where a wave begins is uncertain by so much (ln units) on a GPU without measured kernels; its
# ratio is a mean over this range.
UNCERTAIN_WAVES = np.linspace(-0.15, 0.15, 11)


def saturating_share(wide: float, head_dim: int) -> float:
    """Share of the multiprocessors that reach the memory bandwidth; `wide` is that of wide heads.

    Each has two tiles of K and V in flight, which for heads of 64 have half the bytes.
    """
    return min(1.0, wide * max(1.0, WIDE_HEAD / head_dim))


def carried_share(measured_share: float, measured: GPU, other: GPU) -> float:
    """The share on another GPU of the architecture from that of the GPU where it was measured.

    A multiprocessor has two tiles in flight and reads their bytes once per latency, whatever the
    bandwidth of all. To reach that bandwidth, latency x bandwidth bytes must be in flight (Little's
    law), so the share is proportional to the bandwidth per multiprocessor, and at most 1. The
    latency is assumed to be the same.

    Source: FlashInfer's decode attention on an H100 and an H200, which have bandwidths of 1 to 1.43
    (kernels-h100.jsonl, kernels-h200.jsonl). Up to 39 blocks with 512 tokens or more each take 0.98
    to 1.01 times as long on the H100 (8 to 15 us), up to 64 blocks up to 1.10 times, and full grids
    1.45 times. FlashAttention-3's last wave was timed on an H200 alone.
    """
    own, others = (gpu.hbm_bandwidth / gpu.sm_count for gpu in (measured, other))
    return min(1.0, measured_share * (others / own))


def tail_ratio(
    batch_heads: Floats,
    tokens: Floats,
    *,
    sm_count: int,
    measured_sm_count: int,
    saturating_share: float,
    is_measured: bool = True,
) -> Floats:
    """Time with the last wave over the time interpolated between batches that are powers of two.

    Parameters
    ----------
    batch_heads, tokens : array, mutually broadcastable
        Batch x KV heads on the rank; tokens read per sequence. [1]
    sm_count, measured_sm_count : int
        Multiprocessors of the GPU, and of the GPU whose table is interpolated.
    saturating_share : float
        Share of the multiprocessors that together reach the memory bandwidth. [1]
    is_measured : bool
        Whether the kernels of this GPU were measured.

    Returns
    -------
    array of the broadcast shape, read-only [1]
        Cached, because the attention of every γ reads the same batches and tokens.
    """
    arrays = (np.asarray(batch_heads, dtype=float), np.asarray(tokens, dtype=float))
    axes = tuple((axis.tobytes(), axis.shape) for axis in arrays)
    return _ratio(axes, sm_count, measured_sm_count, saturating_share, is_measured)


@lru_cache(maxsize=32)
def _ratio(
    axes: tuple[tuple[bytes, tuple[int, ...]], ...],
    sm_count: int,
    measured_sm_count: int,
    saturating_share: float,
    is_measured: bool,
) -> Floats:
    """The ratio for batch x KV heads and tokens, given as bytes and shapes."""
    batch_heads, tokens = (np.frombuffer(data).reshape(shape) for data, shape in axes)
    units = np.maximum(batch_heads, 1.0)
    below = 2.0 ** np.floor(np.log2(units))
    place = np.log2(units / below)
    shifts = np.zeros(1) if is_measured else UNCERTAIN_WAVES
    at = sum(
        np.log(_seconds_per_work(units * np.exp(shift), tokens, sm_count, saturating_share))
        for shift in shifts
    )
    low, high = (
        np.log(_seconds_per_work(each, tokens, measured_sm_count, saturating_share))
        for each in (below, 2.0 * below)
    )
    ratio = np.asarray(np.exp(at / len(shifts) - (1.0 - place) * low - place * high))
    ratio.flags.writeable = False
    return ratio


def _seconds_per_work(
    units: Floats, tokens: Floats, sm_count: int, saturating_share: float
) -> Floats:
    """Time over that of perfectly divided work."""
    per_unit = np.maximum(np.ceil(tokens / BLOCK_TOKENS), 1.0)
    wanted = np.ceil(RANGES * units * per_unit / sm_count)
    ranges = np.ceil(per_unit / wanted)
    blocks = np.ceil(units) * ranges
    waves = np.floor(blocks / sm_count)
    rest = blocks - waves * sm_count
    last = np.where(rest > 0, np.maximum(rest, saturating_share * sm_count), 0.0)
    return np.asarray(np.ceil(per_unit / ranges) * (waves * sm_count + last) / (units * per_unit))
