"""`AcceptanceProcess`: random numbers of accepted drafts for the rounds of each sequence.

Each sequence has a trait, a number that is drawn once: its α if α differs between sequences, or its
position in a recorded trace. Given their traits, sequences are independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel._typing import Counts, Floats
from perfmodel.acceptance.tokens import tokens_per_round
from perfmodel.errors import ConfigError
from perfmodel.scenario import Scenario
from perfmodel.speculation.round import estimate

_ROUNDS_AT_ONCE = 32
_MANY_TOKENS = 8192  # above which rounds that cannot be the last are drawn as one sum
_SUM_CELLS = 1 << 20  # most sequences x positions that are summed at once


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceProcess:
    """The distribution of accepted drafts.

    `recorded` are those of consecutive rounds, which replace the other fields. A sequence starts at
    a random round and continues cyclically, which preserves correlations between rounds.
    """

    per_position: tuple[float, ...] = (0.0,)  # conditional; the last also applies to later ones
    spread: float = 0.0  # standard deviation of α between sequences (beta distribution)
    recorded: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        alpha = self.per_position[0]
        if self.spread and len(set(self.per_position)) > 1:
            raise ConfigError("acceptance_spread needs one alpha, not one per position")
        limit = (alpha * (1.0 - alpha)) ** 0.5
        if self.spread and not 0.0 < self.spread < limit:
            raise ConfigError(
                f"acceptance_spread={self.spread:g} is not possible with alpha={alpha:g}; use less "
                f"than {limit:.3g}"
            )
        if any(count < 0 for count in self.recorded):
            raise ConfigError("recorded numbers of accepted drafts must be at least 0")

    def mean_tokens(self, gamma: int) -> float:
        """Mean tokens per round of sequences that never end."""
        if self.recorded:
            return 1.0 + float(np.minimum(self.recorded, gamma).mean())
        if not self.spread:
            return float(tokens_per_round(self.per_position, gamma))
        a, b = self._beta()
        k = np.arange(gamma)
        return 1.0 + float(np.sum(np.cumprod((a + k) / (a + b + k))))

    def traits(self, rng: np.random.Generator, count: int) -> Floats:
        """One trait per sequence."""
        if self.recorded:
            return rng.integers(len(self.recorded), size=count).astype(float)
        if self.spread:
            return rng.beta(*self._beta(), size=count)
        return np.zeros(count)

    def accepted(
        self, rng: np.random.Generator, gamma: int, traits: Floats, rounds_done: Counts
    ) -> Counts:
        """Accepted drafts in one round of each sequence, 0 to γ, with the shape of `traits`."""
        if gamma == 0:
            return np.zeros(traits.shape, np.int64)
        if self.recorded:
            trace = np.asarray(self.recorded, np.int64)
            at = (traits.astype(np.int64) + rounds_done) % trace.size
            return np.asarray(np.minimum(trace[at], gamma), np.int64)
        chance = rng.random(traits.shape)
        if self.spread:
            with np.errstate(divide="ignore"):
                run = np.log(chance) / np.log(np.clip(traits, 1e-300, 1.0 - 1e-16))
            return np.minimum(run, gamma).astype(np.int64)
        last = len(self.per_position) - 1
        reached = np.cumprod([self.per_position[min(i, last)] for i in range(gamma)])
        return np.asarray(gamma - np.searchsorted(reached[::-1], chance, side="right"), np.int64)

    def rounds_to_finish(
        self, rng: np.random.Generator, gamma: int, traits: Floats, tokens: Counts
    ) -> Counts:
        """Rounds until each sequence has its `tokens`; of many tokens, drawn as sums of rounds."""
        if gamma == 0:
            return tokens.copy()
        rounds, left = self._first_rounds(rng, gamma, traits, tokens)
        open_ = np.flatnonzero(left > 0)
        while open_.size:
            width = int(np.clip(left[open_].mean() / self.mean_tokens(gamma), 1, _ROUNDS_AT_ONCE))
            before = rounds[open_][:, None] + np.arange(width)
            each = np.broadcast_to(traits[open_][:, None], before.shape)
            total = np.cumsum(1 + self.accepted(rng, gamma, each, before), axis=1)
            short = np.sum(total < left[open_][:, None], axis=1)
            rounds[open_] += np.minimum(short + 1, width)
            left[open_] -= total[:, -1]
            open_ = open_[short == width]
        return rounds

    def _first_rounds(
        self, rng: np.random.Generator, gamma: int, traits: Floats, tokens: Counts
    ) -> tuple[Counts, Counts]:
        """Rounds of sequences with many tokens, and the tokens that they leave."""
        rounds, left = np.zeros_like(tokens), tokens.copy()
        if self.recorded:
            cycle = 1 + np.minimum(self.recorded, gamma)
            cycles = np.maximum(tokens - 1, 0) // cycle.sum()
            return cycles * cycle.size, tokens - cycles * cycle.sum()
        least, most = max(_MANY_TOKENS, 64 * gamma), max(1, _SUM_CELLS // (gamma + 1))
        while (many := np.flatnonzero(left > least)[:most]).size:
            sure = (left[many] - 1) // (gamma + 1)  # none of these rounds is the last
            accepted = rng.multinomial(sure, self._shares(gamma, traits[many]))
            rounds[many] += sure
            left[many] -= accepted @ np.arange(1, gamma + 2)
        return rounds, left

    def _shares(self, gamma: int, traits: Floats) -> Floats:
        """Probability of 0 to γ accepted drafts, of shape (sequences or 1, γ + 1)."""
        alphas = traits[:, None] if self.spread else np.array([self.per_position])
        last = alphas.shape[1] - 1
        reached = np.cumprod(alphas[:, np.minimum(np.arange(gamma), last)], axis=1)
        return -np.diff(reached, axis=1, prepend=1.0, append=0.0)

    def _beta(self) -> tuple[float, float]:
        alpha = self.per_position[0]
        size = alpha * (1.0 - alpha) / self.spread**2 - 1.0
        return alpha * size, (1.0 - alpha) * size


def scenario_acceptance(
    scenario: Scenario, *, spread: float = 0.0, recorded: tuple[int, ...] = ()
) -> AcceptanceProcess:
    """The process for a scenario's acceptance, as given or from its acceptance curve.

    Raises `ConfigError` if the scenario's acceptance is unknown, or does not allow the spread.
    """
    if recorded or scenario.plan.draft == "none":
        return AcceptanceProcess(recorded=recorded)
    if scenario.acceptance is not None:
        return AcceptanceProcess(per_position=scenario.acceptance.per_position, spread=spread)
    alpha = float(estimate(scenario, gamma=1).alpha)
    if np.isnan(alpha):
        raise ConfigError(
            "the acceptance of this draft choice was not measured; state it with --acceptance"
        )
    return AcceptanceProcess(per_position=(alpha,), spread=spread)
