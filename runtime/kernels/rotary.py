"""Norm and rotary position embedding in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from runtime.config import DecoderConfig, RopeScaling


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
