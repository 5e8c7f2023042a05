"""The interface of attention backends: `plan` once a pass from host numbers, `run` once a layer.

A layout names pages and counts that the host knows before the pass starts, so planning never waits
for the device, and the plans of a whole draft phase can be made before its first step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PassLayout:
    """What one pass reads and writes, per sequence.

    `page_tables` lists the pages to read, in order, all full but the last. `kv_tokens` counts the
    tokens read from them, the pass's own included, which are the last `query_tokens`. With
    `rotate_on_read` the cache holds unrotated keys, and keys and queries are rotated by their index
    among the tokens read. `window_tokens` limits how far back a query sees.
    """

    page_tables: Sequence[Sequence[int]]
    kv_tokens: Sequence[int]
    query_tokens: Sequence[int]
    rotate_on_read: bool = False
    window_tokens: int | None = None

    @property
    def last_rows(self) -> list[int]:
        """The row of each sequence's last token among all the tokens of the pass."""
        rows, total = [], 0
        for count in self.query_tokens:
            total += count
            rows.append(total - 1)
        return rows


class AttentionPlan(Protocol):
    """One planned pass."""

    @property
    def rotate_on_read(self) -> bool:
        """Whether `run` takes unrotated queries and keys."""
        ...

    def run(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Append `key` and `value` to the cache and attend.

        query (tokens, query heads, head_dim); key and value (tokens, KV heads, head_dim); sequences
        one after another. Returns the shape of `query`.
        """
        ...


class AttentionBackend(Protocol):
    """Attention over one paged cache."""

    def plan(self, layout: PassLayout) -> AttentionPlan:
        """Prepare one pass; `run` then does only device work."""
        ...
