"""Find the acceptance curve of a draft: the user's, the catalog's, or that of a similar target."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from perfmodel.acceptance.curve import AcceptanceCurve, AcceptancePoint
from perfmodel.catalog._files import names, table, user_table
from perfmodel.catalog._schema import build, build_rows
from perfmodel.errors import ConfigError
from perfmodel.specs.draft import DraftPolicy
from perfmodel.specs.labels import Origin

DEFAULT_LENDER = "llama-3.1-8b"  # the target that was measured over the widest range of contexts
LENDABLE_POLICIES = (DraftPolicy.STREAMINGLLM, DraftPolicy.SNAPKV)


def acceptance_curve(
    target: str, draft: str, draft_policy: str, users: tuple[AcceptanceCurve, ...] = ()
) -> AcceptanceCurve | None:
    """The acceptance curve of a draft choice, or None if its acceptance is unknown.

    Parameters
    ----------
    target, draft, draft_policy : str
        Catalog names; `draft` is a model, or "self" (equivalent to the target's name).
    users : tuple of AcceptanceCurve, optional
        The user's curves, which take precedence over the catalog's. A curve with this draft and
        policy is borrowed if it was measured on another target.

    Returns
    -------
    AcceptanceCurve or None
        The fitted curve, if this choice was measured. Otherwise, for a self-draft, the identity
        with policy "full", and with "streamingllm" or "snapkv" the curve of the most similar
        measured target (by the leading parts of its name, otherwise Llama-3.1-8B), with origin
        "borrowed" and a wider interval. None for standalone drafts that were not measured.
    """
    draft = "self" if draft == target else draft
    matching = [c for c in users if (c.draft, c.draft_policy) == (draft, draft_policy)]
    for curve in matching:
        if curve.target == target:
            return curve
    return matching[0].borrowed_for(target) if matching else _curve(target, draft, draft_policy)


def measured_curves() -> tuple[AcceptanceCurve, ...]:
    """All curves of the catalog, sorted by target, draft and policy."""
    return tuple(_load(name) for name in names("acceptance"))


def read_acceptance_curves(path: str | Path) -> tuple[AcceptanceCurve, ...]:
    """The curves of a user's file: one, as in the catalog, or several under `[[curves]]`.

    Raises `ConfigError` if the file cannot be read, is not TOML, or contains an invalid curve.
    """
    entries = user_table(path, "acceptance curves")
    listed = entries.get("curves", [entries])
    if not isinstance(listed, list) or not listed or not all(isinstance(c, dict) for c in listed):
        raise ConfigError(f"{path}: curves must be a list of tables, [[curves]]")
    return tuple(_curve_of_table(curve, str(path)) for curve in listed)


def _curve_of_table(entries: Mapping[str, Any], where: str) -> AcceptanceCurve:
    points = build_rows(AcceptancePoint, entries.get("points", ()), f"{where}: points")
    return build(AcceptanceCurve, {"origin": Origin.FITTED, **entries, "points": points}, where)


@cache
def _curve(target: str, draft: str, draft_policy: str) -> AcceptanceCurve | None:
    name = f"{target}--{draft}--{draft_policy}"
    if name in names("acceptance"):
        return _load(name)
    if draft == "self" and draft_policy == DraftPolicy.FULL:
        return _identity(target)
    if draft == "self" and draft_policy in LENDABLE_POLICIES:
        return _borrowed(target, draft_policy)
    return None


@cache
def _load(name: str) -> AcceptanceCurve:
    return _curve_of_table(table("acceptance", name), f"acceptance/{name}.toml")


def _identity(target: str) -> AcceptanceCurve:
    return AcceptanceCurve(
        target=target,
        draft="self",
        draft_policy="full",
        text="any",
        origin=Origin.IDENTITY,
        source="a self-draft that reads the full cache is the target itself",
        ceiling=1.0,
        level=0.0,
        context_exponent=0.0,
        budget_exponent=0.0,
        sigma=0.0,
        sigma_budget=0.0,
        sigma_context=0.0,
        sigma_lent=0.0,
        context_range=(1.0, np.inf),
        budget_range=(1.0, np.inf),
    )


def _borrowed(target: str, draft_policy: str) -> AcceptanceCurve:
    lenders = [c for c in measured_curves() if (c.draft, c.draft_policy) == ("self", draft_policy)]
    lender = max(
        lenders,
        key=lambda c: (_shared_parts(c.target, target), c.target == DEFAULT_LENDER, len(c.points)),
    )
    return lender.borrowed_for(target)


def _shared_parts(one: str, other: str) -> int:
    """The number of leading name parts in common: 2 for llama-3.1-8b and llama-3.1-70b."""
    shared = 0
    for a, b in zip(one.split("-"), other.split("-"), strict=False):
        if a != b:
            break
        shared += 1
    return shared
