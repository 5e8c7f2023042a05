"""KV tokens per tile of FlashInfer's attention; a block processes whole tiles.

Each of a block's warps along KV processes as many 16-token fragments as fit in its share of shared
memory, rounded down to 1, 2, 4 or 8.

Source: flashinfer 0.6.6, `attention/prefill.cuh` (`BatchPrefillWithPagedKVCacheDispatched`,
`KernelTraits::CTA_TILE_KV`).
"""

from __future__ import annotations

_ELEMENT_BYTES = 2
_FRAGMENT_TOKENS = 16
_COUNTS = (8, 4, 2, 1)


def kv_tile_tokens(*, head_dim: int, tile_rows: int, shared_bytes: float) -> int:
    """KV tokens per tile of a block with `tile_rows` packed query rows.

    Parameters
    ----------
    head_dim : int
        Dimension of a head.
    tile_rows : int
        16, 64 or 128 rows.
    shared_bytes : float
        Shared memory per block: that of a multiprocessor over its resident blocks. [bytes]
    """
    warps_kv = 4 if tile_rows <= 16 else 1
    rows_deep = 2 if tile_rows > 64 else 1  # query fragments per warp
    fragment = 2 * head_dim * _FRAGMENT_TOKENS * warps_kv * _ELEMENT_BYTES
    room = (shared_bytes - tile_rows * head_dim * _ELEMENT_BYTES) // fragment
    most = min(room, 8 // rows_deep)
    count = next((n for n in _COUNTS if n <= most), 1)
    return count * warps_kv * _FRAGMENT_TOKENS
