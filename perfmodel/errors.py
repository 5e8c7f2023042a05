"""Expected outcomes: each is one line for the user and an exit code, never a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SpecroofError(Exception):
    """Base of every outcome that the command line prints as one line."""

    exit_code = 1


class ConfigError(SpecroofError):
    """Bad input: what was given, why it is wrong, and how to fix it."""

    exit_code = 2


class DoesNotFit(SpecroofError):
    """The scenario needs more memory than the GPUs have; the message shows the arithmetic."""

    exit_code = 3


class NoFeasiblePlan(SpecroofError):
    """No candidate meets the SLO; the message names the nearest miss."""

    exit_code = 3


class OutsideTolerance(SpecroofError):
    """A validation ended outside the stated tolerance."""

    exit_code = 4


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that the catalog lacks, with the nearest names it has."""
    names = sorted(known)
    near = get_close_matches(name.lower(), names, n=3, cutoff=0.4)
    hint = f"Nearest: {', '.join(near)}." if near else f"Known: {', '.join(names)}."
    return ConfigError(f"unknown {kind} {name!r}. {hint}")
