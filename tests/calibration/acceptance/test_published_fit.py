"""The fit of published acceptance recovers known curves and reproduces the catalog."""

import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import perfmodel
from app.cli.main import run as specroof
from calibration.acceptance.fit import curves_text, fit_records
from calibration.acceptance.published_fit import (
    FIRST_RUNS,
    Choice,
    fit_all,
    fit_curve,
    fit_published_curves,
    published_points,
)
from calibration.records.acceptance import read_acceptance
from perfmodel.acceptance.curve import AcceptanceCurve, AcceptancePoint, acceptance_loss
from perfmodel.catalog.acceptance import acceptance_curve, measured_curves, read_acceptance_curves

MEASURED = Path(__file__).parents[3] / "calibration" / "measured"
RECORDS = MEASURED / "acceptance-h200-smollm2-135m.jsonl.gz"
CHOICE = Choice("a", "self", "streamingllm")


def made_points(noise: float = 0.0, **of: float) -> tuple[AcceptancePoint, ...]:
    drawn = np.random.default_rng(7)
    return tuple(
        AcceptancePoint(
            context_tokens=context,
            kv_budget_tokens=budget,
            alpha=1.0
            - float(acceptance_loss(kv_budget_tokens=budget, context_tokens=context, **of))
            * float(np.exp(noise * drawn.standard_normal())),
            temperature="0",
            citation="made",
        )
        for budget in (256.0, 1024.0)
        for context in (4_000.0, 16_000.0, 64_000.0)
    )


def test_the_fit_recovers_the_parameters_that_made_the_points() -> None:
    of = {"level": 0.2, "context_exponent": 0.07, "budget_exponent": 0.35}
    fit = fit_curve(CHOICE, made_points(**of), tuple(of), {})
    for name, value in of.items():
        assert getattr(fit.curve, name) == pytest.approx(value, rel=1e-5)
    assert np.abs(fit.residual).max() < 1e-6
    assert fit.left_out.size == 6
    assert np.abs(fit.left_out).max() < 1e-5


def test_noise_in_the_points_appears_in_sigma() -> None:
    of = {"level": 0.2, "context_exponent": 0.07, "budget_exponent": 0.35}
    quiet = fit_curve(CHOICE, made_points(**of), tuple(of), {}).curve.sigma
    loud = fit_curve(CHOICE, made_points(noise=0.3, **of), tuple(of), {}).curve.sigma
    assert 0.1 < np.sqrt(loud**2 - quiet**2) < 0.9


def test_refitting_the_catalogs_points_reproduces_the_catalog() -> None:
    catalog = {Choice(c.target, c.draft, c.draft_policy): c for c in measured_curves()}
    refitted = fit_all(published_points())
    assert refitted.keys() == catalog.keys()
    for choice, fit in refitted.items():
        if choice in FIRST_RUNS:
            continue
        for field in fields(AcceptanceCurve):
            new, old = getattr(fit.curve, field.name), getattr(catalog[choice], field.name)
            if isinstance(new, float):
                assert new == pytest.approx(old, rel=1e-3, abs=1e-6), (choice, field.name)
            else:
                assert new == old, (choice, field.name)


def test_refitting_the_committed_records_reproduces_smollm2s_curves() -> None:
    for fit in fit_records(read_acceptance(RECORDS)):
        found = fit.curve
        known = acceptance_curve(found.target, found.draft, found.draft_policy)
        assert known is not None and known.origin == "fitted"
        assert found.points == known.points
        for budget in (64.0, 300.0, 4096.0):
            at = {"kv_budget_tokens": budget, "context_tokens": 7800.0}
            assert float(found.alpha(**at)) == pytest.approx(float(known.alpha(**at)), abs=2e-4)


def test_a_written_curve_reads_back(tmp_path: Path) -> None:
    curve, path = measured_curves()[0], tmp_path / "curve.toml"
    path.write_text(curves_text([(curve, ("level",))], command="x"), encoding="utf-8")
    assert read_acceptance_curves(path) == (curve,)


def test_the_catalog_gets_a_file_for_every_published_curve(tmp_path: Path) -> None:
    files, _ = fit_published_curves()
    for name, text in files.items():
        (path := tmp_path / "curve.toml").write_text(text, encoding="utf-8")
        assert [curve for curve in read_acceptance_curves(path) if curve.points], name
    curves = {f"acceptance/{c.target}--{c.draft}--{c.draft_policy}.toml" for c in measured_curves()}
    assert set(files) == {name for name in curves if "smollm2" not in name}


def test_the_command_writes_what_the_catalog_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert specroof(["calibrate", "fit-published", f"--output={tmp_path}"]) == 0
    assert "engine magicdec" in capsys.readouterr().out
    shipped = Path(perfmodel.__file__).parent / "catalog"
    written = sorted(tmp_path.rglob("*.toml"))
    assert len(written) == 8
    for path in written:
        again = tomllib.loads(path.read_text(encoding="utf-8"))
        known = tomllib.loads((shipped / path.relative_to(tmp_path)).read_text(encoding="utf-8"))
        assert again.keys() == known.keys(), path.name
        for key, value in known.items():
            if isinstance(value, float):
                assert again[key] == pytest.approx(value, rel=1e-3, abs=2e-3), (path.name, key)
