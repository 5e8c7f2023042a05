"""Curves fitted to records recover known parameters and state their uncertainty."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from acceptance_samples import HEADER, record, records, view

from calibration.acceptance.fit import curves_text, fit_records
from calibration.records.acceptance import RecordSet
from perfmodel import ConfigError
from perfmodel.acceptance import acceptance_loss, alpha_for_tokens_per_round, tokens_per_round_iid
from perfmodel.catalog.acceptance import read_acceptance_curves


def truth(budget: float, context: float) -> float:
    shape = {"level": 0.12, "context_exponent": 0.05, "budget_exponent": 0.8}
    lost = acceptance_loss(kv_budget_tokens=budget, context_tokens=context, budget_offset=200.0,
                   fullness_exponent=3.0, **shape)  # fmt: skip
    return 1.0 - float(lost)


def test_a_fit_recovers_the_curve_of_the_records() -> None:
    for fit in fit_records(records(truth)):
        assert np.abs(fit.residual).max() < 0.006
        for budget, context in ((96, 3000), (700, 5000), (2000, 7800)):
            found = fit.curve.alpha(kv_budget_tokens=budget, context_tokens=context)
            assert float(found) == pytest.approx(truth(budget, context), abs=0.01)
        assert fit.curve.alpha(kv_budget_tokens=7800, context_tokens=7800) == 1.0


def test_a_window_that_reads_more_than_the_mean_counts_as_a_larger_budget() -> None:
    found = records(truth, noise=0.0)
    aligned = tuple(
        replace(r, read_tokens=r.read_tokens + 7.5) if r.view.policy == "streamingllm" else r
        for r in found.records
    )
    plain = {fit.curve.draft_policy: fit.curve for fit in fit_records(found)}
    for fit in fit_records(RecordSet(found.header, aligned)):
        policy, at = fit.curve.draft_policy, {"context_tokens": 7800}
        shifted = fit.curve.alpha(kv_budget_tokens=71.5, **at)
        usual = plain[policy].alpha(kv_budget_tokens=64, **at)
        if policy == "streamingllm":
            assert float(shifted) == pytest.approx(float(usual), abs=0.004)
        else:
            assert fit.curve == plain[policy]


def test_parameters_of_few_budgets_come_from_the_published_curve() -> None:
    (fit, _) = fit_records(records(truth, contexts=(7800,), budgets=(256,)))
    assert fit.free == ("level",)
    assert fit.curve.budget_exponent > 0


def test_every_fitted_curve_rises_with_the_budget() -> None:
    for fit in fit_records(records(lambda b, _: 0.8 - 0.0001 * b)):
        budgets = np.geomspace(16, 7800, 50)
        alphas = fit.curve.alpha(kv_budget_tokens=budgets, context_tokens=7800)
        assert (np.diff(alphas) >= 0).all()


def test_windows_left_out_do_not_count() -> None:
    shown = [view("snapkv", budget) for budget in (64, 256)]
    found = RecordSet(
        HEADER,
        tuple(
            record(one, alpha=0.2 if index == 3 else 0.9, index=index)
            for one in shown
            for index in range(4)
        ),
    )
    (all_of_them,) = fit_records(found)
    (without,) = fit_records(found, leave_out=3)
    assert without.curve.points[0].alpha == pytest.approx(0.9, abs=1e-3)
    tokens = (3 * float(tokens_per_round_iid(0.9, 4)) + float(tokens_per_round_iid(0.2, 4))) / 4
    mixed = float(alpha_for_tokens_per_round(tokens, 4))
    assert all_of_them.curve.points[0].alpha == pytest.approx(mixed, abs=1e-3)


def test_ablations_are_not_in_the_main_grid() -> None:
    found = records(truth)
    odd = replace(view("snapkv", 64), snapkv_pool=1)
    more = RecordSet(found.header, (*found.records, record(odd, alpha=0.1, index=50)))
    assert [f.curve for f in fit_records(more)] == [f.curve for f in fit_records(found)]


def test_a_standalone_draft_with_its_full_cache_has_one_rate() -> None:
    full = replace(view("snapkv", 64), policy="full", kv_budget=None)
    full = replace(full, snapkv_window=None, snapkv_pool=None)
    header = {**HEADER, "draft": "small"}
    found = RecordSet(header, tuple(record(full, alpha=0.7, index=i) for i in range(4)))
    (fit,) = fit_records(found)
    assert fit.curve.ceiling == pytest.approx(0.7)
    assert fit.curve.alpha(kv_budget_tokens=10, context_tokens=9000) == pytest.approx(0.7)


def test_records_without_a_draft_view_are_refused() -> None:
    with pytest.raises(ConfigError, match="no StreamingLLM or SnapKV cell"):
        fit_records(records(truth), texts=["another"])
    with pytest.raises(ConfigError, match="positions 1 to 8"):
        fit_records(records(truth), gamma=9)


def test_written_curves_read_back(tmp_path: Path) -> None:
    fits = fit_records(records(truth))
    named = [(replace(fit.curve, target='a "b"\n\\c'), fit.free) for fit in fits]
    both, one = tmp_path / "both.toml", tmp_path / "one.toml"
    both.write_text(curves_text(named, command="x"), encoding="utf-8")
    one.write_text(curves_text(named[:1], command="x"), encoding="utf-8")
    read = read_acceptance_curves(both)
    assert read_acceptance_curves(one) == read[:1]
    for (curve, _), found in zip(named, read, strict=True):
        assert (found.target, found.points) == (curve.target, curve.points)
        at = {"kv_budget_tokens": 300.0, "context_tokens": 5000.0}
        assert float(found.alpha(**at)) == pytest.approx(float(curve.alpha(**at)), abs=1e-4)
