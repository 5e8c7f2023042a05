"""Ranks and groups: who shares the target, who shares the draft, and how they exchange tensors.

A group of one does nothing. The backend is gloo on a CPU; another one changes `connect` alone,
since everything else sees only `Group`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.errors import InputError

# A death shows as a closed connection at once; this only bounds honest waiting, such as for a
# long prompt that other ranks work on.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks that share one model; `handle` is None where it is one rank."""

    rank: int
    size: int
    handle: Any = None

    def all_reduce(self, partial: Tensor) -> Tensor:
        """The sum of every rank's `partial`, in place."""
        if self.size > 1:
            dist.all_reduce(partial, group=self.handle)
        return partial

    def gather_columns(self, part: Tensor) -> Tensor:
        """Every rank's columns side by side, on every rank: (rows, cols) -> (rows, size * cols)."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(parts, part.contiguous(), group=self.handle)
        return torch.cat(parts, dim=-1)

    def broadcast(self, value: Tensor) -> Tensor:
        """Rank 0's `value`, in place on every rank."""
        if self.size > 1:
            dist.broadcast(value, src=0, group=self.handle)
        return value


ALONE = Group(rank=0, size=1)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place: in the target's group, and in the draft's where it drafts."""

    target: Group
    draft: Group | None

    @property
    def is_root(self) -> bool:
        """Whether this rank decides, prints and writes."""
        return self.target.rank == 0


@contextmanager
def connect(*, tp: int, draft_tp: int) -> Iterator[Ranks]:
    """Join the ranks that the environment names (as torchrun sets it), or be the only one.

    The draft's group is the first `draft_tp` of the target's `tp` ranks.

    Raises
    ------
    InputError
        If the number of processes is not `tp`, or the draft asks for more than the target has.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world != tp:
        raise InputError(f"tp={tp} needs {tp} processes, but {world} were started")
    if not 1 <= draft_tp <= tp:
        raise InputError(f"draft_tp={draft_tp} must be from 1 to tp={tp}")
    if world == 1:
        yield Ranks(target=ALONE, draft=ALONE)
        return
    dist.init_process_group("gloo", timeout=COLLECTIVE_TIMEOUT)
    try:
        target = Group(rank, world, dist.group.WORLD)
        handle = dist.new_group(list(range(draft_tp)))
        drafts = rank < draft_tp
        yield Ranks(target=target, draft=Group(rank, draft_tp, handle) if drafts else None)
    finally:
        dist.destroy_process_group()
