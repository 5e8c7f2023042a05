"""All-reduce through memory that peers can read, one-shot or two-shot; NCCL for everything else.

Every rank of a group has one buffer that its peers can read over NVLink. One-shot: each rank reads
all buffers and sums them itself. Two-shot: each rank sums its share, then collects the others.
Both are single kernels that CUDA graphs can capture. NVLink multicast is never used.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.errors import InputError

Algorithm = Literal["one_shot", "two_shot", "nccl"]
LIMITS_VARIABLE = "SPECROOF_ALL_REDUCE"
MiB = 2**20
# What torch's kernels are compiled for; other types and numbers of ranks use NCCL.
KERNEL_TYPES = (torch.bfloat16, torch.float32)
TWO_SHOT_RANKS = (2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReduceLimits:
    """The largest message in bytes for each algorithm; NCCL is used for larger ones.

    Measured between two H200 (NVLink, 18 links), bf16 sums inside a CUDA graph, torch 2.11,
    November 2026: up to 256 KB one-shot takes 6.5 to 8.2 us and NCCL 10.2 to 14.2; two-shot takes
    10.1 us at 1 MB and 212 at 64 MB where NCCL takes 20.4 and 259.
    """

    one_shot_bytes: int = 256 * 1024
    two_shot_bytes: int = 64 * MiB

    @property
    def workspace_bytes(self) -> int:
        """Bytes of a buffer for the largest message that does not use NCCL."""
        return max(self.one_shot_bytes, self.two_shot_bytes)

    def choose(self, message_bytes: int, dtype: torch.dtype, ranks: int) -> Algorithm:
        """The algorithm for a message: NCCL if the kernels cannot load or sum it."""
        if message_bytes == 0 or message_bytes % 4 or dtype not in KERNEL_TYPES:
            return "nccl"
        if message_bytes <= self.one_shot_bytes:
            return "one_shot"
        two_shot = message_bytes <= self.two_shot_bytes and ranks in TWO_SHOT_RANKS
        return "two_shot" if two_shot else "nccl"


def limits_from_environment() -> AllReduceLimits:
    """Limits from SPECROOF_ALL_REDUCE, `ONE_SHOT_BYTES:TWO_SHOT_BYTES`, or the defaults.

    `0:0` uses NCCL for everything.

    Raises
    ------
    InputError
        If the variable has any other form.
    """
    text = os.environ.get(LIMITS_VARIABLE)
    if not text:
        return AllReduceLimits()
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise InputError(
            f"{LIMITS_VARIABLE}={text!r} is not valid; give the largest one-shot and two-shot "
            f"message in bytes, such as 262144:67108864, or 0:0 to use only NCCL"
        )
    return AllReduceLimits(one_shot_bytes=int(parts[0]), two_shot_bytes=int(parts[1]))


class SharedWorkspace:
    """A buffer that all ranks of a group can read, and sums over it.

    It is created once, before any graph is captured, so that no address changes.
    """

    def __init__(self, handle: Any, device: torch.device, limits: AllReduceLimits) -> None:
        import torch.distributed._symmetric_memory as symmetric

        self.handle, self.limits, self.ranks = handle, limits, dist.get_world_size(handle)
        self.group_name: str = handle.group_name
        self.buffer = symmetric.empty(limits.workspace_bytes, dtype=torch.uint8, device=device)
        symmetric.rendezvous(self.buffer, self.group_name)

    def choose(self, message_bytes: int, dtype: torch.dtype) -> Algorithm:
        """The algorithm for a message of this group."""
        return self.limits.choose(message_bytes, dtype, self.ranks)

    def view(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
        """The start of the buffer as a tensor of this shape; None if NCCL sums such a message.

        A product written there needs no copy before it is summed. It is valid until the next sum.
        """
        size = math.prod(shape) * dtype.itemsize
        if self.choose(size, dtype) == "nccl":
            return None
        return self.buffer[:size].view(dtype).view(*shape)

    def all_reduce(self, partial: Tensor, algorithm: Algorithm) -> Tensor:
        """The sum of every rank's `partial`, in a new tensor.

        A partial that is elsewhere is first copied into the buffer by a separate kernel: torch's
        `one_shot_all_reduce_copy` signals its peers before all of a block's threads have copied.
        """
        shared = self.view(partial.shape, partial.dtype)
        assert shared is not None and algorithm != "nccl"
        if partial.data_ptr() != shared.data_ptr():
            shared.copy_(partial)
        sums, name = torch.ops.symm_mem, self.group_name
        total: Tensor
        if algorithm == "one_shot":
            total = sums.one_shot_all_reduce(shared, "sum", name)
        else:
            total = sums.two_shot_all_reduce_out(shared, "sum", name, torch.empty_like(shared))
        return total


def shared_workspace(
    handle: Any, ranks: int, device: torch.device, limits: AllReduceLimits, local_ranks: int
) -> SharedWorkspace | None:
    """A workspace for the group, or None, with a note on stderr, if its ranks cannot share memory.

    Every rank of the group must call this. Either all of them get a workspace or none does.
    """
    if limits.workspace_bytes == 0:
        return None
    workspace = None
    reason = _obstacle(ranks, device, local_ranks)
    if _all_agree(reason is None, handle, device):
        try:
            workspace = SharedWorkspace(handle, device, limits)
        except (RuntimeError, AttributeError, ImportError) as error:
            reason = " ".join(str(error).split())[:200]
    if _all_agree(workspace is not None, handle, device):
        return workspace
    if dist.get_rank() == 0:
        why = reason or "another rank cannot share its memory"
        print(f"note: {ranks} ranks use only NCCL for all-reduce: {why}", file=sys.stderr)
    return None


def _obstacle(ranks: int, device: torch.device, local_ranks: int) -> str | None:
    """Why the first `ranks` ranks cannot read each other's memory, if that is known in advance."""
    if ranks > local_ranks:
        return f"only {local_ranks} of {ranks} ranks are on this host"
    peers = [peer for peer in range(ranks) if peer != device.index]
    try:
        blind = [peer for peer in peers if not torch.cuda.can_device_access_peer(device, peer)]
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())[:200]
    return f"{device} cannot read the memory of devices {blind}" if blind else None


def _all_agree(agrees: bool, handle: Any, device: torch.device) -> bool:
    flag = torch.tensor([int(agrees)], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=handle)
    return bool(flag.item())
