"""One rank's weights of a decoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One rank's weights of a layer. Matrices are (out, in), as stored by Hugging Face."""

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
    """One rank's weights of a decoder; `head` is the `embedding` tensor if they are tied."""

    embedding: Tensor  # (vocabulary rows of this rank, hidden)
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    head: Tensor

    def tensors(self) -> list[Tensor]:
        """All stored tensors, a tied head once."""
        tensors = [self.embedding, self.norm]
        if self.head is not self.embedding:
            tensors.append(self.head)
        for layer in self.layers:
            fields = (getattr(layer, name) for name in LayerWeights.__slots__)
            tensors += [field for field in fields if field is not None]
        return tensors

    @property
    def bytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())

    @property
    def read_bytes(self) -> int:
        """Bytes that a pass reads: all weights except an untied embedding (only a few rows)."""
        table = self.embedding
        skipped = 0 if self.head is table else table.numel() * table.element_size()
        return self.bytes - skipped
