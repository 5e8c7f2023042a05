"""Undisturbed windows of rounds, and repeats that agree."""

from __future__ import annotations

import math
from statistics import fmean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.engines.undisturbed import (
    DISTURBED,
    disturbed_note,
    level_s,
    repeat_seconds,
    repeated,
    slowdowns,
)

Windows = list[list[float]]


def in_repeats(values: st.SearchStrategy[float]) -> st.SearchStrategy[Windows]:
    return st.lists(st.lists(values, min_size=1, max_size=8), min_size=1, max_size=12)


ANY = in_repeats(st.floats(1e-3, 1e-1))
QUIET = in_repeats(st.floats(2e-3, DISTURBED * 2e-3))  # each within a factor of the shortest


@given(ANY, st.integers(-8, 8))
def test_times_scale_with_the_windows(windows: Windows, power: int) -> None:
    factor = 2.0**power  # exact, so that no window changes sides
    kept, disturbed = repeat_seconds(windows)
    scaled = repeat_seconds([[factor * each for each in repeat] for repeat in windows])
    assert scaled == (tuple(factor * s for s in kept), tuple(factor * s for s in disturbed))


@given(QUIET)
def test_on_a_machine_that_nothing_disturbs_all_windows_count(windows: Windows) -> None:
    kept, disturbed = repeat_seconds(windows)
    assert kept == pytest.approx([fmean(repeat) for repeat in windows], rel=1e-12)
    assert disturbed == () and max(slowdowns(windows)) <= DISTURBED
    assert disturbed_note([windows]) == ""


@given(QUIET, st.data())
def test_slower_windows_change_nothing(windows: Windows, data: st.DataObject) -> None:
    """Up to 8/9 of all, in the same repeats or in more of them."""
    many = 8 * sum(map(len, windows))
    slow = st.floats(1.01 * DISTURBED**2 * 2e-3, 1.0)
    longer = [list(repeat) for repeat in windows]
    for each in data.draw(st.lists(slow, max_size=min(many, 50))):
        place = data.draw(st.integers(0, len(windows)))
        longer[place].append(each) if place < len(windows) else longer.append([each])
    kept, disturbed = repeat_seconds(longer)
    assert (kept, len(disturbed)) == (repeat_seconds(windows)[0], len(longer) - len(windows))


@given(ANY)
def test_each_time_is_that_of_its_repeat_or_less(windows: Windows) -> None:
    """All repeats have a time; those that count are at most 1.15 times the level."""
    kept, disturbed = repeat_seconds(windows)
    level, shortest = level_s(windows), min(min(repeat) for repeat in windows)
    assert kept and len(kept) + len(disturbed) == len(windows)
    assert shortest <= min(kept) * (1 + 1e-12) and level >= shortest
    assert max(kept) <= DISTURBED * level * (1 + 1e-12) < min([*disturbed, 1.0]) * (1 + 1e-9)
    assert median(kept) <= max(fmean(repeat) for repeat in windows) * (1 + 1e-12)


def test_a_known_machine() -> None:
    """Windows of 2 ms, and of 3.6 ms while another machine works."""
    windows = [[2.0, 2.1, 3.6, 3.6], [3.6, 3.6, 3.6, 3.6], [3.5, 2.2, 2.2, 2.2]]
    kept, disturbed = repeat_seconds(windows)
    assert kept == pytest.approx((2.05, 2.2)) and disturbed == pytest.approx((3.6,))
    assert level_s(windows) == 2.0  # the first of 12
    note = disturbed_note([windows, [[1.0] * 8]])  # of 20 windows, 7; the 18th is the upper decile
    assert "35%" in note and "up to 1.8 times" in note
    assert "`--host-factor 1.8`" in note
    assert disturbed_note([windows, [[1.0] * 58]]) == ""  # 7 of 70: a tenth
    assert disturbed_note([]) == ""


def test_the_shortest_of_at_most_twenty_windows_is_their_level() -> None:
    assert level_s([[1.0], [2.0] * 19]) == 1.0
    assert level_s([[1.0], [2.0] * 20]) == 2.0


def test_if_too_few_repeats_agree_all_are_kept() -> None:
    seconds = [0.01, 0.03, -0.5, 0.02, 0.05, 0.011, 0.01]
    timed = iter([(each, i) for i, each in enumerate(seconds)])
    kept, disturbed = repeated(lambda: next(timed), 3)
    assert [each for each, _ in kept] == seconds[:6] and not disturbed
    assert next(timed) == (0.01, 6)  # was not timed


def test_pairs_without_a_time_are_timed_again() -> None:
    def kept(*seconds: float) -> tuple[list[float], list[float], int]:
        timed = iter([(each, None) for each in seconds])
        pairs, disturbed = repeated(lambda: next(timed), 3)
        return [each for each, _ in pairs], disturbed, len(list(timed))

    nan = math.nan
    assert kept(1.0, nan, 1.0, 1.0, 5.0) == ([1.0, 1.0, 1.0], [], 1)
    assert kept(nan, 9.0, 1.0, nan, 1.0, 1.0) == ([1.0, 1.0, 1.0], [9.0], 0)
    assert kept(1.0, 2.0, 4.0, nan, nan, math.inf) == ([1.0, 2.0, 4.0], [], 0)
    assert kept(1.0, nan, nan, 1.0, nan, nan, 1.0) == ([], [], 1)
