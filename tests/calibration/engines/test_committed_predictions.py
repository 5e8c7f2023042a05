"""Predictions that were committed before a run of vLLM 0.26 have their published errors."""

from __future__ import annotations

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

from calibration.engines.fitting.groups import grouped
from calibration.engines.reading import read_engine_records
from perfmodel.speculation import time_error
from perfmodel.units import Z90


@pytest.mark.parametrize(
    ("names", "predictions", "column", "published"),
    [
        (
            ("h200-processes", "h200-tp2-processes"),
            *("processes", "predicted_s"),
            {"rounds": (12, 12.3, 24.2), "draft model": (26, 7.1, 26.4)},
        ),
        (
            ("h200-seed3101",),
            *("seed3101", "predicted_eec4778c_s"),
            {"plain": (4, 1.1, 3.3), "rounds": (13, 4.4, 12.0)},
        ),
        (
            ("h200-seed4101",),
            *("seed4101", "predicted_shipped_s"),
            {
                "plain": (26, 2.5, -34.0),
                "rounds": (43, 4.8, -40.4),
                "draft model": (18, 14.2, -24.2),
            },
        ),
        (
            ("h200-seed5201",),
            *("seed5201", "predicted_s"),
            {"plain": (14, 2.2, 6.4), "rounds": (21, 4.0, 22.2), "draft model": (7, 2.9, -11.5)},
        ),
        (
            ("h200-seed6301",),
            *("seed6301", "predicted_s"),
            {
                "plain": (19, 2.7, -25.5),
                "rounds": (26, 3.5, -22.5),
                "draft model": (10, 5.1, -12.2),
            },
        ),
    ],
)
def test_blind_predictions_have_their_published_errors(
    names: tuple[str, ...], predictions: str, column: str, published: dict[str, Figures]
) -> None:
    """Predictions that were committed before the run, by the profile of that time."""
    expected = blind_predictions(predictions, column)
    errors = [error for name in names for error in blind_errors(name, expected)]
    assert_published(by_kind(errors), published)


def test_points_of_seed_6301_have_their_published_errors() -> None:
    """As predicted before the run, on whatever host."""
    committed = blind_errors("h200-seed6301", blind_predictions("seed6301"))
    percents: dict[str, list[float]] = {}
    for error in committed:
        setup = error.record.point.setup
        label = f"{setup.target} {setup.method} {setup.gamma}, TP {setup.tp}"
        percents.setdefault(label, []).append(error.percent)
    published = {
        "llama-3.1-8b plain 0, TP 1": (7, 1.9, -3.4, 2.7),
        "llama-3.1-8b eagle3 2, TP 1": (7, 1.4, -4.1, 0.5),
        "llama-3.1-8b draft 5, TP 1": (5, 2.0, -1.9, 5.6),
        "llama-3.1-8b plain 0, TP 2": (5, 1.0, -5.7, 1.0),
        "llama-3.1-8b eagle3 5, TP 2": (5, 2.0, 1.1, 2.9),
        "llama-3.1-8b draft 2, TP 2": (5, 6.0, -12.2, -4.6),
        "llama-3.2-1b plain 0, TP 1": (7, 17.7, -25.5, -5.1),
        "llama-3.2-1b eagle3 5, TP 1": (7, 10.3, -14.7, 5.5),
        "llama-3.2-1b ngram 2, TP 1": (7, 9.2, -22.5, -6.9),
    }
    assert percents.keys() == published.keys()
    for label, each in percents.items():
        got = len(each), float(np.median(np.abs(each))), min(each), max(each)
        assert got == pytest.approx(published[label], abs=0.06), label
    rounds = [e.percent for e in committed if e.record.point.setup.gamma > 0]
    assert figures(rounds) == pytest.approx((36, 4.8, -22.5), abs=0.06)
    of_two = [e.percent for e in committed if e.record.point.setup.tp == 2]
    assert figures(of_two) == pytest.approx((15, 2.5, -12.2), abs=0.06)
    beyond = [e.record.point.setup.target for e in committed if abs(e.percent) > 15.0]
    assert beyond == ["llama-3.2-1b"] * 5


def test_steps_with_latent_attention_and_mxfp4_have_their_published_errors() -> None:
    """docs/results/architectures.md: predictions that were committed before the run."""
    name = "mxfp4-mla"
    records = read_engine_records([record_path(f"h200-{name}")])
    assert [f.point.batch for f in records.failed] == [48, 107]
    expected = blind_predictions(name, "default_graphs_s")
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records.points:
        point, target = record.point, record.point.setup.target
        ratio = expected[target, "plain", 0, 1, point.batch, point.prompt_tokens] / record.seconds
        (group,) = grouped([record], records.gpu)
        assert abs(np.log(ratio)) < Z90 * time_error(group.scenario_of(record, PROFILE))
        found.setdefault(target, []).append((record.spread, 100.0 * (ratio - 1.0)))
    published = {
        "deepseek-v2-lite": [(12, 6.3, -17.6), (4, 2.5, -5.8)],
        "gpt-oss-120b": [(9, 1.8, 12.3), (8, 1.8, 12.3)],
    }
    assert found.keys() == published.keys()
    for target, rows in found.items():
        for most, row in zip((np.inf, 0.1), published[target], strict=True):
            errors = [error for spread, error in rows if spread <= most]
            got = len(errors), float(np.median(np.abs(errors))), max(errors, key=abs)
            assert got == pytest.approx(row, abs=0.06), target
