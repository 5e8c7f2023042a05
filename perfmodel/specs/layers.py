"""Layers other than dense multi-head or grouped-query ones, and what each of them stores.

Mixtures of experts: Shazeer et al. 2017, arXiv 1701.06538. Latent attention (MLA): DeepSeek-V2,
arXiv 2405.04434. Gated delta networks: Yang et al. 2024, arXiv 2412.06464.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """The mixture of experts of `layers` layers; the other layers of the model have a dense MLP.

    Each token passes through `top_k` of `count` routed experts with a gated MLP of `width`, and
    through shared experts with a total width of `shared_width`. The i-th most popular expert is
    chosen in proportion to i^-skew; 0 is a uniform choice.
    """

    layers: int
    count: int
    top_k: int
    width: int
    shared_width: int = 0
    bias: bool = False  # in the projections of the routed experts
    skew: float = 0.0

    def read(self, tokens: ArrayLike) -> Floats:
        """Expected number of distinct experts that `tokens` tokens are routed to, in one layer.

        E (1 - (1 - k/E)^n), for n tokens that each choose k of E experts uniformly (MoESD: Huang
        et al. 2025, arXiv 2505.19645). With a `skew`, each expert has a probability of its own, and
        fewer are read.
        """
        tokens = np.asarray(tokens, float)
        if self.skew:
            idle = (1.0 - self.popularity()) ** tokens[..., None]
            return np.asarray(self.count - idle.sum(-1))
        if self.top_k >= self.count:
            return np.full(tokens.shape, float(self.count))
        return np.asarray(-self.count * np.expm1(tokens * np.log1p(-self.top_k / self.count)))

    def popularity(self) -> Floats:
        """The probability that a token chooses each expert; they sum to `top_k`."""
        weights = np.arange(1.0, self.count + 1.0) ** -self.skew
        chosen = np.ones(self.count)
        for sure in range(self.top_k):  # as many of the first experts are chosen by every token
            rest = weights[sure:] * (self.top_k - sure) / weights[sure:].sum()
            if rest[0] <= 1.0:
                chosen[sure:] = rest
                break
        return chosen

    def parameters_of_one(self, hidden: int) -> int:
        """Parameters of one routed expert."""
        return 3 * hidden * self.width + (2 * self.width + hidden if self.bias else 0)

    def routed_parameters(self, hidden: int, tp: int = 1) -> int:
        """Parameters of all routed experts that one of `tp` ranks stores."""
        return self.layers * self.count * self.parameters_of_one(hidden) // tp

    def other_parameters(self, hidden: int, tp: int = 1) -> int:
        """Parameters of the routers, which every rank stores, and of the shared experts."""
        return self.layers * (hidden * self.count + 3 * hidden * self.shared_width // tp)

    def splits_over(self, tp: int, ep: int) -> bool:
        """Whether `ep` groups of ranks can share the experts, and each group their width."""
        if tp % ep or self.count % ep:
            return False
        return self.width % (tp // ep) == 0 and self.shared_width % tp == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Attention over one latent vector per token (MLA), which all heads and ranks share.

    The cache has `kv_rank + rope_dim` elements per token and layer, on every rank. Decoding absorbs
    the up-projections into queries and outputs: each head attends to the latent vector directly.
    """

    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    q_rank: int | None = None

    @property
    def width(self) -> int:
        """Cached elements per token and layer."""
        return self.kv_rank + self.rope_dim

    @property
    def query_dim(self) -> int:
        """Width of a query head."""
        return self.nope_dim + self.rope_dim

    def parameters(self, hidden: int, heads: int) -> int:
        """Parameters of one layer with `heads` query heads on this rank."""
        queries = heads * self.query_dim
        query = hidden * queries
        if self.q_rank is not None:
            query = self.q_rank * (hidden + 1 + queries)  # with the norm of its latent
        latent = hidden * self.width + self.kv_rank
        up = self.kv_rank * heads * (self.nope_dim + self.value_dim)
        return query + latent + up + heads * self.value_dim * hidden


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAttention:
    """`layers` layers with a gated delta network, whose state does not grow with the context."""

    layers: int
    key_heads: int
    value_heads: int
    key_dim: int  # of one head
    value_dim: int
    conv_tokens: int

    STATE_BYTES, CONV_BYTES = 4.0, 2.0  # of the recurrent state, fp32, and of the convolution's

    @property
    def key_width(self) -> int:
        """Width of all key heads."""
        return self.key_heads * self.key_dim

    @property
    def value_width(self) -> int:
        """Width of all value heads."""
        return self.value_heads * self.value_dim

    @property
    def input_width(self) -> int:
        """Outputs of the input projections: q, k, v, output gate, and two gates per value head."""
        return 2 * self.key_width + 2 * self.value_width + 2 * self.value_heads

    def parameters(self, hidden: int, tp: int = 1) -> int:
        """Parameters of one layer on one of `tp` ranks."""
        linear = hidden * (self.input_width + self.value_width)
        conv = self.conv_tokens * (2 * self.key_width + self.value_width)
        return (linear + conv + 2 * self.value_heads) // tp + self.value_dim

    def state_bytes(self, tp: int = 1) -> float:
        """Bytes of the state of one sequence in all layers on one of `tp` ranks."""
        matrix = self.value_heads * self.key_dim * self.value_dim
        conv = (self.conv_tokens - 1) * (2 * self.key_width + self.value_width)
        return self.layers * (self.STATE_BYTES * matrix + self.CONV_BYTES * conv) / tp


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalAttention:
    """`layers` layers that attend to the last `window_tokens` tokens; the others read all tokens.

    Llama-4 attends within chunks, which are taken as windows of the chunk's length.
    """

    layers: int
    window_tokens: int
