"""α as a curve over KV budget and context, per (target, draft, draft policy).

The loss of a draft that reads only a part of the cache:

    acceptance_loss = level · (1 - (b/L)^fullness_exponent) · (L / 32,000)^context_exponent
                    · ((b + offset) / (512 + offset))^-budget_exponent
    α       = ceiling · (1 - acceptance_loss)

with b the KV budget, L the context and offset = `budget_offset`, the tokens below which a smaller
budget no longer costs by the power law. Curves fitted on too few budgets and contexts have offset 0
and fullness exponent 1. α never falls as the budget grows, never rises as the context grows (no
exponent is negative), and reaches `ceiling` where the budget is the whole context. A self-draft has
ceiling 1: with the full cache it *is* the target. A standalone draft has a ceiling below 1, the
agreement of the two models, and loses little by its budget.

Intervals (90 %). The logarithm of the loss 1 - α carries a standard error

    σ² = sigma² + (sigma_budget · e_b)² + (sigma_context · e_L)²

- `sigma` joins the run-to-run noise of the published tables (±0.03 in α, taken as a 90 % range, at
  the mean loss of the points) and the rms residual of the fit;
- e_b, e_L are the natural logarithms by which budget and context leave the measured range, 0
  inside; `sigma_budget` is how far the budget exponent differed between the models it was taken
  from (half the exponent for a standalone draft), `sigma_context` the rms of the context exponent;
- a budget that the source leaves unstated adds `sigma_budget` times ln 2;
- a borrowed curve, one measured on another target, adds `sigma_lent`, the rms of ln(loss) when one
  target's curve predicts another.

In the loss the interval shrinks to nothing at the full cache and cannot leave [0, 1]. It holds for
text like the measured one: two texts on SmolLM2-135M differ by a factor of 1.3 to 2.3 in the loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import hypot

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Bools, Floats
from perfmodel.acceptance.tokens import Acceptance
from perfmodel.errors import ConfigError
from perfmodel.specs.labels import Origin
from perfmodel.units import Z90

REFERENCE_CONTEXT_TOKENS = 32_000.0
REFERENCE_BUDGET_TOKENS = 512.0
NUMBERS = (
    "ceiling",
    "level",
    "context_exponent",
    "budget_exponent",
    "budget_offset",
    "fullness_exponent",
    "sigma",
    "sigma_budget",
    "sigma_context",
    "sigma_lent",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptancePoint:
    """One published α; `kv_budget_tokens` is None where the source does not state the budget."""

    context_tokens: float
    kv_budget_tokens: float | None = None
    alpha: float
    temperature: str
    citation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceCurve:
    """α over KV budget and context for one (target, draft, draft policy); see the module.

    `origin` is "fitted" (on `points` of this very choice), "borrowed" (another target's, named in
    `source`) or "identity" (a self-draft with the full cache). `context_range` and `budget_range`
    are the tokens that the points span.
    """

    target: str
    draft: str
    draft_policy: str
    text: str
    origin: Origin
    source: str
    ceiling: float
    level: float
    context_exponent: float
    budget_exponent: float
    sigma: float
    sigma_budget: float
    sigma_context: float
    sigma_lent: float
    context_range: tuple[float, float]
    budget_range: tuple[float, float]
    points: tuple[AcceptancePoint, ...] = ()
    budget_offset: float = 0.0
    fullness_exponent: float = 1.0

    def __post_init__(self) -> None:
        name = f"acceptance curve {self.target}, {self.draft}, {self.draft_policy}"
        for key in NUMBERS:
            value = getattr(self, key)
            if not isinstance(value, int | float) or not 0.0 <= value < np.inf:
                raise ConfigError(f"{name}: {key}={value!r} must be a number of 0 or more")
        if not 0.0 < self.ceiling <= 1.0:
            raise ConfigError(f"{name}: ceiling={self.ceiling!r} must be above 0 and at most 1")
        for low, high in (self.context_range, self.budget_range):
            if not 0.0 < low <= high:
                raise ConfigError(f"{name}: the range {low!r} to {high!r} is empty")

    def alpha(self, *, kv_budget_tokens: ArrayLike, context_tokens: ArrayLike) -> Floats:
        """α at a budget and a context.

        Parameters
        ----------
        kv_budget_tokens, context_tokens : array, mutually broadcastable
            Cached tokens that the draft reads; cached tokens in all. A budget at or above the
            context means the full cache. [tokens]

        Returns
        -------
        array of the broadcast shape, in [0, ceiling].

        Raises
        ------
        ConfigError
            If a budget or a context is not a positive number.
        """
        loss = acceptance_loss(
            kv_budget_tokens=kv_budget_tokens,
            context_tokens=context_tokens,
            level=self.level,
            context_exponent=self.context_exponent,
            budget_exponent=self.budget_exponent,
            budget_offset=self.budget_offset,
            fullness_exponent=self.fullness_exponent,
        )
        return self.ceiling * (1.0 - loss)

    def interval(
        self, *, kv_budget_tokens: ArrayLike, context_tokens: ArrayLike
    ) -> tuple[Floats, Floats]:
        """The 90 % interval (low, high) of `alpha`, of the broadcast shape; see the module."""
        loss = 1.0 - self.alpha(kv_budget_tokens=kv_budget_tokens, context_tokens=context_tokens)
        beyond_budget = _log_distance(kv_budget_tokens, self.budget_range)
        beyond_context = _log_distance(context_tokens, self.context_range)
        variance = (
            self.sigma**2
            + (self.sigma_budget * beyond_budget) ** 2
            + (self.sigma_context * beyond_context) ** 2
        )
        factor = np.exp(np.minimum(Z90 * np.sqrt(variance), 50.0))
        return 1.0 - np.minimum(loss * factor, 1.0), 1.0 - loss / factor

    def measured(self, *, kv_budget_tokens: ArrayLike, context_tokens: ArrayLike) -> Bools:
        """Where budget and context lie inside the measured ranges (nowhere for a borrowed one)."""
        outside = _log_distance(kv_budget_tokens, self.budget_range) + _log_distance(
            context_tokens, self.context_range
        )
        return np.asarray((outside == 0.0) & (self.origin != Origin.BORROWED), dtype=np.bool_)

    def acceptance(self, *, kv_budget_tokens: float, context_tokens: float) -> Acceptance:
        """α with its interval, origin and source at one budget and context."""
        at = {"kv_budget_tokens": kv_budget_tokens, "context_tokens": context_tokens}
        low, high = self.interval(**at)
        alpha = float(self.alpha(**at))
        return Acceptance.from_alpha(
            alpha,
            low=min(alpha, float(low)),
            high=max(alpha, float(high)),
            origin=self.origin,
            source=self.source,
        )

    def borrowed_for(self, target: str) -> AcceptanceCurve:
        """The same curve for a target that it was not measured on, with a wider interval."""
        return replace(
            self,
            target=target,
            origin=Origin.BORROWED,
            source=f"borrowed from {self.target}, not measured on {target}: {self.source}",
            sigma=hypot(self.sigma, self.sigma_lent),
        )


def acceptance_loss(
    *,
    kv_budget_tokens: ArrayLike,
    context_tokens: ArrayLike,
    level: float,
    context_exponent: float,
    budget_exponent: float,
    budget_offset: float = 0.0,
    fullness_exponent: float = 1.0,
) -> Floats:
    """Share of the full-cache acceptance that a partial cache loses; the module's formula.

    Budgets, contexts and the offset are tokens and broadcast; the result is clipped to [0, 1]. The
    exponents are at least 0. `ConfigError` if a budget or context is not a positive number.
    """
    budget = _check_tokens("kv_budget", kv_budget_tokens)
    context = _check_tokens("context", context_tokens)
    unread = 1.0 - np.minimum(budget / context, 1.0) ** fullness_exponent
    growth = (context / REFERENCE_CONTEXT_TOKENS) ** context_exponent
    scale = (budget + budget_offset) / (REFERENCE_BUDGET_TOKENS + budget_offset)
    relief = scale**-budget_exponent
    return np.asarray(np.minimum(level * unread * growth * relief, 1.0), dtype=np.float64)


def _log_distance(tokens: ArrayLike, span: tuple[float, float]) -> Floats:
    values = _check_tokens("tokens", tokens)
    return np.asarray(np.abs(np.log(values / np.clip(values, *span))), dtype=np.float64)


def _check_tokens(what: str, tokens: ArrayLike) -> Floats:
    values = np.asarray(tokens, dtype=np.float64)
    wrong = ~((values > 0.0) & (values < np.inf))
    if wrong.any():
        raise ConfigError(f"{what}={values[wrong].flat[0]:g} must be a positive number of tokens")
    return values
