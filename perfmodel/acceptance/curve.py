"""α as a curve over KV budget and context, for each (target, draft, draft policy).

A draft that reads only part of the cache loses acceptance:

    acceptance_loss = level · (1 - (b/L)^fullness_exponent) · (L / 32,000)^context_exponent
                    · ((b + offset) / (512 + offset))^-budget_exponent
    α       = ceiling · (1 - acceptance_loss)

Here b is the KV budget, L the context, and offset = `budget_offset` the number of tokens below
which the loss stops following a power law. Curves fitted to few budgets and contexts have offset 0
and fullness exponent 1. No exponent is negative, so α is non-decreasing in the budget and
non-increasing in the context; it equals `ceiling` if the budget is the whole context. The ceiling
is 1 for a self-draft, which is then the target itself. For a standalone draft it is the agreement
of the two models, below 1, and the budget matters little.

The 90 % interval follows from the standard error of ln(1 - α):

    σ² = sigma² + (sigma_budget · e_b)² + (sigma_context · e_L)²

- `sigma` combines the run-to-run noise of the published tables (±0.03 in α, taken as a 90 % range
  at the mean loss of the points) with the rms residual of the fit.
- e_b and e_L are the log-distances of budget and context from the measured range, 0 inside it.
  `sigma_budget` is the spread of the budget exponent between models (half the exponent for a
  standalone draft); `sigma_context` is the rms of the context exponent.
- If the source does not state the budget, `sigma_budget` times ln 2 is added.
- A curve borrowed from another target adds `sigma_lent`, the rms of ln(loss) when the curve of one
  target predicts another.

The interval vanishes at the full cache and stays within [0, 1]. It is valid for text similar to the
measured text: two texts on SmolLM2-135M differ by a factor of 1.3 to 2.3 in the loss.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from math import hypot

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Bools, Floats
from perfmodel.errors import ConfigError
from perfmodel.specs.labels import Origin
from perfmodel.units import Z90

REFERENCE_CONTEXT_TOKENS = 32_000.0
REFERENCE_BUDGET_TOKENS = 512.0
MOST = 100.0  # limit of levels, exponents and standard errors


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptancePoint:
    """One measured α; `kv_budget_tokens` is None if the source does not state the budget."""

    context_tokens: float
    kv_budget_tokens: float | None = None
    alpha: float
    temperature: str
    citation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceCurve:
    """α over KV budget and context for one (target, draft, draft policy); see the module docstring.

    `origin` is "fitted" (to `points` of this choice), "borrowed" (from the target named in
    `source`) or "identity" (a self-draft with the full cache). `context_range` and `budget_range`
    are the ranges of the points. [tokens]
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
    variant: str = ""  # "base" or "instruct", the checkpoint on which it was measured, if known

    def __post_init__(self) -> None:
        name = f"acceptance curve {self.target}, {self.draft}, {self.draft_policy}"
        for key in (f.name for f in fields(self) if f.type == "float"):
            value = getattr(self, key)
            most = 1e9 if key == "budget_offset" else MOST
            if not isinstance(value, int | float) or not 0.0 <= value <= most:
                raise ConfigError(f"{name}: {key}={value!r} must be a number from 0 to {most:g}")
        if not 0.0 < self.ceiling <= 1.0:
            raise ConfigError(f"{name}: ceiling={self.ceiling!r} must be above 0 and at most 1")
        for low, high in (self.context_range, self.budget_range):
            if not 0.0 < low <= high:
                raise ConfigError(
                    f"{name}: {low!r} to {high!r} is not a valid range; use 0 < low <= high"
                )

    @property
    def lender(self) -> str:
        """The target on which a borrowed curve was measured; "" if it was measured on its own."""
        if self.origin != Origin.BORROWED:
            return ""
        return self.source.removeprefix("borrowed from ").split(",")[0]

    def alpha(self, *, kv_budget_tokens: ArrayLike, context_tokens: ArrayLike) -> Floats:
        """α in [0, ceiling] at a number of tokens that the draft reads, of all cached tokens.

        The arguments broadcast. A `ConfigError` is raised if one is not a positive number.
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

    def is_outside(self, *, kv_budget_tokens: ArrayLike, context_tokens: ArrayLike) -> Bools:
        """Where budget or context lie outside the measured range; a budget of 0 means none."""
        budget, context = np.asarray(kv_budget_tokens), np.asarray(context_tokens)
        beyond_budget = (budget < self.budget_range[0]) | (budget > self.budget_range[1])
        beyond_context = (context < self.context_range[0]) | (context > self.context_range[1])
        return np.asarray(beyond_context | ((budget > 0) & beyond_budget))

    def interval(
        self, *, kv_budget_tokens: ArrayLike, context_tokens: ArrayLike
    ) -> tuple[Floats, Floats]:
        """The 90 % interval (low, high) of `alpha`, with the broadcast shape."""
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

    def borrowed_for(self, target: str) -> AcceptanceCurve:
        """The same curve for a target on which it was not measured, with a wider interval."""
        lender = f"the {self.variant} {self.target}" if target == self.target else self.target
        return replace(
            self,
            target=target,
            origin=Origin.BORROWED,
            source=f"borrowed from {lender}, not measured on {target}: {self.source}",
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
    """Share of the full-cache acceptance that a partial cache loses; see the module docstring.

    Budgets, contexts and the offset are in tokens and broadcast; the result is in [0, 1]. A
    `ConfigError` is raised if a budget or a context is not a positive number.
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
