"""The layers of a decoder over one rank's slice of the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.parallel.groups import Group


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's slice. Matrices are (out, in), as stored by Hugging Face."""

    input_norm: Tensor
    qkv: Tensor  # this rank's query heads, then its key heads, then its value heads
    qkv_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    attention_out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor  # this rank's gate rows, then its up rows
    down: Tensor


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """One rank's slice of a decoder; `head` is `embedding` itself where they are tied."""

    embedding: Tensor  # (vocabulary rows of this rank, hidden)
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Tensor

    def tensors(self) -> list[Tensor]:
        """Every stored tensor once."""
        found = [self.embedding, self.norm]
        if self.head is not self.embedding:
            found.append(self.head)
        for layer in self.layers:
            fields = (getattr(layer, name) for name in LayerWeights.__slots__)
            found += [field for field in fields if field is not None]
        return found

    @property
    def bytes(self) -> int:
        """Bytes that this rank stores."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    @property
    def read_bytes(self) -> int:
        """Bytes that a pass reads: all but the table of embeddings, of which it reads few rows."""
        table = self.embedding
        skipped = 0 if self.head is table else table.numel() * table.element_size()
        return self.bytes - skipped


def embed(tokens: Tensor, table: Tensor, group: Group) -> Tensor:
    """Vocabulary-parallel lookup: this rank's own rows, zeros elsewhere; the ranks' sum is it."""
    if group.size == 1:
        return F.embedding(tokens, table)
    local = tokens - group.rank * table.shape[0]
    mine = (local >= 0) & (local < table.shape[0])
    found = F.embedding(local.where(mine, torch.zeros_like(local)), table)
    return found * mine.unsqueeze(-1)
