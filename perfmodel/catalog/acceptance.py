"""Which acceptance curve speaks for a choice of draft: a user's, the catalog's, or a borrowed one.

Curves are read from TOML, the catalog's once. `acceptance_curves` is their form.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from perfmodel.acceptance.curve import AcceptanceCurve, AcceptancePoint
from perfmodel.errors import ConfigError

MAX_FILE_BYTES = 1_000_000
DEFAULT_LENDER = "llama-3.1-8b"  # the target measured over the widest range of contexts
LENDABLE_POLICIES = ("streamingllm", "snapkv")

Table = TypeVar("Table")


def acceptance_curve(
    target: str, draft: str, draft_policy: str, own: tuple[AcceptanceCurve, ...] = ()
) -> AcceptanceCurve | None:
    """The curve for a choice of draft, or None where nothing measured speaks for it.

    Parameters
    ----------
    target, draft, draft_policy : str
        Catalog names; `draft` is a model, or "self" (the target's own name means the same).
    own : tuple of AcceptanceCurve, optional
        The user's own curves, which come before the catalog's: one of this draft and policy is
        used, and for another target than its own it is borrowed.

    Returns
    -------
    AcceptanceCurve or None
        The fitted curve if this choice was measured. For a self-draft: the identity under policy
        "full", and under "streamingllm" or "snapkv" the curve of the nearest measured target
        (most leading parts of the name in common, else Llama-3.1-8B), with origin "borrowed" and
        a wider interval. None for everything else: standalone pairs are never guessed.
    """
    draft = "self" if draft == target else draft
    matching = [c for c in own if (c.draft, c.draft_policy) == (draft, draft_policy)]
    for curve in matching:
        if curve.target == target:
            return curve
    return matching[0].lent_to(target) if matching else _curve(target, draft, draft_policy)


def measured_curves() -> tuple[AcceptanceCurve, ...]:
    """Every curve of the catalog, sorted by target, draft and policy."""
    folder = files("perfmodel") / "catalog" / "acceptance"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return tuple(_load(name) for name in names)


def parse_acceptance_curve(text: str, name: str) -> AcceptanceCurve:
    """The one curve that a TOML text holds; `name` is the file's name, for the message.

    Raises
    ------
    ConfigError
        If the text is not TOML, or a key is unknown, missing or out of range.
    """
    return _curve_of_table(_toml(text, name), name)


def read_acceptance_curves(path: str | Path) -> tuple[AcceptanceCurve, ...]:
    """The curves of a user's file: one as in the catalog, or several under `[[curves]]`.

    Raises
    ------
    ConfigError
        In one line: no such file, not TOML, or a curve that does not hold.
    """
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        text = raw.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # not UTF-8, or a path with a null byte
        raise ConfigError(f"{path}: no text file of acceptance curves") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes; no acceptance curves")
    table = _toml(text, str(path))
    listed = table.get("curves", [table])
    if not isinstance(listed, list) or not listed or not all(isinstance(c, dict) for c in listed):
        raise ConfigError(f"{path}: curves must be a list of tables, [[curves]]")
    return tuple(_curve_of_table(curve, str(path)) for curve in listed)


def _toml(text: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{name}: not valid TOML: {error}") from error


def _curve_of_table(table: dict[str, Any], name: str) -> AcceptanceCurve:
    listed = table.pop("points", [])
    if not isinstance(listed, list) or not all(isinstance(point, dict) for point in listed):
        raise ConfigError(f"{name}: points must be a list of tables, [[points]]")
    points = tuple(_from_table(AcceptancePoint, point, name) for point in listed)
    for key in ("context_range", "budget_range"):
        if key in table:
            span = table[key]
            if not isinstance(span, list) or [type(end) for end in span] != [float, float]:
                raise ConfigError(f"{name}: {key}={span!r} must be two numbers of tokens")
            table[key] = tuple(span)
    return _from_table(AcceptanceCurve, {"origin": "fitted", "points": points, **table}, name)


@cache
def _curve(target: str, draft: str, draft_policy: str) -> AcceptanceCurve | None:
    name = f"{target}--{draft}--{draft_policy}.toml"
    if any(
        entry.name == name for entry in (files("perfmodel") / "catalog" / "acceptance").iterdir()
    ):
        return _load(name)
    if draft == "self" and draft_policy == "full":
        return _identity(target)
    if draft == "self" and draft_policy in LENDABLE_POLICIES:
        return _borrowed(target, draft_policy)
    return None


@cache
def _load(name: str) -> AcceptanceCurve:
    path = files("perfmodel") / "catalog" / "acceptance" / name
    return parse_acceptance_curve(path.read_text(encoding="utf-8"), name)


def _identity(target: str) -> AcceptanceCurve:
    return AcceptanceCurve(
        target=target,
        draft="self",
        draft_policy="full",
        text="any",
        origin="identity",
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
        key=lambda c: (_kinship(c.target, target), c.target == DEFAULT_LENDER, len(c.points)),
    )
    return lender.lent_to(target)


def _kinship(one: str, other: str) -> int:
    """Leading parts that two model names share: 2 for llama-3.1-8b and llama-3.1-70b."""
    shared = 0
    for a, b in zip(one.split("-"), other.split("-"), strict=False):
        if a != b:
            break
        shared += 1
    return shared


def _from_table(kind: type[Table], table: dict[str, Any], name: str) -> Table:
    known = set(kind.__annotations__)
    if unknown := sorted(set(table) - known):
        raise ConfigError(f"{name}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    try:
        return kind(**table)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from error
