"""A distribution of prompt lengths as `tokens:weight` terms: `4000:50, 32000:40, 100000:10`."""

from __future__ import annotations

from collections.abc import Iterable

from perfmodel import ConfigError
from perfmodel.units import ambiguous, parse_number

MAX_TERMS = 50


def prompt_mix(text: str) -> tuple[tuple[int, float], ...]:
    """Pairs of prompt tokens and share; the shares sum to 1.

    Raises
    ------
    ConfigError
        For a term that is not `tokens:weight`, or weights that do not sum to a positive number.
    """
    pairs = [_term(term) for term in text.replace(";", ",").split(",") if term.strip()]
    total = sum(weight for _, weight in pairs)
    if not pairs or len(pairs) > MAX_TERMS or not total > 0:
        raise ConfigError(
            f"the distribution of prompt lengths is not valid; give 1 to {MAX_TERMS} terms such as "
            f"4000:50, 32000:50, at least one of them with a positive weight"
        )
    return tuple((tokens, weight / total) for tokens, weight in pairs)


def mean_prompt(mix: Iterable[tuple[int, float]]) -> int:
    """Mean prompt length; a batch of such prompts reads as many KV bytes as the mixed one."""
    return round(sum(tokens * share for tokens, share in mix))


def _term(text: str) -> tuple[int, float]:
    tokens, colon, weight = text.partition(":")
    try:
        count, share = parse_number(tokens), parse_number(weight) if colon else 1.0
    except ValueError:
        count, share = 0.0, 0.0
    if not (1 <= count <= 1 << 40 and count.is_integer() and share >= 0.0) or ambiguous(tokens):
        raise ConfigError(
            f"distribution term {text.strip()[:40]!r} is not valid; write tokens:weight, as 4000:50"
        )
    return int(count), share
