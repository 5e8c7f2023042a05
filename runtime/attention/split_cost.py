"""What one attention call would take with its KV cut into ranges of a given length: an estimate.

Blocks run in waves of two a multiprocessor, each as long as its tokens take, two on one slowing
each other; no faster than memory delivers. Cut KV costs a merge of each row of each query head.

Source: 3,118 timings of 1,022 shapes on an H200 (`benchmarks/tuning/tune_splits.py`, 45 s;
calibration/measured/h200-splits.jsonl.gz), fitted by least squares of the logarithm and rounded;
8 % rms. Taking the cut of least estimate costs 0.3 % over the best of those timed on average, 17 %
at worst. On another GPU only `processors` differs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BLOCKS_PER_SM = 2  # what the kernel is built to run side by side
_TOKEN_S = {16: 3.6e-9, 64: 8.8e-9, 128: 17e-9}  # of a lone block, by rows of its tile
_TOKEN_DIM_S = 0.09e-9  # the same, by head dimension
_BLOCK_S = 3.7e-6
_LAUNCH_S = 1.3e-6
_PAIRED = 1.4  # how much longer two blocks on a multiprocessor take than one
_BYTES_PER_S = 4.6e12
_MERGE_S = 2.5e-6
_MERGE_ROW_S = 3.4e-9  # of one query head
_SMOOTH = 4  # exponent of the norm that stands for the larger of work and memory


def pass_seconds(
    *,
    blocks: Floats,
    longest_tokens: Floats,
    total_tokens: float,
    merged_rows: float,
    tile_rows: int,
    head_dim: int,
    processors: int,
) -> Floats:
    """Seconds of one call in a graph for each way to cut it, uncut first; arrays of one shape.

    Parameters
    ----------
    blocks, longest_tokens : array
        Blocks over all KV heads, and the longest one's KV.
    total_tokens : float
        KV of all blocks together, the same however cut.
    merged_rows : float
        Query tokens times query heads: what a cut has to merge.
    """
    per_token = _TOKEN_S[tile_rows] + _TOKEN_DIM_S * head_dim
    mean_tokens = total_tokens / blocks
    full, rest = np.divmod(blocks, BLOCKS_PER_SM * processors)
    last = np.where(rest == 0, 0.0, np.where(rest <= processors, 1.0, _PAIRED))
    waves = (full * _PAIRED + last) * (_BLOCK_S + mean_tokens * per_token)
    work = waves + (longest_tokens - mean_tokens) * per_token
    memory = total_tokens * head_dim * 4 / _BYTES_PER_S
    found: Floats = (work**_SMOOTH + memory**_SMOOTH) ** (1 / _SMOOTH) + _LAUNCH_S
    found[1:] += _MERGE_S + merged_rows * _MERGE_ROW_S
    return found
