"""Sequences that look as if their prompts had been prefilled: for timing, which data do not change.

A cache is filled with random keys and values and read as any other. What is generated means
nothing.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.attention.paged_cache import PagedCache
from runtime.drafting.base import SelfDrafter
from runtime.drafting.standalone import StandaloneDrafter
from runtime.drafting.views import SnapView, View
from runtime.engine.engine import Engine
from runtime.execution.sequence import SequenceState

_BLOCK = 2**26  # numbers drawn; the rest repeats them


def start_without_prefill(
    engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: Sequence[int]
) -> None:
    """Start these sequences, each with one token generated, without a prefill."""
    fill_random_kv(engine.cache.storage)
    shuffle_pages(engine.cache)
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
            _admit_without_gathering(engine, drafter.policy, sequence)
    if isinstance(drafter, StandaloneDrafter):
        fill_random_kv(drafter.cache.storage)
        shuffle_pages(drafter.cache)
        drafter.admit_without_prefill(engine.sequences)


def shuffle_pages(cache: PagedCache) -> None:
    """Hand out free pages in a random order from now on, as after many sequences; one seed."""
    pages = cache.allocate(cache.free_pages)
    random.Random(0).shuffle(pages)
    cache.free(pages)


def fill_random_kv(storage: Tensor) -> None:
    """Normal values, a block at a time."""
    flat = storage.view(-1)
    size = min(_BLOCK, flat.numel())
    block = torch.randn(size, dtype=storage.dtype, device=storage.device)
    for start in range(0, flat.numel(), size):
        part = flat[start : start + size]
        part.copy_(block[: len(part)])


def _admit_without_gathering(engine: Engine, policy: SnapView, sequence: SequenceState) -> None:
    tokens, page = sequence.prompt_tokens, engine.cache.page_tokens
    view = View((), 0)
    if tokens > policy.budget_tokens:
        pages = (policy.budget_tokens - tokens % page) // page
        view = View(array("i", engine.cache.allocate(pages)), tokens // page)
    policy.admit_with_view(sequence, view)
