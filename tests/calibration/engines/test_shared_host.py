"""A plain step and a round that wait for the same host share most of its error.

The pairs are of vLLM 0.26 on one H200, both waiting: same target, batch, context and file, with
EAGLE-3 or n-gram look-up. Some were timed on an undisturbed host (with windows; half of them are
fitted), the others on a host of unknown speed, by one engine after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from published_errors import PROFILE, record_path

from calibration.engines.fitting.groups import grouped
from calibration.engines.judged import misses_graph
from calibration.engines.reading import read_engine_records
from calibration.engines.records import Point
from perfmodel import Scenario
from perfmodel.speculation import ratio_error
from perfmodel.speculation.uncertainty import step_error
from perfmodel.speculation.uncertainty.host_delay import host_delays
from perfmodel.units import Z90

FILES = (
    "h200", "h200-undisturbed", "h200-disturbed", "h200-command", "h200-seed4101", "h200-seed5201",
    "h200-seed6301",
)  # fmt: skip
WAITS = 0.05  # least ln(delay) by one standard error of the host's time


@dataclass(frozen=True)
class Pair:
    """ln(predicted / measured speedup) of a round whose plain step waits for the host, too."""

    error: float
    scenario: Scenario
    undisturbed: bool

    @property
    def spread(self) -> float:
        return float(ratio_error(self.scenario))


def pairs_of(name: str) -> list[Pair]:
    found: dict[Point, tuple[float, Scenario, bool]] = {}
    records = read_engine_records([record_path(name)]).points
    timed = [record for record in records if not misses_graph(record.point, PROFILE)]
    for group in grouped(timed, "h200"):
        late = np.log(group.seconds(PROFILE) / group.measured_s)
        for record, error in zip(group.records, map(float, late), strict=True):
            scenario = group.scenario_of(record, PROFILE)
            found[record.point] = error, scenario, bool(record.windows_s)
    plain = {p.workload: error for p, (error, *_) in found.items() if not p.setup.gamma}
    pairs = []
    for point, (error, scenario, undisturbed) in found.items():
        if point.setup.gamma and point.workload in plain:
            slowdown = math.exp(PROFILE.host_error)
            if min(map(float, host_delays(scenario, slowdown))) > WAITS:
                pairs.append(Pair(plain[point.workload] - error, scenario, undisturbed))
    return pairs


@pytest.fixture(scope="module")
def files() -> dict[str, list[Pair]]:
    return {name: pairs_of(name) for name in FILES}


def coverage(pairs: list[Pair]) -> float:
    return float(np.mean([abs(pair.error) <= Z90 * pair.spread for pair in pairs]))


def log_likelihood(pairs: list[Pair]) -> float:
    terms = (math.log(pair.spread) + 0.5 * (pair.error / pair.spread) ** 2 for pair in pairs)
    return -math.fsum(terms)


def share(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_error, "HOST_SHARED", value)


def test_intervals_hold_in_every_file_and_on_hosts_of_known_and_unknown_speed(
    files: dict[str, list[Pair]],
) -> None:
    every = [pair for pairs in files.values() for pair in pairs]
    assert len(every) >= 70
    assert all(pair.scenario.plan.method is not None for pair in every)  # none has a draft model
    few = {name: pairs for name, pairs in files.items() if coverage(pairs) < 0.85}
    assert {name: len(pairs) for name, pairs in few.items()} == {"h200-disturbed": 6}
    assert coverage(few["h200-disturbed"]) == pytest.approx(5 / 6)
    known = [pair for pair in every if pair.undisturbed]
    unknown = [pair for pair in every if not pair.undisturbed]
    assert min(len(known), len(unknown)) > 20
    assert coverage(known) >= 0.9 and coverage(unknown) >= 0.88


def test_neither_independence_nor_full_correlation_holds(
    files: dict[str, list[Pair]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Independent, all but one would be held by intervals twice as wide; fully shared, too few."""
    every = [pair for pairs in files.values() for pair in pairs]
    stated, width = log_likelihood(every), np.median([pair.spread for pair in every])
    share(0.0, monkeypatch)
    assert coverage(every) >= 1.0 - 1.5 / len(every)
    assert np.median([p.spread for p in every]) > 1.8 * width
    assert log_likelihood(every) < stated - 10.0
    share(1.0, monkeypatch)
    assert coverage(every) < 0.75 and log_likelihood(every) < stated - 10.0


def test_no_file_raises_the_likeliest_share_below_the_stated_one(
    files: dict[str, list[Pair]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = step_error.HOST_SHARED
    shares = np.arange(0.5, 1.0, 0.01)
    by_share = []
    for value in shares:
        share(float(value), monkeypatch)
        by_share.append({name: log_likelihood(pairs) for name, pairs in files.items()})
    for left_out in FILES:
        of_others = [sum(x for n, x in row.items() if n != left_out) for row in by_share]
        assert stated <= shares[int(np.argmax(of_others))] < 0.955
