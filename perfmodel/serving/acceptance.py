"""`AcceptanceProcess`: how many drafts the rounds of each sequence accept, drawn by seed.

Each sequence has a trait, a number drawn once: its α where α differs between sequences, or its
place in a recorded trace. Given the trait, all sequences are independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perfmodel.acceptance.tokens import Acceptance, tokens_per_round
from perfmodel.errors import ConfigError
from perfmodel.scenario import Scenario
from perfmodel.speculation.round import estimate

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
_ROUNDS_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceProcess:
    """Where accepted drafts come from.

    Attributes
    ----------
    per_position : tuple of float
        Conditional acceptance of each draft position; the last holds for all later ones.
    spread : float
        Standard deviation of α between sequences (a Beta distribution); 0 for one α.
    recorded : tuple of int
        Accepted drafts of consecutive rounds; replaces the two above. A sequence starts at a random
        round of it and goes on cyclically, so runs of bad rounds stay together.
    """

    per_position: tuple[float, ...] = (0.0,)
    spread: float = 0.0
    recorded: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        alpha = self.per_position[0]
        if self.spread and len(set(self.per_position)) > 1:
            raise ConfigError("acceptance_spread goes with one alpha, not with one per position")
        limit = (alpha * (1.0 - alpha)) ** 0.5
        if self.spread and not 0.0 < self.spread < limit:
            raise ConfigError(
                f"acceptance_spread={self.spread:g} is outside 0 to {limit:.3g}, the most that "
                f"alpha={alpha:g} allows"
            )
        if any(count < 0 for count in self.recorded):
            raise ConfigError("a recorded round cannot accept less than 0 drafts")

    def mean_tokens(self, gamma: int) -> float:
        """Mean tokens of a round over a long time, of sequences that never end."""
        if self.recorded:
            return 1.0 + float(np.minimum(self.recorded, gamma).mean())
        if not self.spread:
            return float(tokens_per_round(self.per_position, gamma))
        a, b = self._beta()
        k = np.arange(gamma)
        return 1.0 + float(np.sum(np.cumprod((a + k) / (a + b + k))))

    def traits(self, rng: np.random.Generator, count: int) -> Array:
        """One trait per sequence."""
        if self.recorded:
            return rng.integers(len(self.recorded), size=count).astype(float)
        if self.spread:
            return rng.beta(*self._beta(), size=count)
        return np.zeros(count)

    def accepted(
        self, rng: np.random.Generator, gamma: int, traits: Array, rounds_done: Counts
    ) -> Counts:
        """Accepted drafts of one round of each sequence, 0 to γ, of the shape of `traits`."""
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
        self, rng: np.random.Generator, gamma: int, traits: Array, tokens: Counts
    ) -> Counts:
        """Rounds until each sequence has its `tokens`: draws of all rounds, none approximated."""
        if gamma == 0:
            return tokens.copy()
        rounds, left = np.zeros_like(tokens), tokens.copy()
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

    def _beta(self) -> tuple[float, float]:
        alpha = self.per_position[0]
        size = alpha * (1.0 - alpha) / self.spread**2 - 1.0
        return alpha * size, (1.0 - alpha) * size


def scenario_acceptance(
    scenario: Scenario, *, spread: float = 0.0, recorded: tuple[int, ...] = ()
) -> AcceptanceProcess:
    """The process of a scenario's acceptance, as given or by the catalog's curve at its context.

    Raises
    ------
    ConfigError
        If the scenario speculates and its acceptance is unknown, or the spread is more than its α
        allows.
    """
    if recorded or scenario.plan.draft == "none":
        return AcceptanceProcess(recorded=recorded)
    given = scenario.acceptance or _of_curve(scenario)
    return AcceptanceProcess(per_position=given.per_position, spread=spread)


def _of_curve(scenario: Scenario) -> Acceptance:
    alpha = float(estimate(scenario, gamma=1).alpha)
    if np.isnan(alpha):
        raise ConfigError(
            "the acceptance of this draft choice was not measured; state it with --acceptance"
        )
    return Acceptance.from_alpha(alpha)
