"""Acceptance of built-in drafts (EAGLE-3, MTP) from published tokens per round at several γ.

Tokens per round Ω at γ_1 < γ_2 < ... determine conditional rates per position. The gain of γ_(k+1)
over γ_k is the probability that γ_k drafts are accepted, times a + a² + ... over the positions in
between, where the rate a is assumed to be constant between two published γ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np

from perfmodel._typing import Floats
from perfmodel.acceptance.tokens import Acceptance, alpha_for_tokens_per_round
from perfmodel.catalog._files import table
from perfmodel.catalog._schema import build_rows
from perfmodel.errors import ConfigError
from perfmodel.specs.labels import Origin
from perfmodel.specs.model import checkpoint_variant


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LengthCurve:
    """Published mean tokens per round of one draft on one task, for ascending γ."""

    target: str
    method: str
    draft: str  # name of the head; "" if it is part of the target or has no name
    task: str
    source: str
    gamma: Floats
    tokens_per_round: Floats

    def __post_init__(self) -> None:
        gamma, tokens = self.gamma, self.tokens_per_round
        if gamma.shape != tokens.shape or np.any(np.diff(gamma) <= 0) or gamma[0] < 1:
            raise ConfigError(
                "gamma must ascend from at least 1, with one value of tokens_per_round for each"
            )
        if np.any(tokens < 1.0) or np.any(tokens > gamma + 1.0):
            raise ConfigError("tokens_per_round must be from 1 to gamma+1")

    @property
    def group(self) -> tuple[str, str]:
        """Target and head; curves of one group differ only in the task."""
        return self.target, self.draft


@lru_cache(maxsize=256)  # names of targets may be those of users
def method_acceptance(target: str, method: str, variant: str = "") -> Acceptance | None:
    """The acceptance of a built-in draft, or None if none was published for the method.

    It is the mean over the published tasks of the target, with their range as interval. If a target
    has several heads, the one with the most tasks is used, then the one with the longest rounds.
    Other targets get the mean over all published heads, with origin "borrowed" and their range. So
    is that of an instruct checkpoint "borrowed" by a base one (`variant` is "base" or "instruct",
    if it is known).
    """
    curves = [c for c in published_lengths() if c.method == method]
    if not curves:
        return None
    if group := _published(target, method):
        head = f"{group[0].draft}, " if group[0].draft else ""
        tasks = ", ".join(c.task for c in group)
        # The source without its file, which the catalog names.
        source = f"published by {group[0].source.partition(' ')[0]}: {head}{tasks}"
        if (variant, checkpoint_variant(group[0].draft)) == ("base", "instruct"):
            of = f"for the instruct {target}, not the base one, {source}"
            return _pooled(group, Origin.BORROWED, of)
        return _pooled(group, Origin.MEASURED, source)
    targets = ", ".join(dict.fromkeys(c.target for c in curves))
    return _pooled(
        [_group_mean(group) for group in _by_group(curves).values()],
        Origin.BORROWED,
        f"mean of the published {method} drafts for {targets}; none is published for {target}",
    )


def published_head(target: str, method: str) -> str:
    """Hub id of the head whose acceptance `method_acceptance` uses; "" if none is published."""
    group = _published(target, method)
    return group[0].draft if group and "/" in group[0].draft else ""


def _published(target: str, method: str) -> list[LengthCurve]:
    """The curves of one head of a target, one per task; empty if none was published."""
    curves = [c for c in published_lengths() if (c.target, c.method) == (target, method)]
    groups = _by_group(curves).values()
    return max(groups, key=lambda g: (len(g), _mean_length(g)), default=[])


def conditional_rates(gamma: Floats, tokens: Floats) -> list[float]:
    """The conditional rate of each position up to the largest γ.

    Gains cannot rise with the position. Gains that rise because of noise are averaged with their
    neighbours (isotonic regression), which preserves the tokens per round at the largest γ.
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
    """The closest non-increasing values, by pooling neighbours that rise."""
    blocks: list[list[float]] = []  # mean, weight, number of values
    for value, weight in zip(values, weights, strict=True):
        blocks.append([float(value), float(weight), 1])
        while len(blocks) > 1 and blocks[-1][0] > blocks[-2][0]:
            mean, pooled, number = blocks.pop()
            last = blocks[-1]
            last[0] = (last[0] * last[1] + mean * pooled) / (last[1] + pooled)
            last[1] += pooled
            last[2] += number
    return np.repeat([b[0] for b in blocks], [int(b[2]) for b in blocks])


def _pooled(curves: list[LengthCurve], origin: Origin, source: str) -> Acceptance:
    """Rates of the mean curve, or mean rates if the γ differ, with the range over the curves."""
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
    """The mean curve of a head over its tasks."""
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
def published_lengths() -> tuple[LengthCurve, ...]:
    where = "draft_methods/published.toml"
    rows = table("draft_methods", "published").get("curves", ())
    # The schema does not allow empty text, but a head may have no name.
    named = [{**row, "draft": row.get("draft") or "-"} for row in rows]
    return tuple(
        replace(curve, draft="" if curve.draft == "-" else curve.draft)
        for curve in build_rows(LengthCurve, named, f"{where}: curves")
    )
