"""Consecutive rounds along a measured text: each begins where the last one ended.

Rounds that start everywhere alike make more tokens than those of an engine, which start right after
a rejection and so dwell where drafts fail. Both means over a window follow from its chances of
acceptance, token by token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

RENEWAL_GAMMAS = (2, 4, 8, 16)


class Renewal(NamedTuple):
    """Rounds of γ drafts one after another along a window, each beginning where the last ended.

    `begun` and `made` are the expected number of rounds and of their tokens, over the rounds that
    begin at least γ tokens before the window's end. `even` is the mean tokens of a round over all
    those places alike: real rounds begin more often where drafts fail, and make fewer.
    """

    gamma: int
    begun: float
    made: float
    even: float


def renewals(overlap: Sequence[float]) -> tuple[Renewal, ...]:
    """Expected rounds along a window's chances of acceptance, per γ that fits into it."""
    found = []
    for gamma in (gamma for gamma in RENEWAL_GAMMAS if gamma <= len(overlap)):
        places = len(overlap) - gamma + 1
        begins = [1.0] + [0.0] * (len(overlap) + 1)
        made = even = 0.0
        for place in range(places):
            alive = tokens = 1.0
            for step in range(gamma):
                passed = alive * overlap[place + step]
                begins[place + step + 1] += begins[place] * (alive - passed)
                alive = passed
                tokens += alive
            begins[place + gamma + 1] += begins[place] * alive
            made += begins[place] * tokens
            even += tokens
        begun = sum(begins[:places])
        found.append(Renewal(gamma, round(begun, 4), round(made, 4), round(even / places, 5)))
    return tuple(found)
