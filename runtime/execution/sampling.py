"""Token selection for a whole round: greedy, sampled, or accepted at given rates.

`verify_tokens` returns one integer tensor (sequences, γ + 2) on the device: the number of accepted
drafts, then those drafts and the token that the target adds; columns after that are undefined. The
host reads nothing else in a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from runtime.errors import InputError
from runtime.kernels.rotary import compute_dtype

# Lower temperatures are greedy, as in vLLM: logits divided by them could overflow.
LEAST_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen; temperature 0 is greedy, `top_k` 0 and `top_p` 1 exclude nothing."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise InputError(
                f"temperature={self.temperature}, top_k={self.top_k}, top_p={self.top_p} is not "
                f"valid; use a temperature and top_k of at least 0, and a top_p in (0, 1]"
            )


class Sampler(Protocol):
    """Draws drafts and verifies them."""

    @property
    def streams(self) -> Sequence[torch.Generator]:
        """All random generators."""
        ...

    @property
    def draft_streams(self) -> Sequence[torch.Generator]:
        """Random generators of `draft`, which a graph must register when it is captured."""
        ...

    @property
    def greedy(self) -> bool:
        """Whether it needs only each row's most likely token, not all logits."""
        ...

    def draft(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits (B, V), or most likely tokens (B,) where greedy -> tokens (B,), and the
        probabilities (B, V) they were drawn from, or None where `verify_tokens` needs none."""
        ...

    def verify_tokens(self, drafts: Tensor, proposed: Tensor | None, rows: Tensor) -> Tensor:
        """Drafts (B, γ), their probabilities (B, γ, V) and the target's logits (B, γ + 1, V), or
        its most likely tokens (B, γ + 1) where greedy -> verdict (B, γ + 2)."""
        ...


class GreedySampler:
    """The most likely token; a draft is accepted if it equals the target's."""

    streams: Sequence[torch.Generator] = ()
    draft_streams: Sequence[torch.Generator] = ()
    greedy = True

    def draft(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The most likely token."""
        return rows, None

    def verify_tokens(self, drafts: Tensor, proposed: Tensor | None, rows: Tensor) -> Tensor:
        """Accepted drafts equal the target's most likely tokens, so these are the output."""
        accepted = leading_trues(drafts == rows[:, :-1])
        return torch.cat((accepted[:, None], rows), dim=1)


class StochasticSampler:
    """Speculative sampling: the output follows the target's distribution exactly.

    Source: Leviathan et al. 2023, algorithm 1. A draft d is accepted with probability
    min(1, p(d) / q(d)); at the first rejection the token is drawn from max(p - q, 0) normalised,
    and after γ accepted drafts from p.
    """

    greedy = False

    def __init__(self, params: SamplingParams, device: torch.device) -> None:
        self.params = params
        # Two generators: ranks that draft without verifying must draw what the others draw.
        self._draft_stream = seeded(params.seed, device)
        self.draft_streams = (self._draft_stream,)
        self._verify_stream = seeded(params.seed + 1, device)
        self.streams = (self._draft_stream, self._verify_stream)

    def draft(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """A draw from each row, and its distribution."""
        weights = probabilities(rows, self.params)
        return draw(weights, self._draft_stream), weights

    def verify_tokens(self, drafts: Tensor, proposed: Tensor | None, rows: Tensor) -> Tensor:
        """Rejection sampling, independently for each sequence."""
        target = probabilities(rows, self.params)  # (B, γ + 1, V)
        batch, gamma = drafts.shape
        if proposed is None:  # no drafts, so the residual is p itself
            proposed = target[:, :0]
        target_p = target[:, :gamma].gather(2, drafts[..., None])[..., 0]
        draft_p = proposed.gather(2, drafts[..., None])[..., 0]
        uniform = torch.rand(
            (batch, gamma), generator=self._verify_stream, device=drafts.device, dtype=target.dtype
        )
        accepted = leading_trues(uniform * draft_p < target_p)
        final = draw(self.final_rows(target, proposed, accepted), self._verify_stream)
        tokens = torch.cat((drafts, final[:, None]), dim=1)
        tokens.scatter_(1, accepted[:, None], final[:, None])
        return torch.cat((accepted[:, None], tokens), dim=1)

    def final_rows(self, target: Tensor, proposed: Tensor, accepted: Tensor) -> Tensor:
        """Unnormalised distribution of the token after each sequence's accepted drafts."""
        return residual_at(target, proposed, accepted)


class InjectedSampler:
    """Accepts at given rates, regardless of the tokens, for timing with random weights.

    `rates[i]` is the probability that draft i is accepted given that all before it were.
    """

    greedy = True

    def __init__(self, rates: Sequence[float], seed: int, device: torch.device) -> None:
        if any(not 0 <= rate <= 1 for rate in rates):
            raise InputError(f"acceptance rates {list(rates)} must be between 0 and 1")
        self._rates = torch.tensor(list(rates), device=device, dtype=torch.float64)
        self.draft_streams: Sequence[torch.Generator] = ()
        self._stream = seeded(seed, device)
        self.streams = (self._stream,)

    def draft(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """The most likely token."""
        return rows, None

    def verify_tokens(self, drafts: Tensor, proposed: Tensor | None, rows: Tensor) -> Tensor:
        """Accept at random; the token after the drafts is the target's most likely one."""
        uniform = torch.rand(
            drafts.shape, generator=self._stream, device=drafts.device, dtype=torch.float64
        )
        accepted = leading_trues(uniform < self._rates[: drafts.shape[1]])
        final = rows.gather(1, accepted[:, None])
        tokens = torch.cat((drafts, final), dim=1)
        tokens.scatter_(1, accepted[:, None], final)
        return torch.cat((accepted[:, None], tokens), dim=1)


def sampler_for(
    params: SamplingParams, rates: Sequence[float] | None, device: torch.device
) -> Sampler:
    """Injected if rates are given, greedy below `LEAST_TEMPERATURE`, else stochastic."""
    if rates is not None:
        return InjectedSampler(rates, params.seed, device)
    if params.temperature < LEAST_TEMPERATURE:
        return GreedySampler()
    return StochasticSampler(params, device)


# ---- parts ----------------------------------------------------------------------------------


def probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """The sampling distribution (..., V): temperature, then top-k, then top-p."""
    scaled = logits.to(compute_dtype(logits.dtype)) / params.temperature
    if 0 < params.top_k < scaled.shape[-1]:
        least = scaled.topk(params.top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    rows = scaled.softmax(-1)
    if params.top_p < 1:
        ordered, order = rows.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # mass of the more likely tokens
        ordered = ordered.masked_fill(before >= params.top_p, 0.0)
        rows = torch.zeros_like(rows).scatter(-1, order, ordered)
        rows = rows / rows.sum(-1, keepdim=True)
    return rows


def residual_at(target: Tensor, proposed: Tensor, accepted: Tensor) -> Tensor:
    """max(p - q, 0) at each sequence's first rejected draft, or p after γ accepted: (B, V)."""
    rows = torch.arange(len(accepted), device=accepted.device)
    padded = torch.cat((proposed, torch.zeros_like(target[:, :1])), dim=1)
    p = target[rows, accepted]
    residual = (p - padded[rows, accepted]).clamp(min=0.0)
    # It is zero only where p equals q to the last bit, and nothing is rejected there.
    return torch.where(residual.sum(-1, keepdim=True) > 0, residual, p)


def draw(rows: Tensor, stream: torch.Generator) -> Tensor:
    """One index per row of unnormalised probabilities (B, V).

    Exponential race: of independent exponential variables with these rates, variable i is the
    smallest with probability p_i / sum(p). Unlike `torch.multinomial`, this never waits for the
    device, so a graph can capture it.
    """
    waiting = torch.empty_like(rows).exponential_(generator=stream)
    tiny = torch.finfo(rows.dtype).tiny
    return (rows / waiting.clamp_min(tiny)).argmax(-1)


def leading_trues(flags: Tensor) -> Tensor:
    """Number of leading True values: (B, n) -> (B,)."""
    return flags.long().cumprod(1).sum(1)


def seeded(seed: int, device: torch.device) -> torch.Generator:
    """A random generator on the device."""
    generator = torch.Generator(device)
    generator.manual_seed(seed)
    return generator
