"""Which times of an engine's steps nothing disturbed, and the seconds of a step that follow.

Predictions are for a host that does nothing else. A virtual machine shares the cores of its host
with others: in one with an H200, a fixed loop in Python took 2.0 or 3.6 ms on any core, each for
0.1 s to seconds, and so do the steps that wait for the host. Steps are therefore timed in windows
of a few rounds, most of which see one state of the host. If at least a twentieth of them saw it
undisturbed, the fifth percentile did, and so did any that take about as long. Of at most 20
windows, it is the shortest. On a machine that nothing disturbs, these are all windows.

Where others disturb the host all the time, no window shows it, but a fixed loop does, which is
timed before and after each repeat.

A server cannot be timed in windows. Of its repeats, those count that agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

LEVEL = 0.05  # share of the windows that are at most as long as an undisturbed one
NOTED = 0.1  # share of disturbed windows above which a note says so
DISTURBED = 1.15  # times the level: longer windows were disturbed
USUAL = 0.25  # share of the loops that are at most as long as a host's usual one
AGREEING = 1.5  # longest over shortest of the repeats of a point
MOST_PAIRS = 2  # times the repeats, until so many agree

Windows = Sequence[Sequence[float]]  # seconds per round, of each repeat


def repeat_seconds(windows_s: Windows) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean seconds of each repeat's undisturbed windows, and of the repeats without any.

    `windows_s` has the seconds per round of each window, of each repeat, and at least one.
    """
    level, kept, disturbed = level_s(windows_s), list[float](), list[float]()
    for windows in windows_s:
        undisturbed = [seconds for seconds in windows if seconds / level <= DISTURBED]
        (kept if undisturbed else disturbed).append(_mean(undisturbed or windows))
    return tuple(kept), tuple(disturbed)


def level_s(windows_s: Windows) -> float:
    """Fifth percentile of all windows, in seconds per round; of at most 20, the shortest."""
    every = sorted(seconds for windows in windows_s for seconds in windows)
    return every[math.ceil(LEVEL * len(every)) - 1]


def slowdowns(windows_s: Windows) -> list[float]:
    """All windows over their level; those above `DISTURBED` were disturbed."""
    level = level_s(windows_s)
    return [seconds / level for windows in windows_s for seconds in windows]


def fastest_loop_s(loops_s: Sequence[Sequence[float]]) -> float:
    """The fifth percentile of all fixed loops, of several points; 0 without any."""
    every = sorted(seconds for loops in loops_s for seconds in loops)
    return every[math.ceil(LEVEL * len(every)) - 1] if every else 0.0


def is_slowed(loops_s: Sequence[float], fastest_s: float) -> bool:
    """Whether more than three quarters of a point's fixed loops took longer than undisturbed."""
    if not loops_s:
        return False
    usual = sorted(loops_s)[math.ceil(USUAL * len(loops_s)) - 1]
    return usual > DISTURBED * fastest_s


def disturbed_note(of_host: Sequence[Windows]) -> str:
    """What it means that the host was disturbed, from the windows of points that wait for it.

    "" if at most `NOTED` of them were disturbed.
    """
    every = sorted(each for windows in of_host for each in slowdowns(windows))
    disturbed = sum(each > DISTURBED for each in every)
    if disturbed <= NOTED * len(every):
        return ""
    upper = every[math.ceil((1.0 - NOTED) * len(every)) - 1]
    return (
        f"the cores of this host are shared with other machines, which disturbed "
        f"{disturbed / len(every):.0%} of the rounds that wait for it. Predictions are for an "
        f"undisturbed host; here such steps take up to {upper:.1f} times as long, which "
        f"`--host-factor {upper:.1f}` predicts"
    )


def repeated(
    time_pair: Callable[[], tuple[float, Any]], repeats: int
) -> tuple[list[tuple[float, Any]], list[float]]:
    """Time pairs of runs until `repeats` agree; these in order, and the seconds of the others.

    `time_pair` returns the seconds per round of a pair, and anything about it; a pair that has none
    returns nan, and is left out. Pairs agree if all are positive and the longest takes at most
    `AGREEING` times as long as the shortest; if several sets do, the closest counts. If none does
    among `MOST_PAIRS` times as many pairs, all are kept, or none if fewer than `repeats` have a
    time.
    """
    pairs: list[tuple[float, Any]] = []
    for _ in range(MOST_PAIRS * repeats):
        pair = time_pair()
        if not math.isfinite(pair[0]):
            continue
        pairs.append(pair)
        order = sorted(range(len(pairs)), key=lambda i: pairs[i][0])
        sets = [order[i : i + repeats] for i in range(len(pairs) - repeats + 1)]
        ratios = {pairs[s[-1]][0] / pairs[s[0]][0]: s for s in sets if pairs[s[0]][0] > 0.0}
        if ratios and min(ratios) <= AGREEING:
            kept = sorted(ratios[min(ratios)])
            return [pairs[i] for i in kept], [p[0] for i, p in enumerate(pairs) if i not in kept]
    return (pairs if len(pairs) >= repeats else []), []


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
