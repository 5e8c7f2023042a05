"""The fit of MagicDec's profile recovers known coefficients and holds out the right rows."""

import tomllib
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
import pytest

from calibration.fit.magicdec import (
    NAMES,
    bare,
    fit_by_architecture,
    fit_rows,
    held_out_errors,
    other_gpu_splits,
    profile_text,
    splits,
)
from calibration.records.published import PublishedRow, magicdec_rows, predict_row
from perfmodel import EngineProfile

SHIPPED = resources.files("perfmodel") / "catalog" / "engines" / "magicdec.toml"
TRUTH = {
    "linear_factor": 1.05,
    "attention_factor": 0.93,
    "verify_attention_factor": 1.2,
    "draft_attention_factor": 1.08,
    "comm_factor": 1.1,
    "layer_overhead_s": 40e-6,
    "layer_overhead_per_sequence_s": 0.3e-6,
    "step_overhead_s": 0.15e-3,
    "draft_step_overhead_s": 0.15e-3,
    "round_overhead_s": 0.7e-3,
    "round_overhead_per_sequence_s": 4e-6,
}


def made_by_the_model(row: PublishedRow, truth: dict[str, float]) -> PublishedRow:
    """The row with the predicted times of an engine with these coefficients."""
    point = predict_row(row, lambda profile: bare(profile).changed(**truth))
    assert point.draft_step is not None
    return replace(
        row,
        target_step_s=float(point.target_step.total_s),
        verify_s=float(point.verify.total_s),
        draft_step_s=float(point.draft_step.total_s),
        tpot_s=float(point.tpot_s),
    )


@pytest.fixture(scope="module")
def synthetic() -> list[PublishedRow]:
    rows = [row for row in magicdec_rows() if row.gpu == "a100-sxm-80gb"]
    return [made_by_the_model(row, TRUTH) for row in rows]


def test_the_fit_reproduces_the_times_of_an_engine_of_its_own_form(
    synthetic: list[PublishedRow],
) -> None:
    fit = fit_rows(synthetic)
    assert fit.rows == 30
    assert fit.rms_percent < 0.5


def test_the_fit_recovers_known_coefficients(
    synthetic: list[PublishedRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exact times the priors hardly matter, and every coefficient is recovered."""
    monkeypatch.setattr("calibration.fit.magicdec.MEASUREMENT_ERROR", 1e-6)
    found = fit_rows(synthetic).values
    assert set(found) == set(TRUTH)
    for name, value in TRUTH.items():
        assert found[name] == pytest.approx(value, rel=1e-3), name


def test_coefficients_are_never_negative(synthetic: list[PublishedRow]) -> None:
    fast = [
        replace(r, target_step_s=r.target_step_s / 3, verify_s=r.verify_s / 3) for r in synthetic
    ]
    assert min(fit_rows(fast).values.values()) >= 0.0


def test_a_bare_profile_has_no_engine_overhead() -> None:
    profile = bare(EngineProfile(name="x", origin="fitted", source="a test").changed(**TRUTH))
    for name in NAMES:
        assert getattr(profile, name) == (1.0 if name.endswith("factor") else 0.0)
    assert profile.round_overhead_s == profile.round_overhead_per_sequence_s == 0.0


# ---- held out ---------------------------------------------------------------------------------


def test_held_out_rows_never_appear_among_the_fitted() -> None:
    rows = magicdec_rows()
    found = [*splits(rows), *other_gpu_splits(rows)]
    assert len(found) > 10
    for split in found:
        assert split.held_out and split.fitted
        assert not set(split.held_out) & set(split.fitted)
        gpus = {row.gpu for row in split.held_out}
        assert len(gpus) == 1
        mine = {row for row in rows if row.gpu in gpus}
        assert set(split.held_out) | set(split.fitted) >= mine


@pytest.mark.parametrize(
    "phase, fields",
    [
        ("target_step_s", ("batch", "prompt_tokens")),
        ("verify_s", ("batch", "prompt_tokens", "gamma")),
        ("draft_step_s", ("batch", "prompt_tokens", "draft", "draft_policy", "gamma")),
    ],
)
def test_unseen_figures_are_not_in_any_fitted_row_of_the_same_conditions(
    phase: str, fields: tuple[str, ...]
) -> None:
    """The paper repeats T_T for every draft; such a copy does not count as held out."""
    for split in splits(magicdec_rows()):
        if phase in split.unseen:
            fitted = {tuple(getattr(row, f) for f in fields) for row in split.fitted}
            held = {tuple(getattr(row, f) for f in fields) for row in split.held_out}
            assert not fitted & held, split.name


def test_every_row_is_held_out_by_every_applicable_criterion() -> None:
    rows = magicdec_rows()
    for row in rows:
        mine = [s for s in splits(rows) if row in s.held_out]
        labels = [s.name for s in mine]
        assert len(set(labels)) == len(labels) >= 3


def test_a_held_out_prediction_does_not_depend_on_the_held_out_times() -> None:
    split = next(s for s in splits(magicdec_rows()) if "target_step_s" in s.unseen)
    wrong = tuple(replace(row, target_step_s=9 * row.target_step_s) for row in split.held_out)
    errors = held_out_errors(split), held_out_errors(replace(split, held_out=wrong))
    for right, other in zip(*errors, strict=True):
        predicted = (1 + right.errors["target_step_s"]) * right.row.target_step_s
        again = (1 + other.errors["target_step_s"]) * other.row.target_step_s
        assert again == pytest.approx(predicted, rel=1e-12)


# ---- what is shipped --------------------------------------------------------------------------


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[prefix + key] = value
    return values


def test_a_refit_reproduces_the_shipped_profile() -> None:
    rows = magicdec_rows()
    fits = fit_by_architecture(rows)
    assert set(fits) == {"default", "ampere", "hopper"} and fits["default"] is fits["hopper"]
    held_out = [e.errors["speedup"] for split in splits(rows) for e in held_out_errors(split)]
    again = flat(tomllib.loads(profile_text(fits, float(np.std(held_out)))))
    shipped = flat(tomllib.loads(SHIPPED.read_text(encoding="utf-8")))
    assert set(again) == set(shipped)
    for key, value in shipped.items():
        if isinstance(value, float):
            assert again[key] == pytest.approx(value, rel=1e-3, abs=2e-3), key
        else:
            assert again[key] == value, key
