"""Start sequences without a prefill, for timing and for warming up: the caches hold random values.

The generated text is meaningless; run times do not depend on it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.attention.paged_cache import PagedCache
from runtime.drafting.base import SelfDrafter
from runtime.drafting.standalone import StandaloneDrafter
from runtime.drafting.views import SnapView, View
from runtime.engine.engine import Engine
from runtime.execution.sequence import SequenceState

_WARM_ROUNDS = 3
_BLOCK = 2**26  # random numbers to draw; larger caches repeat them


def start_without_prefill(
    engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: Sequence[int]
) -> None:
    """Start these sequences, each with one token generated, over random keys and values."""
    for cache in (engine.cache, getattr(engine.drafter, "cache", engine.cache)):
        fill_random_kv(cache.storage)
        shuffle_pages(cache)
    _place(engine, prompts, new_tokens)


def warm_up(
    engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: Sequence[int], *, prompt: bool
) -> None:
    """Compile kernels and capture graphs for this batch, without other side effects.

    Runs a few rounds over the present contents of the cache, with `prompt` after prefilling one
    chunk.
    """
    sampler, end_tokens = engine.sampler, engine.eos_tokens
    states = [stream.get_state() for stream in sampler.streams]
    engine.eos_tokens = frozenset()
    if prompt:
        engine.start([prompts[0][: engine.chunk_tokens]], [1])
    _place(engine, prompts, new_tokens)
    for _ in range(_WARM_ROUNDS):
        if engine.active:
            engine.round()
    engine.abandon()
    engine.eos_tokens = end_tokens
    for stream, state in zip(sampler.streams, states, strict=True):
        stream.set_state(state)
    engine.clock.clear()


def _place(engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: Sequence[int]) -> None:
    """Allocate pages for these sequences, in the target's cache and in the drafter's."""
    engine.rounds = []
    engine.sequences = [
        SequenceState(index, [*prompt, prompt[-1]], len(prompt), most)
        for index, (prompt, most) in enumerate(zip(prompts, new_tokens, strict=True))
    ]
    for sequence in engine.sequences:
        engine.cache.reserve(sequence.table, sequence.prompt_tokens)
        sequence.table.tokens = sequence.prompt_tokens
    drafter = engine.drafter
    if isinstance(drafter, SelfDrafter) and isinstance(drafter.policy, SnapView):
        for sequence in engine.sequences:
            tail_page, pages = drafter.policy.gathered_pages(sequence.prompt_tokens)
            view = View(engine.cache.allocate(pages), tail_page)
            drafter.policy.admit_with_view(sequence, view)
    if isinstance(drafter, StandaloneDrafter):
        drafter.admit_without_prefill(engine.sequences)


def shuffle_pages(cache: PagedCache) -> None:
    """Put the free pages in a random order (fixed seed), like that of a long-running server."""
    pages = cache.allocate(cache.free_pages)
    random.Random(0).shuffle(pages)
    cache.free(pages)


def fill_random_kv(storage: Tensor) -> None:
    """Fill with normal values."""
    flat = storage.view(-1)
    size = min(_BLOCK, flat.numel())
    block = torch.randn(size, dtype=storage.dtype, device=storage.device)
    for start in range(0, flat.numel(), size):
        part = flat[start : start + size]
        part.copy_(block[: len(part)])
