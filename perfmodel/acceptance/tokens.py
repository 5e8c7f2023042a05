"""Acceptance: from the probability that a draft is accepted to the tokens per round.

Three quantities are easily confused: `alpha` (probability that a draft is accepted if all earlier
ones were), `accepted_fraction` (accepted over proposed drafts) and `accepted_drafts` (mean per
round, without the target's token). Ω, in code `tokens_per_round`, is `accepted_drafts + 1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfmodel._typing import Floats
from perfmodel.errors import ConfigError
from perfmodel.specs.labels import Origin

TREND = 0.1  # assumed bound on the relative change of acceptance from one position to the next
MOST_DRAFTS = 1024  # limit of the sums in this module; plans are limited to `specs.draft.MAX_GAMMA`


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """Conditional acceptance per position: P(draft i accepted | all earlier ones were).

    The last value also applies to all later positions, so one value means i.i.d. acceptance.
    `low` and `high` are the interval of `alpha`, the mean; both equal it if none is known, and
    `shifted(low - alpha)` is the pessimistic case. Raises `ConfigError` if a value is not in
    [0, 1], or `alpha` is outside the interval.
    """

    per_position: tuple[float, ...]
    low: float
    high: float
    origin: Origin
    source: str  # model, text, temperature and citation, if known

    def __post_init__(self) -> None:
        if not self.per_position:
            raise ConfigError("acceptance needs at least one value; give alpha or a list of them")
        for value in (*self.per_position, self.low, self.high):
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"acceptance={value!r} is not a probability; use 0 to 1")
        if not self.low <= self.alpha <= self.high:
            raise ConfigError(
                f"acceptance interval {self.low:g} to {self.high:g} does not contain the mean "
                f"acceptance {self.alpha:g}; widen it"
            )

    @property
    def alpha(self) -> float:
        """Mean of `per_position`, which is α if acceptance is i.i.d."""
        if len(set(self.per_position)) == 1:
            return self.per_position[0]
        return float(np.mean(self.per_position))

    @classmethod
    def from_alpha(
        cls,
        alpha: float,
        *,
        low: float | None = None,
        high: float | None = None,
        origin: Origin = Origin.GIVEN,
        source: str = "",
    ) -> Self:
        """I.i.d. acceptance; `low` and `high` default to `alpha`."""
        return cls(
            per_position=(float(alpha),),
            low=float(alpha if low is None else low),
            high=float(alpha if high is None else high),
            origin=origin,
            source=source,
        )

    @classmethod
    def from_per_position(
        cls, per_position: Sequence[float], *, origin: Origin = Origin.GIVEN, source: str = ""
    ) -> Self:
        """One conditional acceptance per draft position; the last also applies to later ones."""
        values = tuple(float(value) for value in per_position)
        mean = values[0] if len(set(values)) == 1 else float(np.mean(values)) if values else 0.0
        return cls(per_position=values, low=mean, high=mean, origin=origin, source=source)

    @classmethod
    def from_tokens_per_round(cls, tokens: float, gamma: int) -> Self:
        """The i.i.d. α that gives `tokens`, from 1 to γ+1, per round of `gamma` drafts."""
        _check_gamma(gamma, least=1)
        if not 1.0 <= tokens <= gamma + 1.0:
            raise ConfigError(
                f"tokens_per_round={tokens:g} is not possible at gamma={gamma}; a round yields "
                f"1 to {gamma + 1} tokens, including the target's token"
            )
        return cls.from_alpha(float(alpha_for_tokens_per_round(tokens, gamma)))

    @classmethod
    def from_mean(cls, tokens: float, gamma: int, *, origin: Origin, source: str) -> Self:
        """As `from_tokens_per_round`, with an interval for the unknown dependence on position.

        It is that of the mean rate if each rate differs from the previous one by up to `TREND`.
        """
        alpha = cls.from_tokens_per_round(tokens, gamma).alpha
        trends = (1.0 - TREND, 1.0 / (1.0 - TREND))
        low, high = (_mean_rate(tokens, gamma, trend) for trend in trends)
        return cls.from_alpha(
            alpha, low=min(low, alpha), high=max(high, alpha), origin=origin, source=source
        )

    @classmethod
    def from_accepted_fraction(cls, fraction: float, gamma: int) -> Self:
        """The i.i.d. α at which `fraction` of the proposed drafts is accepted."""
        if not 0.0 <= fraction <= 1.0:
            raise ConfigError(f"accepted_fraction={fraction!r} is not a fraction; use 0 to 1")
        return cls.from_tokens_per_round(1.0 + fraction * gamma, gamma)

    @classmethod
    def from_accepted_drafts(cls, mean: float, gamma: int) -> Self:
        """The i.i.d. α at which a round accepts `mean` drafts, without the target's token."""
        if not 0.0 <= mean <= gamma:
            raise ConfigError(
                f"accepted_drafts={mean!r} is not possible at gamma={gamma}; use 0 to {gamma}"
            )
        return cls.from_tokens_per_round(1.0 + mean, gamma)

    def shifted(self, delta: float) -> Self:
        """Every position moved by `delta` and clipped to [0, 1], without an interval."""
        moved = [min(1.0, max(0.0, value + delta)) for value in self.per_position]
        return self.from_per_position(moved, origin=self.origin, source=self.source)


# ---- tokens per round -------------------------------------------------------------------------


