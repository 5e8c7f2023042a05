"""Cells of measured acceptance: all windows of one text, context length and draft view.

A cell gives the mean acceptance with a bootstrap interval over windows, the acceptance by position,
its autocorrelation, and tokens per round under several assumptions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from calibration.acceptance.renewal import expected_ratio
from calibration.records.acceptance import LAGS, RENEWAL_GAMMAS, DraftView, Record
from perfmodel.acceptance import alpha_for_tokens_per_round, tokens_per_round_iid

Floats = NDArray[np.float64]
RESAMPLES = 1000
SUMS = (
    "rounds",
    "overlap",
    "reached",
    "passed",
    "chain",
    "agree",
    "agree_chain",
    "variance",
    "lags",
    "read_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class CellKey:
    """Text, context length and draft view of a cell."""

    text: str
    context_tokens: int
    view: DraftView


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """The sums of a cell's windows, one row per window; `Record` documents them."""

    key: CellKey
    indices: tuple[int, ...]
    rounds: Floats  # (windows,)
    overlap: Floats  # (windows, γ), like the next five
    reached: Floats
    passed: Floats
    chain: Floats
    agree: Floats
    agree_chain: Floats
    variance: Floats  # (windows,)
    lags: Floats  # (windows, lags)
    read_tokens: Floats  # (windows,)
    # (windows, RENEWAL_GAMMAS, 3): `Renewal` without its γ, NaN if a record has none
    renewal: Floats
    _weights: Floats = field(repr=False)  # (resamples, windows), rows sum to the windows

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.indices)

    @property
    def gamma(self) -> int:
        """Draft positions per round."""
        return int(self.overlap.shape[1])

    @property
    def alpha(self) -> float:
        """Mean Σ min(p, q) over all positions and windows."""
        return float(self.overlap.sum() / (self.rounds.sum() * self.gamma))

    @property
    def greedy(self) -> float:
        """Share of positions at which target and draft have the same most likely token."""
        return float(self.agree.sum() / (self.rounds.sum() * self.gamma))

    @property
    def by_position(self) -> Floats:
        """Mean Σ min(p, q) at each position."""
        return np.asarray(self.overlap.sum(0) / self.rounds.sum())

    @property
    def conditional(self) -> Floats:
        """P(accepted | all previous drafts were accepted) at each position."""
        return np.asarray(self.passed.sum(0) / np.maximum(self.reached.sum(0), 1e-12))

    def effective_alpha(self, gamma: int) -> float:
        """The i.i.d. α that yields `tokens_consecutive(gamma)`."""
        return float(alpha_for_tokens_per_round(self.tokens_consecutive(gamma), gamma))

    def interval(self, gamma: int | None = None, *, level: float = 0.9) -> tuple[float, float]:
        """Bootstrap interval over windows of `alpha`, or of `effective_alpha(gamma)`."""
        ends = [(1.0 - level) / 2.0, (1.0 + level) / 2.0]
        low, high = np.quantile(self._resampled(gamma), ends)
        return float(low), float(high)

    def standard_error(self, gamma: int | None = None) -> float:
        """Bootstrap standard error of `alpha`, or of `effective_alpha(gamma)`."""
        return float(np.std(self._resampled(gamma)))

    @property
    def lag_correlations(self) -> Floats:
        """Autocorrelation of Σ min(p, q) about the mean of each window, `LAGS` tokens apart."""
        return np.asarray(self.lags.sum(0) / max(float(self.variance.sum()), 1e-12))

    @property
    def window_spread(self) -> float:
        """Standard deviation of α between windows, without the noise within windows."""
        means = self.overlap.sum(1) / (self.rounds * self.gamma)
        if self.windows < 2:
            return 0.0
        tokens = self.rounds * self.gamma
        correlation = [float(c) for c in self.lag_correlations]
        # Correlation increases the variance of the mean by the factor 1 + 2 Σ ρ.
        total = float(np.interp(np.arange(1, 17), LAGS, correlation).sum())
        inflation = max(1.0, 1.0 + 2.0 * total)
        noise = float(np.mean(self.variance / tokens)) * inflation
        return float(np.sqrt(max(0.0, np.var(means, ddof=1) - noise)))

    def tokens_iid(self, gamma: int) -> float:
        """Ω from the mean α if drafts are accepted independently."""
        return float(tokens_per_round_iid(self.alpha, gamma))

    def tokens_chained(self, gamma: int) -> float:
        """Ω along the text: products of Σ min(p, q), which include correlation within rounds."""
        self._check(gamma)
        return 1.0 + float(self.chain[:, :gamma].sum() / self.rounds.sum())

    def tokens_consecutive(self, gamma: int) -> float:
        """Ω along the text for rounds that start where the previous one ended, as in an engine."""
        return max(1.0, self.tokens_chained(gamma) * self.consecutive_ratio(gamma))

    def consecutive_ratio(self, gamma: int) -> float:
        """Tokens per consecutive round over tokens per round that starts at a random token.

        1 for independent draws. Windows are weighted by their tokens, like sequences of equal
        length. The ratio is interpolated between the γ of the records and constant beyond them; for
        records without consecutive rounds it is computed from the autocorrelation.
        """
        if np.isnan(self.renewal).all():
            return expected_ratio(
                gamma,
                alpha=self.alpha,
                variance=float(self.variance.mean()),
                lags=dict(zip(LAGS, self.lag_correlations.tolist(), strict=True)),
                spread=self.window_spread,
            )
        begun, made, even = np.nansum(self.renewal, axis=0).T
        windows = np.sum(~np.isnan(self.renewal[..., 0]), axis=0)
        measured = windows > 0
        ratios = made[measured] / begun[measured] / (even[measured] / windows[measured])
        gammas = np.array(RENEWAL_GAMMAS)[measured]
        return float(np.interp(gamma, [0, *gammas], [1.0, *ratios]))

    def tokens_weighted(self, gamma: int) -> float:
        """Ω with positions weighted by the chance to reach them; exact for text sampled from p."""
        self._check(gamma)
        return 1.0 + float(self.passed[:, :gamma].sum() / self.rounds.sum())

    def tokens_greedy(self, gamma: int) -> float:
        """Ω of greedy rounds along the text, from unbroken runs of equal argmaxes."""
        self._check(gamma)
        return 1.0 + float(self.agree_chain[:, :gamma].sum() / self.rounds.sum())

    def only(self, indices: Iterable[int]) -> Cell | None:
        """The cell restricted to some windows; None if it has none of them."""
        wanted = set(indices)
        rows = [row for row, index in enumerate(self.indices) if index in wanted]
        if not rows:
            return None
        picked = {name: getattr(self, name)[rows] for name in (*SUMS, "renewal")}
        chosen = tuple(self.indices[row] for row in rows)
        return Cell(self.key, chosen, **picked, _weights=_resamples(len(rows)))

    def _check(self, gamma: int) -> None:
        if not 0 <= gamma <= self.gamma:
            raise ValueError(f"gamma={gamma} exceeds the {self.gamma} positions measured")

    def _resampled(self, gamma: int | None) -> Floats:
        rounds = self._weights @ self.rounds
        if gamma is None:
            return np.asarray(self._weights @ self.overlap.sum(1) / (rounds * self.gamma))
        tokens = 1.0 + self._weights @ self.chain[:, :gamma].sum(1) / rounds
        tokens = np.maximum(1.0, tokens * self.consecutive_ratio(gamma))
        return alpha_for_tokens_per_round(tokens, gamma)


