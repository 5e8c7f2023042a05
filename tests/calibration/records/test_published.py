"""Published step times, their signed prediction errors, and the held-out targets."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from calibration.records.published import (
    GOLDEN,
    PHASES,
    PublishedRow,
    RowError,
    by_table,
    h200_rows,
    magicdec_rows,
    predict_row,
    row_error,
    summarise,
)
from calibration.validate.published_report import (
    TARGET_MEAN_PERCENT,
    TARGET_WORST_PERCENT,
    PublishedReport,
    report_tables,
    validate_published,
    verdict,
)


@pytest.fixture(scope="module")
def report() -> PublishedReport:
    return validate_published()


# ---- the rows ---------------------------------------------------------------------------------


def test_the_golden_file_holds_the_papers_42_rows() -> None:
    rows = magicdec_rows()
    tables = {name: len(errors) for name, errors in by_table(fake(rows)).items()}
    assert tables == {"T3a": 17, "T3b": 13, "T6": 12}
    assert {row.gpu for row in rows} == {"a100-sxm-80gb", "h100-sxm"}
    assert {row.engine for row in rows} == {"magicdec"}
    assert len(h200_rows()) == 12


def fake(rows: list[PublishedRow]) -> list[RowError]:
    return [RowError(row=row, errors={}) for row in rows]


def test_published_times_are_seconds_of_one_step() -> None:
    for row in [*magicdec_rows(), *h200_rows()]:
        assert 1e-3 < row.draft_step_s <= row.target_step_s < row.verify_s * 1.02
        assert row.verify_s < 0.2


def test_published_rounds_leave_a_small_positive_overhead() -> None:
    """MagicDec's measured overhead per round is 0.6-1.0 ms on H100 and 1.3-2.7 ms on A100."""
    overheads = np.array([row.overhead_s for row in magicdec_rows()])
    assert np.all((overheads > 0.4e-3) & (overheads < 3.5e-3))


def test_speedups_are_those_that_the_paper_states() -> None:
    """Its `speedup` column, rounded to 0.01; times to 0.01 ms."""
    text = (GOLDEN / "magicdec_step_times.csv").read_text(encoding="utf-8")
    table = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    stated = [float(values["speedup"]) for values in table]
    assert [row.speedup for row in magicdec_rows()] == pytest.approx(stated, abs=0.011)
    assert all(np.isnan(row.speedup) for row in h200_rows())


# ---- errors -----------------------------------------------------------------------------------


def test_an_error_is_signed_and_relative_to_what_was_published() -> None:
    row = magicdec_rows()[0]
    point = predict_row(row)
    found = row_error(row, point).errors
    assert found["target_step_s"] == pytest.approx(
        float(point.target_step.total_s) / row.target_step_s - 1.0, rel=1e-12
    )
    slower = replace(row, target_step_s=2 * float(point.target_step.total_s))
    assert row_error(slower, point).errors["target_step_s"] == pytest.approx(-0.5, rel=1e-12)


def test_a_perfect_prediction_has_no_error() -> None:
    row = magicdec_rows()[0]
    point = predict_row(row)
    assert point.draft_step is not None
    exact = replace(
        row,
        target_step_s=float(point.target_step.total_s),
        verify_s=float(point.verify.total_s),
        draft_step_s=float(point.draft_step.total_s),
        tpot_s=float(point.tpot_s),
    )
    assert max(map(abs, row_error(exact, point).errors.values())) < 1e-12


def test_a_summary_keeps_the_sign_and_the_worst() -> None:
    row = magicdec_rows()[0]
    errors = [RowError(row=row, errors={"verify_s": e}) for e in (0.01, -0.04, 0.02)]
    found = summarise(errors, "verify_s")
    assert found.rows == 3
    assert found.mean_signed == pytest.approx(-1 / 3)
    assert found.mean_absolute == pytest.approx(7 / 3)
    assert found.median_absolute == pytest.approx(2.0)
    assert found.worst == pytest.approx(-4.0)


