"""RMS norm and rotary position embedding in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from runtime.config import DecoderConfig, RopeScaling


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which norms, angles and softmax are computed: at least float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square norm over the last dimension, computed in at least float32."""
    wide = x.to(compute_dtype(x.dtype))
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight * (wide * scale).to(x.dtype)


# ---- rotary position embedding --------------------------------------------------------------


class Rotary:
    """Angles of the rotary position embedding, with or without context scaling.

    Queries and keys are multiplied by `attention_factor` (YaRN) when they are first rotated. It is
    not part of `tables` by default, so that cached keys can be rotated again.
    """

    def __init__(self, config: DecoderConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.attention_factor = config.rope_scaling.attention_factor
        exponents = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float64)
        frequencies = config.rope_theta ** (-exponents / config.head_dim)
        scaled = scaled_frequencies(frequencies, config.rope_scaling, config.rope_theta)
        self.frequencies = scaled.to(compute_dtype(dtype))  # (head_dim / 2,)

    def tables(self, positions: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
        """Cosines and sines times `factor`, each (*positions.shape, head_dim / 2)."""
        angles = positions.to(self.frequencies.dtype)[..., None] * self.frequencies
        return (angles.cos() * factor).to(self.dtype), (angles.sin() * factor).to(self.dtype)


def scaled_frequencies(frequencies: Tensor, scaling: RopeScaling, theta: float) -> Tensor:
    """Frequencies (head_dim / 2,), lowered for longer contexts.

    "llama3" divides frequencies by `factor` where the wavelength exceeds original context / low
    factor, keeps those below original context / high factor, and interpolates in between. "yarn"
    (arXiv 2309.00071) interpolates between the dimensions that rotate `beta_fast` and `beta_slow`
    times within the original context. Source: transformers' `modeling_rope_utils`.
    """
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    if scaling.kind == "default":
        return frequencies
    if scaling.kind == "yarn":
        blend = _yarn_blend(len(frequencies), scaling, theta).to(frequencies)
    else:
        wavelengths = 2 * math.pi / frequencies
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        blend = (scaling.original_context_tokens / wavelengths - low) / (high - low)
        blend = blend.clamp(0.0, 1.0)
    return blend * frequencies + (1 - blend) * frequencies / scaling.factor


def _yarn_blend(pairs: int, scaling: RopeScaling, theta: float) -> Tensor:
    """Weight of each unscaled frequency: 1 for high frequencies, 0 for low ones."""

    def dimension(rotations: float) -> float:
        longest = scaling.original_context_tokens / (rotations * 2 * math.pi)
        return pairs * math.log(longest) / math.log(theta)

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    width = last - first or 0.001
    ramp = (torch.arange(pairs, dtype=torch.float64) - first) / width
    return 1 - ramp.clamp(0.0, 1.0)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (..., heads, head_dim) by cosines and sines (..., head_dim / 2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
