"""Memory of each rank that its peers write into, used by `kernels.exchange`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from runtime.parallel.groups import Group
from runtime.parallel.watchdog import HERE

TURNS = 3  # slots that a row alternates between


class Inbox:
    """Rows of one width from every rank of a group, with three slots each, on a GPU.

    Every rank of the group must create it at the same point.

    Parameters
    ----------
    group : Group
        Must have a workspace, which shows that its ranks can reach each other's memory.
    rows, width : int
        Most rows of one exchange; words per row.
    dtype : torch.dtype
        Type of a word: int16 for 16-bit floats, int64 for keys.
    empty : int
        A word that is never sent and marks an empty slot.
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
        with HERE.waiting():
            self._shared: Any = symmetric.rendezvous(self.words, name)
        pointers = [int(pointer) for pointer in self._shared.buffer_ptrs]
        self.peers = torch.tensor(pointers, dtype=torch.int64, device=device)
        torch.cuda.synchronize(device)
        with HERE.waiting():
            dist.barrier(group.handle, device_ids=[device.index])  # all are empty before any writes
