"""Known standard errors of GPU and host times are recovered."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from engine_samples import a_plan, records_of

from calibration.engines.fitting.errors import fit_errors, shared_host_note
from calibration.engines.fitting.groups import MEASUREMENT_ERROR, grouped
from calibration.engines.records import PointRecord
from perfmodel import EngineProfile
from perfmodel.speculation import OTHER_HOST_ERROR

OF_GPU, OF_HOST = 0.04, 0.2


@pytest.fixture(scope="module")
def exact() -> tuple[list[PointRecord], EngineProfile]:
    """Points of one and two GPUs, and the profile that gives their times."""
    plans = [a_plan(seed=seed, minutes=60.0) for seed in (1, 2)]
    records = [record for plan in plans for record in records_of(plan)[0].points]
    return list({r.point.id: r for r in records}.values()), records_of(plans[0])[1]


def missed(
    exact: tuple[list[PointRecord], EngineProfile], *, of_gpu: float, of_host: float
) -> list[PointRecord]:
    """The points with host times and whole steps that are missed by known standard errors."""
    rng, (records, profile) = random.Random(1), exact
    drawn = []
    for record in records:
        (group,) = grouped([record], "h200")
        passes = group.passes_s(profile)
        waits = group.waits(profile, passes, math.exp(rng.gauss(0.0, of_host)))
        seconds = float((passes + waits).item()) * math.exp(rng.gauss(0.0, of_gpu))
        drawn.append(replace(record, seconds=seconds, all_seconds=(seconds,)))
    return drawn


def test_known_errors_are_recovered(exact: tuple[list[PointRecord], EngineProfile]) -> None:
    records, profile = missed(exact, of_gpu=OF_GPU, of_host=OF_HOST), exact[1]
    of_speedups, of_host = fit_errors(records, profile, "h200")
    assert len(records) > 100
    assert of_speedups == pytest.approx(math.sqrt(2.0) * OF_GPU, rel=0.15)
    assert of_host == pytest.approx(OF_HOST, rel=0.2)


def test_errors_of_hidden_hosts_are_those_of_another_machine(
    exact: tuple[list[PointRecord], EngineProfile],
) -> None:
    """Points that are predicted exactly, without host times."""
    records, profile = exact[0], replace(exact[1], host=())
    timed = []
    for group in grouped(records, "h200"):
        for record, seconds in zip(group.records, map(float, group.seconds(profile)), strict=True):
            timed.append(replace(record, seconds=seconds, all_seconds=(seconds,)))
    of_speedups, of_host = fit_errors(timed, profile, "h200")
    assert of_speedups == pytest.approx(math.sqrt(2.0) * MEASUREMENT_ERROR)  # the least
    assert of_host == pytest.approx(OTHER_HOST_ERROR, rel=1e-3)


def test_other_machines_are_noted_if_they_disturb_points_that_wait_for_the_host() -> None:
    """A fifth of the windows of each record takes 1.6 times as long, or only of hidden hosts."""
    records, profile = records_of(a_plan())
    groups = grouped(records.points, records.gpu)
    passes = [group.passes_s(profile) for group in groups]
    usual, slow = (
        np.concatenate([s + g.waits(profile, s, k) for g, s in zip(groups, passes, strict=True)])
        for k in (1.0, 2.0)
    )
    rows = [record for group in groups for record in group.records]
    hidden = {r.point.id for r, one, two in zip(rows, usual, slow, strict=True) if two < 1.1 * one}
    assert 0 < len(hidden) < len(rows)

    def noted(disturbed: set[str]) -> str:
        """The note on points of which some have a disturbed window of five."""
        points = [
            replace(r, windows_s=((*4 * (r.seconds,), k * r.seconds),))
            for r in rows
            for k in [1.6 if r.point.id in disturbed else 1.0]
        ]
        return shared_host_note(replace(records, points=tuple(points)), profile)

    everywhere = {r.point.id for r in rows}
    assert "disturbed 20% of the rounds" in (note := noted(everywhere))
    assert "up to 1.6 times as long" in note
    assert noted(everywhere - hidden) == note and noted(hidden) == noted(set()) == ""
    assert shared_host_note(records, profile) == ""  # without windows