def cells(records: Iterable[Record]) -> list[Cell]:
    """The cells of some records, sorted."""
    grouped: dict[CellKey, list[Record]] = {}
    for record in records:
        key = CellKey(
            text=record.window.text, context_tokens=record.window.context_tokens, view=record.view
        )
        grouped.setdefault(key, []).append(record)
    return [_cell(key, grouped[key]) for key in sorted(grouped, key=_order)]


def _order(key: CellKey) -> tuple[object, ...]:
    view = key.view
    numbers = (view.kv_budget, view.sink, view.snapkv_window, view.snapkv_pool)
    filled = tuple(-1 if number is None else number for number in numbers)
    return (view.page_tokens, key.text, key.context_tokens, view.policy, *filled, view.positions)


def _cell(key: CellKey, records: Sequence[Record]) -> Cell:
    rows = sorted(records, key=lambda record: record.window.index)

    def column(name: str) -> Floats:
        return np.array([getattr(record, name) for record in rows], dtype=np.float64)

    return Cell(
        key,
        tuple(record.window.index for record in rows),
        **{name: column(name) for name in SUMS},
        renewal=np.array([_renewal(record) for record in rows]),
        _weights=_resamples(len(rows)),
    )


def _renewal(record: Record) -> Floats:
    by_gamma = {renewal.gamma: renewal[1:] for renewal in record.renewal}
    return np.array([by_gamma.get(gamma, (np.nan,) * 3) for gamma in RENEWAL_GAMMAS])


def _resamples(windows: int) -> Floats:
    """Bootstrap counts (resamples, windows); the same for all cells with this many windows."""
    source = np.random.default_rng(0)
    drawn = source.multinomial(windows, np.full(windows, 1.0 / windows), size=RESAMPLES)
    return np.asarray(drawn, dtype=np.float64)


def default_of(view: DraftView) -> DraftView:
    """The view with the engine's default settings of its policy (runtime/bench/plan.py)."""
    if view.policy == "streamingllm":
        return replace(view, sink=16, positions="absolute")
    if view.policy == "snapkv":
        return replace(view, snapkv_window=32, snapkv_pool=1)
    return view
