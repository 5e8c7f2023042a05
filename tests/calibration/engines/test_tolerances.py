"""Tolerances apply to points whose host is known, or to all if too few are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from engine_samples import a_plan, records_of

import calibration
from calibration.engines.fitting.fit import LEAST_POINTS, EngineFit
from calibration.engines.judged import judged, point_errors
from calibration.engines.reading import read_engine_records
from calibration.engines.report import EngineReport, engine_report, report_lines
from perfmodel import EngineProfile, catalog
from perfmodel.catalog.engines import engine_profile

QUIET = Path(calibration.__file__).parent / "measured/engine-vllm-0.26-h200-quiet.jsonl"


def unfitted(profile: EngineProfile) -> EngineFit:
    return EngineFit(profile=profile, terms=(), values=(), rms_percent=0.0, points=0)


def a_report(plain: int, rounds: int) -> EngineReport:
    """Of held-back points that take three times as long as predicted, but for those of known hosts.

    These are the first plain steps and rounds, which are predicted exactly.
    """
    records, profile = records_of(a_plan())
    errors = point_errors(records.points, profile, "h200")
    of = [
        [e for e in errors if (e.record.point.setup.gamma > 0) is of_rounds]
        for of_rounds in (False, True)
    ]
    known = [*of[False][:plain], *of[True][:rounds]]
    slow = [
        replace(e, predicted_s=e.predicted_s / 3.0, host_known=False)
        for e in (*of[False][plain:], *of[True][rounds:])
    ]
    assert len(known) == plain + rounds and len(slow) > 8
    every = judged([*known, *slow])
    return EngineReport(
        name="vllm-0.26",
        gpu="h200",
        source="",
        fit=unfitted(profile),
        fitted=(),
        held_back=every,
        deployable=every,
        host_known=judged(known),
    )


@pytest.mark.parametrize(
    ("plain", "rounds"),
    [(0, 0), (LEAST_POINTS - 1, 0), (LEAST_POINTS, 0), (LEAST_POINTS, LEAST_POINTS - 1)],
)
def test_they_apply_to_all_points_if_too_few_plain_steps_or_rounds_have_a_known_host(
    plain: int, rounds: int
) -> None:
    report = a_report(plain, rounds)
    assert any(clause.startswith("worst 66.7 % exceeds") for clause in report.outside)
    line = report_lines(report)[-1]
    assert line.startswith(
        "tolerances apply to all points held back: too few plain steps or rounds"
    )


def test_they_apply_to_points_with_a_known_host() -> None:
    report = a_report(LEAST_POINTS, LEAST_POINTS)
    assert not report.outside
    lines = report_lines(report)
    (heading,) = (i for i, line in enumerate(lines) if "(tolerances apply to these):" in line)
    assert lines[heading + 1] == "  4 plain steps: median 0.0 % (worst +0.0, 0 beyond 15 %)"


def test_rounds_that_wait_for_a_slow_host_alone_are_outside() -> None:
    """N-gram rounds without windows that take three times as long, beside points with windows."""
    records = read_engine_records([QUIET])
    slow = tuple(
        replace(
            r,
            seconds=3.0 * r.seconds,
            all_seconds=tuple(3.0 * s for s in r.all_seconds),
            windows_s=(),
            point=replace(r.point, held_back=True, prompt_tokens=r.point.prompt_tokens + 1),
        )
        for r in records.points
        if r.point.setup.method == "ngram"
    )
    seen = tuple(replace(r, point=replace(r.point, held_back=False)) for r in records.points)
    profile = engine_profile("vllm-0.26", catalog.gpu("h200"))
    report = engine_report(replace(records, points=(*seen, *slow)), unfitted(profile))
    assert len(report.held_back.errors) == len(slow) > 8
    assert len(report.host_known.errors) < LEAST_POINTS
    assert "worst" in "; ".join(report.outside)
