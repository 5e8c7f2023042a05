"""The profile of vLLM 0.26 has its published errors on records that were not fitted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from published_errors import (
    PROFILE,
    Figures,
    assert_published,
    blind_errors,
    blind_predictions,
    by_kind,
    figures,
    record_path,
)

from calibration.engines.fitting.errors import shared_host_note
from calibration.engines.fitting.fit import EngineFit, fit_profile
from calibration.engines.fitting.groups import grouped
from calibration.engines.judged import Judged, PointError, judged, misses_graph
from calibration.engines.profile_file import profile_text
from calibration.engines.reading import read_engine_records
from calibration.engines.records import EngineRecords
from calibration.engines.report import EngineReport, engine_report
from perfmodel import catalog
from perfmodel.catalog.engines import engine_profile
from perfmodel.speculation import time_error
from perfmodel.units import Z90

FITTED = ("h200", "h200-tp2", "h200-undisturbed")
CHECKED = (
    "h200-exported-graphs", "h200-seed3101", "h200-processes", "h200-tp2-processes",
    "h200-seed4101", "h200-seed5201",
)  # fmt: skip


@pytest.fixture(scope="module")
def records() -> EngineRecords:
    return read_engine_records(map(record_path, FITTED), check=map(record_path, CHECKED))


@pytest.fixture(scope="module")
def report(records: EngineRecords) -> EngineReport:
    """The shipped profile on all records of docs/results/serving-engines.md."""
    fit = EngineFit(profile=PROFILE, terms=(), values=(), rms_percent=0.0, points=0)
    return engine_report(records, fit)


def test_the_shipped_profile_is_fitted_to_the_published_records(
    records: EngineRecords, tmp_path: Path
) -> None:
    path = tmp_path / "vllm-0.26.toml"
    path.write_text(profile_text(engine_report(records, fit_profile(records))), encoding="utf-8")
    fitted = engine_profile(str(path), catalog.gpu("h200"))
    shipped = engine_profile("vllm-0.26", catalog.gpu("h200"))
    terms = ("linear_factor", "attention_factor", "attention_tail_share", "compute_factor",
             "layer_overhead_s", "sum_gap_s", "rank_step_s", "eager_layer_s", "piecewise_layer_s",
             "draft_step_overhead_s", "speedup_error", "host_error")  # fmt: skip
    for name in terms:
        assert getattr(fitted, name) == pytest.approx(getattr(shipped, name), rel=2e-3), name
    for one, other in zip(fitted.host, shipped.host, strict=True):
        assert (one.method, one.overlapped) == (other.method, other.overlapped)
        for name in ("step_s", "sequence_s", "draft_token_s", "draft_layer_s", "draft_step_s"):
            expected = pytest.approx(getattr(other, name), rel=2e-3, abs=1e-9)
            assert getattr(one, name) == expected, name


def test_points_have_their_published_errors(report: EngineReport) -> None:
    errors = report.held_back.errors
    at_unknown_host = [e for e in report.deployable.errors if not e.host_known]
    missed = [e for e in errors if misses_graph(e.record.point, PROFILE)]
    published: list[tuple[Iterable[PointError], dict[str, Figures]]] = [
        (
            report.fitted,
            {
                "plain": (30, 2.0, -29.9),
                "rounds": (91, 2.7, -32.0),
                "draft model": (47, 2.9, -30.5),
            },
        ),
        (
            report.host_known.errors,
            {"plain": (61, 2.3, -10.5), "rounds": (94, 3.3, 22.2), "draft model": (7, 2.9, -11.5)},
        ),
        (
            at_unknown_host,
            {"plain": (7, 4.6, -14.1), "rounds": (38, 4.9, 16.2), "draft model": (70, 6.8, -53.3)},
        ),
        (missed, {"rounds": (18, 16.6, 54.2), "draft model": (3, 21.0, -42.3)}),
    ]
    for chosen, expected in published:
        assert_published(by_kind(chosen), expected)
    assert len(errors) == sum(len(list(chosen)) for chosen, _ in published[1:])


def test_judged_points_have_their_published_errors_by_target(report: EngineReport) -> None:
    """Points whose host is known; nothing of the two Qwen models is fitted."""
    found: dict[str, list[float]] = {}
    for error in report.host_known.errors:
        setup = error.record.point.setup
        found.setdefault(f"{setup.target} {setup.method}", []).append(error.percent)
    published = {
        "llama-3.1-8b plain": (25, 1.9, 7.2),
        "llama-3.1-8b eagle3": (59, 2.2, -9.1),
        "llama-3.1-8b draft": (7, 2.9, -11.5),
        "llama-3.2-1b plain": (8, 4.8, -10.5),
        "llama-3.2-1b eagle3": (8, 3.7, 12.4),
        "llama-3.2-1b ngram": (7, 11.4, 22.2),
        "qwen2.5-7b plain": (21, 3.0, -7.6),
        "qwen2.5-7b eagle3": (16, 4.0, -7.4),
        "qwen3-32b plain": (7, 2.0, -3.0),
        "qwen3-32b eagle3": (4, 2.0, -5.1),
    }
    assert_published({name: figures(percents) for name, percents in found.items()}, published)


def test_judged_points_of_workloads_that_were_not_fitted_have_their_published_errors(
    report: EngineReport,
) -> None:
    fitted = {error.record.point.workload for error in report.fitted}
    unseen = [e for e in report.host_known.errors if e.record.point.workload not in fitted]
    steps = [e.percent for e in unseen if e.record.point.setup.gamma == 0]
    rounds = [e.percent for e in unseen if e.record.point.setup.gamma > 0]
    assert figures(steps) == pytest.approx((52, 2.5, -10.5), abs=0.06)
    assert figures(rounds) == pytest.approx((67, 3.4, 22.2), abs=0.06)


def test_decisions_are_as_published(report: EngineReport) -> None:
    def decided(judged: Judged) -> tuple[int, int, float, int, int]:
        above = sum(regret > 0.02 for regret in judged.regrets)
        worst = round(100.0 * max(judged.regrets), 1)
        return judged.signs_right, judged.signs, worst, above, len(judged.regrets)

    assert decided(report.host_known) == (277, 282, 5.3, 1, 196)
    assert decided(report.deployable) == (452, 462, 7.1, 3, 224)
    for points, methods in (
        (report.host_known, {"ngram": 4, "draft": 1}),
        (report.deployable, {"ngram": 4, "draft": 6}),
    ):
        wrong = [d for d in points.decisions if not d.is_near_tie and not d.sign_right]
        assert Counter(d.record.point.setup.method for d in wrong) == methods
    assert report.outside == [
        "worst 22.2 % exceeds 15 %",
        "regret 5.3 % exceeds 2 %",
        "5 speedups are predicted on the wrong side of 1",
    ]


def test_the_readme_shows_errors_and_decisions(report: EngineReport) -> None:
    """Of judged points, and of all that were not fitted."""
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    judged_points, every = report.host_known, report.held_back
    others = len(every.errors) - len(judged_points.errors)
    names = (f"{len(judged_points.errors)} points that were not fitted", f"the {others} others")
    for name, chosen in zip(names, (judged_points, every), strict=True):
        (row,) = (line for line in readme.splitlines() if name in line)
        plain, rounds = (
            [e.percent for e in chosen.errors if (e.record.point.setup.gamma > 0) is of_rounds]
            for of_rounds in (False, True)
        )
        pairs = re.findall(r"([\d.]+) \(([-+][\d.]+)\)", row)
        for errors, pair in zip((plain, rounds), pairs, strict=True):
            expected = (float(np.median(np.abs(errors))), max(errors, key=abs))
            assert [float(x) for x in pair] == pytest.approx(expected, abs=0.06)
        beyond = sum(abs(percent) > 15.0 for percent in rounds)
        assert f", {beyond} of {len(rounds)} beyond 15 %" in row
        above = sum(regret > 0.02 for regret in chosen.regrets)
        assert f"{chosen.signs_right} of {chosen.signs};" in row
        assert f" {above} of {len(chosen.regrets)} |" in row
    missed = sum(misses_graph(e.record.point, PROFILE) for e in every.errors)
    assert f"{missed} of them miss a CUDA graph" in row


def test_the_host_was_disturbed_as_published(records: EngineRecords) -> None:
    note = shared_host_note(records, PROFILE)
    assert "disturbed 61% of the rounds" in note and "up to 1.6 times as long" in note


def shares(errors: Sequence[PointError]) -> np.ndarray:
    """Columns: ln(predicted / measured), the host's share, and half the 90 % interval.

    The share is d ln(step) / d ln(host times).
    """
    rows: list[tuple[float, ...]] = []
    for group in grouped([e.record for e in errors], "h200"):
        passes_s = group.passes_s(PROFILE)
        more, less = (passes_s + group.waits(PROFILE, passes_s, k) for k in (1.25, 0.8))
        share = np.log(more / less) / np.log(1.25 / 0.8)
        error = np.log(group.seconds(PROFILE) / group.measured_s)
        width = [Z90 * time_error(group.scenario_of(r, PROFILE)) for r in group.records]
        rows += zip(error, share, width, strict=True)
    return np.array(rows).T


@pytest.mark.parametrize(
    ("known", "published"),
    [
        (True, [(136, 3.6, 0, 133), (5, 9.6, 1, 5), (21, 7.6, 0, 21)]),
        (False, [(28, 8.1, 2, 26), (68, 11.4, 9, 67), (19, 37.5, 16, 17)]),
    ],
)
def test_errors_grow_with_the_share_of_the_host(
    report: EngineReport, known: bool, published: list[tuple[float, ...]]
) -> None:
    """Points as exported: their number, rms error, those above 15 % and those in the interval."""
    errors = [e for e in report.deployable.errors if e.host_known == known]
    error, share, width = shares(errors)
    for part, expected in zip(
        (share < 0.2, (share >= 0.2) & (share < 0.6), share >= 0.6), published, strict=True
    ):
        missed = error[part]
        rms = 100.0 * float(np.sqrt(np.mean(missed**2)))
        above = int((np.abs(np.expm1(missed)) > 0.15).sum())
        inside = int((np.abs(missed) < width[part]).sum())
        assert (int(part.sum()), rms, above, inside) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(
    ("gamma", "misses", "change", "published"),
    [(4, True, (-51, -10), (7, 3.0, -4.8)), (4, False, (1, 6), (4, 4.0, -5.8)),
     (3, False, (-7, 5), (11, 4.1, -8.7))],
)  # fmt: skip
def test_exported_graphs_change_rounds_as_published(
    report: EngineReport, gamma: int, misses: bool, change: tuple[int, int], published: Figures
) -> None:
    """EAGLE-3 rounds of Llama-3.1-8B that were timed with both kinds of graphs."""
    every = [*report.fitted, *report.held_back.errors]
    timed: dict[bool, dict[tuple[str, int, int, int], PointError]] = {False: {}, True: {}}
    for error in every:
        point, setup = error.record.point, error.record.point.setup
        if (setup.target, setup.method, setup.gamma) == ("llama-3.1-8b", "eagle3", gamma):
            timed[setup.exported_graphs][point.workload] = error
    pairs = [(timed[False][key], timed[True][key]) for key in timed[False].keys() & timed[True]]
    chosen = [(a, b) for a, b in pairs if misses_graph(a.record.point, PROFILE) == misses]
    changes = [round(100.0 * (b.record.seconds / a.record.seconds - 1.0)) for a, b in chosen]
    assert (min(changes), max(changes)) == change
    assert figures([b.percent for _, b in chosen]) == pytest.approx(published, abs=0.06)


def test_the_shipped_profile_holds_seed_5201(report: EngineReport) -> None:
    errors = {e.record.point.id: e for e in report.held_back.errors}
    committed = blind_errors("h200-seed5201", blind_predictions("seed5201"))
    shipped = [errors[e.record.point.id] for e in committed]
    for one, other in zip(shipped, committed, strict=True):
        assert one.predicted_s == pytest.approx(other.predicted_s, rel=1e-3)
    error, share, width = shares(shipped)
    assert (np.abs(error) < width).all()
    assert width[share == 0.0] == pytest.approx(0.084, abs=0.001)
    assert float(np.exp(max(width))) == pytest.approx(1.6, abs=0.01)
    decided = judged(shipped)
    assert (decided.signs_right, decided.signs) == (102, 107)
    assert len(decided.regrets) == 56 and max(decided.regrets) == 0.0


def test_steps_of_a_mixture_have_their_published_errors() -> None:
    """docs/results/architectures.md, "now": none of these times was used in a fit."""
    medians, worst = {}, {}
    for group in grouped(read_engine_records([record_path("h200-experts")]).points, "h200"):
        if group.scenario.target.experts is not None:
            errors = 100.0 * (group.seconds(PROFILE) / group.measured_s - 1.0)
            medians[group.method] = float(np.median(np.abs(errors)))
            worst[group.method] = float(np.max(np.abs(errors)))
            assert np.abs(errors[group.batch == 1]).item() < 1.0
    assert medians == pytest.approx({"plain": 4.9, "ngram": 2.3}, abs=0.06)
    assert worst == pytest.approx({"plain": 8.8, "ngram": 7.1}, abs=0.06)


def test_steps_with_mxfp4_have_their_published_errors() -> None:
    """docs/results/architectures.md, "now": none of these times was used in a fit."""
    records = read_engine_records([record_path("h200-mxfp4-mla")])
    timed = [r for r in records.points if r.point.setup.target == "gpt-oss-120b"]
    ratios = [group.seconds(PROFILE) / group.measured_s for group in grouped(timed, records.gpu)]
    errors = list(100.0 * (np.concatenate(ratios) - 1.0))
    got = len(errors), float(np.median(np.abs(errors))), max(errors, key=abs)
    assert got == pytest.approx((9, 2.0, -4.8), abs=0.06)
