"""What no point determines, or validates, is not written as free or as certain."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_samples import a_plan, records_of

import calibration
from calibration.engines.fitting import fit as fitting
from calibration.engines.fitting.fit import UNSEEN, EngineFit, fit_profile
from calibration.engines.fitting.groups import Array, grouped, predicted
from calibration.engines.profile_file import profile_text
from calibration.engines.reading import read_engine_records
from calibration.engines.records import EngineRecords
from calibration.engines.report import engine_report, report_lines
from perfmodel import EngineProfile, catalog
from perfmodel.catalog.engines import engine_profile
from perfmodel.speculation import OTHER_HOST_ERROR

MEASURED = Path(calibration.__file__).parent / "measured"
H200 = catalog.gpu("h200")
SHIPPED = engine_profile("vllm-0.26", H200)


@pytest.fixture(scope="module")
def few() -> tuple[EngineRecords, EngineFit]:
    """Of which no point is held back, and none depends on launches of the target's layers."""
    records = read_engine_records([MEASURED / "engine-vllm-0.26-h200-disturbed.jsonl"])
    return records, fit_profile(records)


def written(records: EngineRecords, fit: EngineFit, folder: Path) -> tuple[str, EngineProfile]:
    path = folder / "vllm-0.26.toml"
    path.write_text(profile_text(engine_report(records, fit)), encoding="utf-8")
    return path.read_text(encoding="utf-8"), engine_profile(str(path), H200)


def test_launches_that_no_point_depends_on_are_those_of_the_catalog(
    few: tuple[EngineRecords, EngineFit], tmp_path: Path
) -> None:
    records, fit = few
    text, profile = written(records, fit, tmp_path)
    assert not records.held_back
    for name in ("eager_layer_s", "piecewise_layer_s"):
        assert name in {*fit.not_timed, *(term.field for term in fit.unresolved)}
        assert getattr(profile, name) == pytest.approx(getattr(SHIPPED, name), rel=1e-4)
    of_round = "eagle3 step_s, eagle3 sequence_s, eagle3 draft_token_s"
    assumed = f"eager_layer_s, {of_round}, piecewise_layer_s"
    assert f"no point depended on {assumed}: as in vllm-0.26" in text
    assert "no point depended on compute_factor, whose values are the usual ones" in text


def test_launches_that_no_point_has_are_those_of_the_catalog(tmp_path: Path) -> None:
    records = records_of(a_plan())[0]
    most = max(r.point.batch * (r.point.setup.gamma + 1) for r in records.points)
    fit = fit_profile(records)
    text, profile = written(records, fit, tmp_path)
    assert most <= profile.graph_tokens and fit.not_timed == ("eager_layer_s", "piecewise_layer_s")
    assert profile.eager_layer_s == pytest.approx(SHIPPED.eager_layer_s, rel=1e-4)
    assert "not fitted: no point depends on it; as in vllm-0.26" in "\n".join(
        report_lines(engine_report(records, fit))
    )
    assert "eager_layer_s" in text.partition("[gpu.h200]")[2]


def hidden_step(slowdown: float, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float, float]:
    """Host time of a plain step that the GPU hides, if the catalog's host is slower.

    With it, how much that of the fit and 2 % of the catalog's more change ln(prediction) at most.
    """
    usual = SHIPPED.on_slower_host(slowdown)
    monkeypatch.setattr(fitting, "usual_profile", lambda records: usual)
    records = records_of(a_plan())[0]
    fit = fit_profile(records)
    assert {("plain", "step_s"), ("plain", "sequence_s")} <= {
        (term.method, term.field) for term in fit.unresolved
    }
    groups = grouped(records.fitted, records.gpu)
    costs, wait = fit.profile.host_costs("plain"), usual.host_costs("plain")
    assert costs is not None and wait is not None

    def seconds(**times: float) -> Array:
        """Predictions with other host times of a plain step."""
        hosts = [replace(h, **times) if h.method == "plain" else h for h in fit.profile.host]
        return predicted(replace(fit.profile, host=tuple(hosts)), groups)

    hidden = seconds(step_s=0.0, sequence_s=0.0)
    at, more = seconds(), seconds(step_s=costs.step_s + 0.02 * wait.step_s)
    changes = [float(np.abs(np.log(s / hidden)).max()) for s in (at, more)]
    return costs.step_s / wait.step_s, changes[0], changes[1]


def test_hidden_host_time_is_that_of_the_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    share, change, _ = hidden_step(1.0, monkeypatch)
    assert share == pytest.approx(1.0) and change < UNSEEN


def test_hidden_host_time_is_at_most_what_no_point_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    share, change, more = hidden_step(6.0, monkeypatch)
    assert 0.1 < share < 0.9 and change <= UNSEEN < more


def test_errors_that_were_not_validated_are_those_of_an_unmeasured_engine_at_least(
    few: tuple[EngineRecords, EngineFit], tmp_path: Path
) -> None:
    report = engine_report(*few)
    profile = written(*few, tmp_path)[1]
    assert report.note.startswith("the profile is not validated: 0 points are held back, and 4")
    assert profile.speedup_error == engine_profile("kernels", H200).speedup_error
    assert profile.host_error == pytest.approx(OTHER_HOST_ERROR, rel=1e-2)


def test_larger_errors_of_fitted_points_are_kept(tmp_path: Path) -> None:
    rng = random.Random(4)
    noisy = records_of(a_plan(), lambda index: float(np.exp(rng.gauss(0.0, 0.3))))[0]
    records = replace(noisy, points=tuple(noisy.fitted))
    profile = written(records, fit_profile(records), tmp_path)[1]
    assert profile.speedup_error > 2.0 * engine_profile("kernels", H200).speedup_error


def test_errors_of_enough_held_back_points_are_written_without_a_note(tmp_path: Path) -> None:
    records = records_of(a_plan())[0]
    fit = fit_profile(records)
    text, profile = written(records, fit, tmp_path)
    assert engine_report(records, fit).note == "" and "validate" not in text
    assert profile.speedup_error < 0.05  # they are predicted almost exactly


@pytest.mark.parametrize("held_back", [0, 1, 3, 4])
def test_four_held_back_points_validate_a_profile(held_back: int, tmp_path: Path) -> None:
    records = records_of(a_plan())[0]
    few = replace(records, points=(*records.fitted, *records.held_back[:held_back]))
    fit = fit_profile(few)
    profile = written(few, fit, tmp_path)[1]
    assert bool(engine_report(few, fit).note) == (held_back < 4)
    assert (profile.host_error >= 0.99 * OTHER_HOST_ERROR) or held_back == 4
    assert (profile.speedup_error > 0.1) == (held_back < 4)
