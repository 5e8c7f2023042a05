"""When memory does not suffice: what was asked, what is free, and the largest batch that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.attention.paged_cache import pages_for
from runtime.errors import InputError, OutOfMemory

GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceCache:
    """One cache's share of a sequence: the target's, or the draft's."""

    page_bytes: int  # keys and values of a page over all layers, on this rank
    page_tokens: int
    tokens: int  # the longest that a sequence gets, lookahead included

    @property
    def bytes(self) -> int:
        """Bytes that one sequence takes, in whole pages."""
        return pages_for(self.tokens, self.page_tokens) * self.page_bytes


def largest_batch(free_bytes: int, fixed_bytes: int, caches: Sequence[SequenceCache]) -> int:
    """Sequences whose caches fit beside what does not grow with the batch; 0 for none.

    Parameters
    ----------
    free_bytes : int
        Device memory left for caches and `fixed_bytes` on one rank.
    fixed_bytes : int
        What is still to be allocated whatever the batch: weights, workspaces.
    caches : sequence of SequenceCache
        Every cache that holds each sequence.
    """
    if free_bytes < 0 or fixed_bytes < 0:
        raise InputError(f"free_bytes={free_bytes} and fixed_bytes={fixed_bytes} must not be < 0")
    each = sum(cache.bytes for cache in caches)
    if each == 0:
        raise InputError("no cache takes any memory; every batch fits")
    return max(0, free_bytes - fixed_bytes) // each


def out_of_memory(
    *, batch: int, free_bytes: int, fixed_bytes: int, caches: Sequence[SequenceCache]
) -> OutOfMemory:
    """The one line for a batch that does not fit, with the largest that does, per rank.

    `free_bytes` and `fixed_bytes` as in `largest_batch`: what is loaded already is in neither.
    """
    each = sum(cache.bytes for cache in caches)
    fits = largest_batch(free_bytes, fixed_bytes, caches)
    longest = max(cache.tokens for cache in caches)
    asked = fixed_bytes + batch * each
    beside = f" and {fixed_bytes / GB:.1f} GB beside them" if fixed_bytes else ""
    if fits >= batch:
        mend = "the caches fit, what a pass needs beside them does not: use fewer --chunk-tokens"
    elif fits:
        mend = f"the largest batch that fits is {fits}; more --tp or shorter prompts fit more"
    else:
        mend = "not one sequence fits; use more --tp, a smaller model or shorter prompts"
    return OutOfMemory(
        f"out of memory on the device: batch {batch} of {longest:,} tokens asks for "
        f"{asked / GB:.1f} GB ({each / GB:.3f} GB a sequence{beside}), and "
        f"{free_bytes / GB:.1f} GB are free; {mend}"
    )
