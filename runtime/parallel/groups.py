"""Ranks and groups: which ranks share the target or the draft, and how they exchange tensors.

A group of one rank exchanges nothing. Ranks use gloo on CPUs and NCCL on GPUs, where small sums go
through shared memory instead (`all_reduce`).
"""

from __future__ import annotations

import functools
import gc
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from runtime.errors import EngineError, InputError
from runtime.parallel import watchdog
from runtime.parallel.all_reduce import (
    AllReduceLimits,
    SharedWorkspace,
    limits_from_environment,
    shared_workspace,
)
from runtime.parallel.processes import EXEMPT, WAITS
from runtime.parallel.watchdog import HERE

# A rank that dies closes its connections at once; this only bounds legitimate waiting, such as for
# other ranks to finish a long prompt.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
# A program that uses NVLink multicast can put a shared host's GPUs out of service.
NO_MULTICAST = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
}


@dataclass(frozen=True, slots=True)
class Group:
    """The ranks that share one model; `handle` is None for a single rank.

    `workspace` is the memory that they share on GPUs, or None.
    """

    rank: int
    size: int
    handle: Any = None
    workspace: SharedWorkspace | None = None

    def all_reduce(self, partial: Tensor) -> Tensor:
        """The sum of every rank's `partial`, which may be overwritten: use only the result."""
        if self.size == 1:
            return partial
        if self.workspace is not None:
            message_bytes = partial.numel() * partial.element_size()
            algorithm = self.workspace.choose(message_bytes, partial.dtype)
            if algorithm != "nccl":
                return self.workspace.all_reduce(partial, algorithm)
        with HERE.waiting():
            dist.all_reduce(partial, group=self.handle)
        return partial

    def partial_buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor | None:
        """A buffer in which a product can be summed without a copy, or None if there is none.

        It is valid until the group's next sum.
        """
        return None if self.workspace is None else self.workspace.view(shape, dtype)

    def gather_columns(self, part: Tensor) -> Tensor:
        """Every rank's columns side by side, on every rank: (rows, cols) -> (rows, size * cols)."""
        if self.size == 1:
            return part
        if not part.is_cuda:
            parts = [torch.empty_like(part) for _ in range(self.size)]
            with HERE.waiting():
                dist.all_gather(parts, part.contiguous(), group=self.handle)
            return torch.cat(parts, dim=-1)
        stacked = part.new_empty((self.size, *part.shape))
        dist.all_gather_into_tensor(stacked, part.contiguous(), group=self.handle)
        return stacked.movedim(0, -2).reshape(*part.shape[:-1], -1)

    def broadcast(self, value: Tensor) -> Tensor:
        """Rank 0's `value`, in place on every rank."""
        if self.size > 1:
            with HERE.waiting():
                dist.broadcast(value, src=0, group=self.handle)
        return value


ALONE = Group(rank=0, size=1)
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's rank in the target's group, and in the draft's if it drafts."""

    target: Group
    draft: Group | None
    device: torch.device = CPU

    @property
    def is_root(self) -> bool:
        """Whether this rank decides, prints and writes."""
        return self.target.rank == 0


@contextmanager
def connect(*, tp: int, draft_tp: int, device: str = "cpu") -> Iterator[Ranks]:
    """Join the ranks that torchrun's environment variables describe, or run as the only one.

    The draft's group consists of the first `draft_tp` of the target's `tp` ranks. On GPUs,
    SPECROOF_ALL_REDUCE sets which sums go through shared memory.

    Parameters
    ----------
    tp, draft_tp : int
        Ranks of the target and of the draft.
    device : {"cpu", "cuda"}
        gloo, or NCCL on the GPU that LOCAL_RANK names, which becomes the current one.

    Raises
    ------
    InputError
        If the number of processes is not `tp`, `draft_tp` exceeds it, or a GPU is missing.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != tp:
        raise InputError(f"tp={tp} needs {tp} processes, not {world}; use torchrun or --tp")
    if not 1 <= draft_tp <= tp:
        raise InputError(f"draft_tp={draft_tp} is not valid; use a number from 1 to tp={tp}")
    limits = limits_from_environment()
    watchdog.stall_limit_s(device)  # refused before anything is loaded
    local = _local_device(device)
    if world == 1:
        yield Ranks(target=ALONE, draft=ALONE, device=local)
        return
    HERE.move("joining", limit_s=watchdog.JOIN_S)
    with _watched():
        try:
            with HERE.waiting(EXEMPT):  # NCCL works in threads of its own
                target, draft = _join(tp, draft_tp, local, limits)
            HERE.move("joined")
            yield Ranks(target=target, draft=draft, device=local)
        except BaseException:
            # NCCL would wait here for peers that wait for this rank; gloo just closes connections.
            if local.type == "cpu" and dist.is_initialized():
                dist.destroy_process_group()
            raise
        if local.type == "cuda":
            torch.cuda.synchronize()
            gc.collect()  # NCCL waits for graphs that contain its operations
        with HERE.waiting(EXEMPT):
            dist.destroy_process_group()


def _local_device(device: str) -> torch.device:
    """This rank's device, which becomes the current one."""
    if device == "cpu":
        return CPU
    if device != "cuda":
        raise InputError(f"device {device!r} is not valid; use cpu or cuda")
    index = int(os.environ.get("LOCAL_RANK", "0"))
    found = torch.cuda.device_count()
    if index >= found:
        raise InputError(
            f"rank {index} of this host needs GPU {index}, but the host has {found} GPUs; use a "
            f"smaller --tp"
        )
    local = torch.device("cuda", index)
    torch.cuda.set_device(local)
    return local


