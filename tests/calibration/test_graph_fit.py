"""The graph fit: it recovers what made the rows, and the shipped profile is what it finds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from calibration.graph_fit import COEFFICIENTS, errors, fit_profile
from calibration.published import PHASES, PublishedRow, h200_rows, predict_row
from perfmodel import catalog, engine_profile

TRUTH = {
    "compute_factor": 0.8,
    "activation_factor": 1.6,
    "attention_factor": 1.03,
    "draft_attention_factor": 1.03,
    "kernel_gap_s": 1.5e-6,
}


def made_by_the_model(row: PublishedRow) -> PublishedRow:
    point = predict_row(row, lambda profile: profile.changed(**TRUTH))
    assert point.draft_step is not None
    return replace(
        row,
        target_step_s=float(point.target_step.total_s),
        verify_s=float(point.verify.total_s),
        draft_step_s=float(point.draft_step.total_s),
    )


def test_the_fit_recovers_known_coefficients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.graph_fit.MEASUREMENT_ERROR", 1e-6)
    found = fit_profile([made_by_the_model(row) for row in h200_rows()])
    for name, value in TRUTH.items():
        assert found[name] == pytest.approx(value, rel=1e-3), name


def test_the_shipped_profile_is_a_refit_to_rounding() -> None:
    found, shipped = fit_profile(h200_rows()), engine_profile("plain-graph", catalog.gpu("h200"))
    for name in COEFFICIENTS:
        assert getattr(shipped, name) == pytest.approx(found[name], rel=2e-3), name


def test_the_fit_leaves_less_than_where_it_started() -> None:
    rows = h200_rows()
    start = {name: values[0] for name, values in COEFFICIENTS.items()}
    before, after = (np.abs(errors(rows, v)).mean() for v in (start, fit_profile(rows)))
    assert after < before


def test_errors_are_signed_and_one_per_row_and_phase() -> None:
    rows = [made_by_the_model(row) for row in h200_rows()]
    assert errors(rows, TRUTH).shape == (12, len(PHASES))
    assert np.abs(errors(rows, TRUTH)).max() < 1e-12
    slow = [replace(row, verify_s=2 * row.verify_s) for row in rows]
    assert errors(slow, TRUTH)[:, PHASES.index("verify_s")] == pytest.approx([-0.5] * 12)
