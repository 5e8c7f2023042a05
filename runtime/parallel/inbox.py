"""Memory of each rank that its peers write into: what `kernels.exchange` sums through."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from runtime.parallel.groups import Group

TURNS = 3  # places that a row takes turns on


class Inbox:
    """Rows of one width from every rank of a group, three places each, on a GPU.

    Every rank of the group must make it at the same point.

    Parameters
    ----------
    group : Group
        With a workspace, which shows that its ranks can reach each other's memory.
    rows, width : int
        The most rows of one exchange, and words a row.
    dtype : torch.dtype
        Of a word: int16 for 16-bit floats, int64 for keys.
    empty : int
        The word that is never sent.
    """

    def __init__(
        self,
        group: Group,
        *,
        rows: int,
        width: int,
        dtype: torch.dtype,
        empty: int,
    ) -> None:
        import torch.distributed as dist
        import torch.distributed._symmetric_memory as symmetric

        assert group.workspace is not None
        device = group.workspace.buffer.device
        self.rank, self.ranks, self.rows = group.rank, group.size, rows
        words = TURNS * self.ranks * rows * width
        self.words: Tensor = symmetric.empty(words, dtype=dtype, device=device)
        self.words.fill_(empty)
        self.turns = torch.zeros(rows, dtype=torch.int32, device=device)
        name: Any = group.workspace.group_name
        self._shared: Any = symmetric.rendezvous(self.words, name)
        pointers = [int(pointer) for pointer in self._shared.buffer_ptrs]
        self.peers = torch.tensor(pointers, dtype=torch.int64, device=device)
        torch.cuda.synchronize(device)
        dist.barrier(group.handle, device_ids=[device.index])  # all are empty before any writes

    @property
    def bytes(self) -> int:
        """Device memory that it takes."""
        return self.words.numel() * self.words.element_size()