def _join(
    tp: int, draft_tp: int, device: torch.device, limits: AllReduceLimits
) -> tuple[Group, Group | None]:
    """Create the process group and, in it, the target's and the draft's."""
    os.environ.update(NO_MULTICAST)
    store, rank, world = _store()
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "nccl",
        # Keys that no earlier group of this process used.
        store=_STORES.PrefixStore(f"specroof-{next(_joinings)}", store),
        rank=rank,
        world_size=world,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=None if device.type == "cpu" else device,
    )
    HERE.move("joining", limit_s=watchdog.START_S)  # may compile
    target = _group(rank, tp, dist.group.WORLD, device, limits)
    if draft_tp == tp:
        return target, target
    # Every rank takes part in making a group, also those that are not in it.
    handle = dist.new_group(list(range(draft_tp))) if draft_tp > 1 else None
    return target, _group(rank, draft_tp, handle, device, limits) if rank < draft_tp else None


_STORES: Any = dist  # PrefixStore and TCPStore, which torch's stubs leave out
_joinings = itertools.count()  # the same on every rank, since all of them join equally often
_exchanges = itertools.count()


def exchange_words(word: str, *, failed: bool = False) -> list[str]:
    """Every rank's word, in the order of ranks; needs the process's store but no process group.

    All ranks must call this in the same order; each waits for the last, for a stated time, which is
    short if this rank has `failed`: others that have not may wait for it in a collective.

    Raises
    ------
    EngineError
        If the time has passed; the message has the word.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return [word]
    store, rank, world = _store()
    key = f"specroof-word-{next(_exchanges)}"
    store.set(f"{key}-{rank}", word)
    keys = [f"{key}-{other}" for other in range(world)]
    limit_s = min(watchdog.idle_limit_s() if failed else math.inf, watchdog.START_S)
    doing = f"{HERE.text}, failed: {word}" if failed else "waiting for other ranks"
    mark = EXEMPT if failed else WAITS
    with _watched(), HERE.at(doing, limit_s=2 * limit_s), HERE.waiting(mark):
        try:
            store.wait(keys, timedelta(seconds=limit_s))
        except RuntimeError:
            said = f"{word}; " if failed else ""
            raise EngineError(f"{said}other ranks have not answered for {limit_s:.0f} s") from None
    return [store.get(key).decode() for key in keys]


def others_may_wait_to_join() -> bool:
    """Whether other ranks may be joining a process group that this one has not joined."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()


@functools.cache
def _store() -> tuple[Any, int, int]:
    """The store that the environment describes, rank and world size; one per process.

    A second store would collide with the keys, or the server, of the first.
    """
    store, rank, world = next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))
    return store, rank, world


@contextmanager
def _watched() -> Iterator[None]:
    """Watch this rank within the body; has no effect within another such body."""
    global _watching
    if _watching:
        yield
        return
    _, rank, world = _store()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # A separate connection, since the first may block.
    store = _STORES.TCPStore(address, port, is_master=False, timeout=watchdog.STORE_TIMEOUT)
    with watchdog.watched(store, rank, world):
        _watching = True
        try:
            yield
        finally:
            _watching = False


_watching = False


def _group(
    rank: int, size: int, handle: Any, device: torch.device, limits: AllReduceLimits
) -> Group:
    """A group with the workspace that its ranks exchange tensors through."""
    if size == 1:
        return ALONE
    if device.type == "cpu":
        return Group(rank, size, handle)
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    return Group(rank, size, handle, shared_workspace(handle, size, device, limits, local_ranks))
