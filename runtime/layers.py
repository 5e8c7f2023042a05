"""The layers of a decoder over one rank's slice of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.config import DecoderConfig, RopeScaling
from runtime.distributed import Group


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What norms, angles and softmax are computed in: at least float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm over the last dimension, computed in at least float32."""
    wide = x.to(compute_dtype(x.dtype))
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * (wide * scale).to(x.dtype)


# ---- rotary position embedding --------------------------------------------------------------


class Rotary:
    """Angles of rotary position embedding, plain, linear or in Llama 3's form."""

    def __init__(self, config: DecoderConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.dtype = dtype
        exponents = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float64)
        frequencies = config.rope_theta ** (-exponents / config.head_dim)
        scaled = scaled_frequencies(frequencies, config.rope_scaling)
        self.frequencies = scaled.to(compute_dtype(dtype))  # (head_dim / 2,)

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, each of the shape of `positions` with head_dim / 2 appended."""
        angles = positions.to(self.frequencies.dtype)[..., None] * self.frequencies
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)


def scaled_frequencies(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Frequencies stretched for longer contexts.

    Source: for "llama3", transformers' `modeling_rope_utils`: wavelengths beyond
    original / low are divided by the factor, those below original / high stay, and between
    them the two are blended.
    """
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "default":
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    blend = (scaling.original_context_tokens / wavelengths - low) / (high - low)
    blend = blend.clamp(0.0, 1.0)
    return blend * frequencies + (1 - blend) * frequencies / scaling.factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of every head: x (..., heads, head_dim), tables (..., head_dim / 2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


# ---- weights of one rank, and what is computed with them ---------------------------------------


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


def embed(tokens: Tensor, table: Tensor, group: Group) -> Tensor:
    """Vocabulary-parallel lookup: each rank gives its own rows, zeros elsewhere, then the sum."""
    if group.size == 1:
        return F.embedding(tokens, table)
    local = tokens - group.rank * table.shape[0]
    mine = (local >= 0) & (local < table.shape[0])
    found = F.embedding(local.where(mine, torch.zeros_like(local)), table)
    return group.all_reduce(found * mine.unsqueeze(-1))