# ---- the report -------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["target_step_s", "verify_s", "speedup"])
def test_held_out_rows_meet_the_stated_mean(report: PublishedReport, phase: str) -> None:
    assert TARGET_MEAN_PERCENT == 3.0
    assert report.held_out.summaries[phase].mean_absolute <= TARGET_MEAN_PERCENT


def test_held_out_draft_steps_stay_within_4_percent_in_the_mean(report: PublishedReport) -> None:
    """The target of 3 % is not met; this is an upper bound of the current figure."""
    assert report.held_out.summaries["draft_step_s"].mean_absolute <= 4.0


@pytest.mark.parametrize("phase", ["target_step_s", "verify_s", "speedup"])
def test_held_out_rows_meet_the_stated_worst(report: PublishedReport, phase: str) -> None:
    assert TARGET_WORST_PERCENT == 10.0
    assert abs(report.held_out.summaries[phase].worst) <= TARGET_WORST_PERCENT


@pytest.mark.parametrize(
    ("phase", "median"),
    [("target_step_s", 1.24), ("verify_s", 1.76), ("draft_step_s", 3.10), ("speedup", 1.89)],
)
def test_held_out_medians_are_no_worse_than_without_a_factor_of_verification(
    report: PublishedReport, phase: str, median: float
) -> None:
    """Commit 36990bc had the figures given here."""
    assert report.held_out.summaries[phase].median_absolute <= median


def test_the_shipped_profiles_predict_every_table_within_4_percent(report: PublishedReport) -> None:
    seen = {group.name: group for group in report.groups if not group.unseen}
    assert set(seen) == {"table T3a", "table T3b", "table T6", "table H200"}
    for group in seen.values():
        for phase in ("target_step_s", "verify_s"):
            assert group.summaries[phase].mean_absolute <= 4.0, (group.name, phase)


def test_the_report_covers_every_row_phase_and_split(report: PublishedReport) -> None:
    assert len(report.rows) == 42 + 12 + 23
    assert {phase for row in report.rows for phase in row.errors} == {*PHASES, "speedup"}
    unseen = {group.name for group in report.groups if group.unseen}
    for gpu in ("a100-sxm-80gb", "h100-sxm"):
        assert any(name.startswith(f"{gpu}, a draft") for name in unseen)
        assert {f"{gpu}, a batch out", f"{gpu} out, with its target and tables"} <= unseen
    assert {"h100-sxm, a γ out", "a100-sxm-80gb, a context out"} <= unseen


def test_what_is_outside_a_tolerance_is_named_with_its_error(report: PublishedReport) -> None:
    assert report.outside(100.0) == []
    everything = report.outside(0.0)
    assert len(everything) == 4 and all(text.endswith(" %") for text in everything)
    worst = max(s.mean_absolute for s in report.held_out.summaries.values())
    assert len(report.outside(worst - 1e-9)) == 1


def test_the_report_is_json_and_text(report: PublishedReport) -> None:
    found = report.to_dict()
    assert json.loads(json.dumps(found, allow_nan=False))["target"] == {"mean": 3.0, "worst": 10.0}
    rows = [
        row for header, rows in report_tables(report) for row in rows if len(row) == len(header)
    ]
    assert {row[0] for row in rows} == {group.name for group in (*report.groups, report.held_out)}
    assert "\nTarget on held-out rows, mean 3 % and worst 10 %: " in verdict(report)


def test_plain_decoding_on_one_gpu_is_predicted_without_a_fit(report: PublishedReport) -> None:
    """gpt-fast on one A100 in bf16 is predicted from kernel tables without engine overhead."""
    alone = [e for e in report.rows if e.row.table == "gpt-fast bf16" and e.row.tp == 1]
    assert len(alone) == 2
    assert all(abs(e.errors["target_step_s"]) < 0.02 for e in alone)
