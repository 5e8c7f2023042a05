"""Intervals contain what they state, also with widths that left-out measurements did not set."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from calibration.validate.coverage import CoverageGroup, CoverageReport, validate_coverage
from calibration.validate.left_out import BY_OTHERS, Miss
from perfmodel.catalog.engines import engine_profile
from perfmodel.speculation import prompt
from perfmodel.speculation.uncertainty import step_error
from perfmodel.units import Z90


@pytest.fixture(scope="module")
def report() -> CoverageReport:
    return validate_coverage()


def drawn(spread: float, width: float, groups: int = 4) -> CoverageReport:
    """Normal errors of a known spread, with a stated width."""
    rng = random.Random(1)
    return CoverageReport(
        tuple(
            CoverageGroup(
                "drawn", str(i), tuple(Miss(rng.gauss(0.0, spread), width) for _ in range(500))
            )
            for i in range(groups)
        )
    )


def test_intervals_contain_85_percent_at_every_distance(report: CoverageReport) -> None:
    kinds = [name.split(",")[0] for name in report.distances]
    assert len(report.distances) >= 8 and min(map(kinds.count, ("two drafts", "T_T", "round"))) >= 5
    for name in report.distances:
        assert report.pooled(name).coverage() >= 0.85, name
        by_others = report.coverage_by_others(name)
        assert by_others is None or by_others >= 0.85, name
    assert report.outside() == []


def test_errors_of_gpu_and_host_hold_files_that_did_not_set_them(report: CoverageReport) -> None:
    """Steps and rounds of vLLM, each file with the errors of the others: 88 to 100 %, 96 in all."""
    steps: dict[str, list[Miss]] = {}
    for kind in ("T_T", "round"):
        for group in report.distances[f"{kind}, this GPU: vllm-0.26{BY_OTHERS}"]:
            steps.setdefault(group.left_out, []).extend(group.misses)
            assert report.width_of_others(group) is None
    files = [CoverageGroup("file", name, tuple(misses)) for name, misses in steps.items()]
    assert len(files) == 10
    assert min(group.coverage() for group in files) >= 0.85
    every = CoverageGroup("files", "all", tuple(miss for group in files for miss in group.misses))
    assert 0.85 <= every.coverage() <= 0.97
    widths = sorted(miss.width for miss in every.misses)
    assert widths[0] < 0.085 and widths[-1] > 0.25  # with a hidden host, and where it is waited for


@pytest.mark.parametrize(
    ("distance", "stated"),
    [
        ("another architecture", step_error.ARCHITECTURE_ERROR),
        ("this GPU: magicdec", engine_profile("magicdec").speedup_error),
        ("prompts on this GPU", prompt.PREFILL_ERROR),
        ("T_T, sister GPU", step_error.SISTER_STEP_ERROR),
        ("T_T, another architecture", step_error.ARCHITECTURE_STEP_ERROR),
        ("round, another architecture", step_error.ARCHITECTURE_ROUND_ERROR),
        ("round, two ranks from one", step_error.TP_STEP_ERROR),
        ("T_T, ideal, of specroof's steps", step_error.BOUND_STEP_ERROR),
        ("two drafts, this GPU: magicdec", step_error.PAIR_ERROR),
        ("prompts on this GPU, waiting for launches", prompt.LAUNCH_ERROR),
    ],
)
def test_the_stated_errors_are_those_of_left_out_measurements(
    report: CoverageReport, distance: str, stated: float
) -> None:
    groups = report.distances[distance]
    assert stated == pytest.approx(math.sqrt(np.mean([g.square for g in groups])), abs=0.002)


def test_prompts_of_two_ranks_have_an_error_of_their_own(report: CoverageReport) -> None:
    groups = report.distances["prompts on this GPU, waiting for launches"]
    of_ranks = [group for group in groups if "-tp2-" in group.left_out]
    rms = math.sqrt(np.mean([group.square for group in of_ranks]))
    assert pytest.approx(rms, abs=0.002) == prompt.RANK_LAUNCH_ERROR
    busy = [g for g in report.distances["prompts on this GPU"] if "-tp2-" in g.left_out]
    misses = [miss for group in (*of_ranks, *busy) for miss in group.misses]
    assert len(misses) > 90 and sum(len(group.misses) for group in busy) > 15
    assert CoverageGroup("prompts", "two ranks", tuple(misses)).coverage() > 0.85


@pytest.mark.parametrize(
    ("distance", "stated"),
    [
        ("sister GPU", step_error.SISTER_ERROR),
        ("two ranks from one", step_error.TP_ERROR),
        ("T_T, two ranks from one", step_error.TP_STEP_ERROR),
        ("kernels, of specroof's steps", engine_profile("kernels").speedup_error),
        ("ideal, of specroof's steps", engine_profile("ideal").speedup_error),
        ("specroof's general values", engine_profile("specroof").speedup_error),
        ("round, ideal, of specroof's steps", step_error.BOUND_ROUND_ERROR),
    ],
)
def test_errors_stated_for_rounds_of_earlier_engines_are_not_too_small(
    report: CoverageReport, distance: str, stated: float
) -> None:
    """They were measured with rounds, of which the records of earlier engines now count passes."""
    groups = report.distances[distance]
    assert stated > math.sqrt(np.mean([g.square for g in groups]))


def test_errors_of_the_stated_spread_are_covered_to_90_percent() -> None:
    right = drawn(0.1, Z90 * 0.1)
    assert right.pooled("drawn").coverage() == pytest.approx(0.9, abs=0.02)
    assert right.coverage_by_others("drawn") == pytest.approx(0.9, abs=0.02)
    assert right.outside() == []
    narrow = drawn(0.1, 0.5 * Z90 * 0.1)
    assert narrow.pooled("drawn").coverage() < 0.7 and narrow.outside()
    assert narrow.coverage_by_others("drawn") == right.coverage_by_others("drawn")


def test_a_group_does_not_judge_its_own_width() -> None:
    groups = [CoverageGroup("d", str(e), (Miss(e, 1.0),)) for e in (0.1, 0.2, 5.0)]
    report = CoverageReport(tuple(groups))
    width = report.width_of_others(groups[2])
    assert width == pytest.approx(Z90 * math.sqrt((0.1**2 + 0.2**2) / 2))
    assert CoverageReport((groups[0],)).width_of_others(groups[0]) is None
