"""Acceptance of built-in drafts (EAGLE-3, MTP) from published mean lengths over γ.

Mean lengths Ω at γ_1 < γ_2 < ... give conditional rates position by position: the gain from γ_k to
γ_(k+1) is the chance to reach position γ_k times a + a² + ... over the positions between, with a
rate a that is taken to be constant between two published γ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from perfmodel._typing import Floats
from perfmodel.acceptance.tokens import Acceptance, alpha_for_tokens_per_round
from perfmodel.catalog._files import table
from perfmodel.catalog._schema import build_rows
from perfmodel.errors import ConfigError
from perfmodel.specs.labels import Origin


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LengthCurve:
    """Published mean tokens per round of one draft on one task, over rising γ."""

    target: str
    method: str
    draft: str  # the head's name, "" where it is part of the target or unnamed
    task: str
    source: str
    gamma: Floats
    tokens_per_round: Floats

    def __post_init__(self) -> None:
        gamma, tokens = self.gamma, self.tokens_per_round
        if gamma.shape != tokens.shape or np.any(np.diff(gamma) <= 0) or gamma[0] < 1:
            raise ConfigError("gamma must rise from 1, with one tokens_per_round each")
        if np.any(tokens < 1.0) or np.any(tokens > gamma + 1.0):
            raise ConfigError("tokens_per_round must lie between 1 and gamma+1")

    @property
    def group(self) -> tuple[str, str]:
        """Target and head: curves of one group differ by task only."""
        return self.target, self.draft


def method_acceptance(target: str, method: str) -> Acceptance | None:
    """The acceptance of a built-in draft, or None where nothing was published for the method.

    Parameters
    ----------
    target, method : str
        Catalog name of the target; name of the method as in `specs.draft_methods`.

    Returns
    -------
    Acceptance or None
        Mean rates over the published tasks of this target, with the range over tasks as interval;
        for other targets the mean over all published heads, with origin "borrowed" and their range.
        Of several heads of a target the one with the most tasks, then the longest rounds.
    """
    curves = [c for c in _curves() if c.method == method]
    if not curves:
        return None
    published = [c for c in curves if c.target == target]
    if published:
        group = max(_by_group(published).values(), key=lambda g: (len(g), _mean_length(g)))
        head = f"{group[0].draft}, " if group[0].draft else ""
        tasks = ", ".join(c.task for c in group)
        return _pooled(group, Origin.MEASURED, f"{group[0].source}: {head}{tasks}")
    targets = ", ".join(dict.fromkeys(c.target for c in curves))
    return _pooled(
        [_group_mean(group) for group in _by_group(curves).values()],
        Origin.BORROWED,
        f"mean of published {method} drafts, none of them for {target}: {targets}",
    )


def conditional_rates(gamma: Floats, tokens: Floats) -> list[float]:
    """The rate of each position up to the largest γ; see the module.

    The chance to reach a position cannot rise with the position. Gains that rise by noise are
    averaged with their neighbours (isotonic regression), which keeps the length at the largest γ.
    """
    steps = np.diff(np.concatenate([[0.0], gamma]))
    gains = _falling(np.diff(np.concatenate([[1.0], tokens])) / steps, steps) * steps
    rates: list[float] = []
    reached = 1.0
    for gain, count in zip(gains, steps.astype(int), strict=True):
        share = gain / reached if reached > 0 else 0.0
        share = min(max(share, 0.0), float(count))
        rate = min(1.0, float(alpha_for_tokens_per_round(1.0 + share, count)))
        rates += [rate] * count
        reached *= rate**count
    return rates


def _falling(values: Floats, weights: Floats) -> Floats:
    """The non-increasing values nearest to these: neighbours that rise are pooled."""
    blocks: list[list[float]] = []  # mean, weight, number of values
    for value, weight in zip(values, weights, strict=True):
        blocks.append([float(value), float(weight), 1])
        while len(blocks) > 1 and blocks[-1][0] > blocks[-2][0]:
            mean, heavy, number = blocks.pop()
            last = blocks[-1]
            last[0] = (last[0] * last[1] + mean * heavy) / (last[1] + heavy)
            last[1] += heavy
            last[2] += number
    return np.repeat([b[0] for b in blocks], [int(b[2]) for b in blocks])


def _pooled(curves: list[LengthCurve], origin: Origin, source: str) -> Acceptance:
    """Rates of the mean lengths, or mean rates where γ differ; the range of the curves' means."""
    depth = int(max(c.gamma[-1] for c in curves))
    rates = []
    for curve in curves:
        row = conditional_rates(curve.gamma, curve.tokens_per_round)
        rates.append(row + [row[-1]] * (depth - len(row)))
    mean = _group_mean(curves)
    if all(np.array_equal(c.gamma, mean.gamma) for c in curves):
        positions = conditional_rates(mean.gamma, mean.tokens_per_round)
    else:
        positions = [float(rate) for rate in np.mean(rates, axis=0)]
    pooled = Acceptance.from_per_position(positions, origin=origin)
    means = [float(np.mean(row)) for row in rates]
    low, high = min(*means, pooled.alpha), max(*means, pooled.alpha)
    return replace(pooled, low=low, high=high, source=source)


def _group_mean(group: list[LengthCurve]) -> LengthCurve:
    """One curve of a head: the mean over its tasks."""
    common = [c for c in group if np.array_equal(c.gamma, group[0].gamma)]
    mean = np.mean([c.tokens_per_round for c in common], axis=0)
    return replace(group[0], task="all", tokens_per_round=mean)


def _mean_length(group: list[LengthCurve]) -> float:
    return float(np.mean([c.tokens_per_round[-1] for c in group]))


def _by_group(curves: list[LengthCurve]) -> dict[tuple[str, str], list[LengthCurve]]:
    groups: dict[tuple[str, str], list[LengthCurve]] = {}
    for curve in curves:
        groups.setdefault(curve.group, []).append(curve)
    return groups


@cache
def _curves() -> tuple[LengthCurve, ...]:
    where = "draft_methods/published.toml"
    rows = table("draft_methods", "published").get("curves", ())
    # An empty head name is allowed here, which text of the catalog's schema is not.
    named = [{**row, "draft": row.get("draft") or "-"} for row in rows]
    return tuple(
        replace(curve, draft="" if curve.draft == "-" else curve.draft)
        for curve in build_rows(LengthCurve, named, f"{where}: curves")
    )