def tokens_per_round(acceptance: Acceptance | Sequence[float], gamma: ArrayLike) -> Floats:
    """Ω: mean tokens per round of `gamma` drafts, including the target's token.

    Ω = Σ_{k=0..γ} Π_{i<k} α_i (Leviathan et al. 2023, eq. 1, for α that varies by position). The
    sum is stable at α = 1, where the closed form is 0/0. The result has the shape of `gamma`.
    Raises `ConfigError` if a value is not in [0, 1] or `gamma` is negative, fractional or above
    1,024.
    """
    rounds = _check_gamma(gamma)
    deepest = int(rounds.max(initial=0))
    reached = np.cumprod(_extended(_positions(acceptance), deepest))
    table = np.concatenate([[1.0], 1.0 + np.cumsum(reached)])
    return np.asarray(table[rounds], dtype=np.float64)


def tokens_per_round_iid(alpha: ArrayLike, gamma: ArrayLike) -> Floats:
    """Ω = (1 - α^(γ+1)) / (1 - α) for i.i.d. acceptance; `alpha` and `gamma` broadcast.

    Evaluated as 1 + α + ... + α^γ by Horner's rule, which is exact at γ = 0, α = 0 and α = 1, and
    non-decreasing in α. Raises a `ConfigError` as `tokens_per_round` does.
    """
    chance = _check_alpha(alpha)
    rounds = _check_gamma(gamma)
    table = np.ones((int(rounds.max(initial=0)) + 1, chance.size))
    for k in range(1, len(table)):
        table[k] = 1.0 + chance.ravel() * table[k - 1]
    shape = np.broadcast_shapes(chance.shape, rounds.shape)
    column = np.broadcast_to(np.arange(chance.size).reshape(chance.shape), shape)
    return np.asarray(table[np.broadcast_to(rounds, shape), column], dtype=np.float64)


def accepted_distribution(acceptance: Acceptance | Sequence[float], gamma: int) -> Floats:
    """P(exactly k drafts accepted) for k = 0 ... γ, of shape (γ+1,)."""
    _check_gamma(gamma)
    chances = _extended(_positions(acceptance), gamma)
    reached = np.concatenate([[1.0], np.cumprod(chances)])
    return np.asarray(reached * np.append(1.0 - chances, 1.0), dtype=np.float64)


def alpha_for_tokens_per_round(tokens: ArrayLike, gamma: ArrayLike) -> Floats:
    """The i.i.d. α at which a round yields `tokens`: the inverse of `tokens_per_round_iid`.

    With `tokens = round_s / target_step_s` this is the break-even α. Ω is convex and increasing in
    α, so Newton's method converges from an upper bound without overshooting.

    The arguments broadcast. The result is 0 where `tokens` is at most 1, inf where it exceeds γ+1,
    which no α yields, and NaN where it is NaN.
    """
    rounds = _check_gamma(gamma)
    wanted, rounds = np.broadcast_arrays(np.asarray(tokens, dtype=np.float64), rounds)
    solvable = (wanted > 1.0) & (wanted <= rounds + 1.0)
    target = np.where(solvable, wanted, 1.0)
    power = 2.0 / np.maximum(rounds, 1)
    # 1 + α <= Ω, and (γ+1) α^(γ/2) <= Ω by the inequality of means; both bound α from above.
    alpha = np.minimum(target - 1.0, (target / (rounds + 1.0)) ** power)
    for _ in range(64):
        value, slope = _horner(alpha, rounds)
        step = np.where(solvable, (value - target) / np.maximum(slope, 1.0), 0.0)
        alpha = np.clip(alpha - step, 0.0, 1.0)
        if np.all(np.abs(step) <= 1e-15):
            break
    alpha = np.where(wanted <= 1.0, 0.0, np.where(solvable, alpha, np.inf))
    return np.asarray(np.where(np.isnan(wanted), np.nan, alpha), dtype=np.float64)


def _mean_rate(tokens: float, gamma: int, trend: float) -> float:
    """Mean of the rates that yield `tokens` per round if each is `trend` times the previous one."""
    powers = trend ** np.arange(gamma)
    low, high = 0.0, 1.0 / float(powers.min())
    for _ in range(50):
        first = 0.5 * (low + high)
        rates = np.minimum(first * powers, 1.0)
        if 1.0 + np.cumprod(rates).sum() < tokens:
            low = first
        else:
            high = first
    return float(rates.mean())


def _horner(alpha: Floats, gamma: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Ω and its derivative with respect to α, for arrays of equal shape."""
    value, slope = np.ones(alpha.shape), np.zeros(alpha.shape)
    for k in range(int(gamma.max(initial=0))):
        more = k < gamma
        slope = np.where(more, value + alpha * slope, slope)
        value = np.where(more, 1.0 + alpha * value, value)
    return value, slope


def _positions(acceptance: Acceptance | Sequence[float]) -> Floats:
    if isinstance(acceptance, Acceptance):
        return np.asarray(acceptance.per_position, dtype=np.float64)
    values = _check_alpha(acceptance)
    if values.ndim != 1 or not values.size:
        raise ConfigError("per-position acceptance must be a list of at least one value")
    return values


def _extended(values: Floats, gamma: int) -> Floats:
    return values[np.minimum(np.arange(gamma), values.size - 1)]


def _check_alpha(alpha: ArrayLike) -> Floats:
    values = np.asarray(alpha, dtype=np.float64)
    wrong = ~((values >= 0.0) & (values <= 1.0))
    if wrong.any():
        raise ConfigError(f"alpha={values[wrong].flat[0]:g} is not a probability; use 0 to 1")
    return values


def _check_gamma(gamma: ArrayLike, *, least: int = 0) -> NDArray[np.int64]:
    values = np.asarray(gamma)
    wrong = ~((values >= least) & (values <= MOST_DRAFTS) & (values == np.floor(values)))
    if wrong.any():
        raise ConfigError(
            f"gamma={values[wrong].flat[0]:g} is not a number of drafts; "
            f"use a whole number from {least} to {MOST_DRAFTS:,}"
        )
    return values.astype(np.int64)
