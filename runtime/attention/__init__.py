"""Attention over a paged KV cache: the interface, a torch reference and FlashInfer."""

from runtime.attention.base import AttentionBackend, PassLayout
from runtime.attention.paged_cache import PagedCache, PageTable, pages_for
from runtime.attention.reference import ReferenceAttention

__all__ = [
    "AttentionBackend",
    "PageTable",
    "PagedCache",
    "PassLayout",
    "ReferenceAttention",
    "pages_for",
]
