"""The fit of an engine profile: known terms are recovered, and held-back points are not used."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from engine_samples import a_plan, records_of

import calibration
from calibration.engines.fitting.errors import fit_errors
from calibration.engines.fitting.fit import (
    DEFAULT_RESERVED_BYTES,
    EngineFit,
    fit_profile,
    reserved_bytes,
)
from calibration.engines.fitting.groups import grouped
from calibration.engines.fitting.terms import terms_of
from calibration.engines.profile_file import profile_text
from calibration.engines.reading import read_engine_records
from calibration.engines.records import EngineRecords, StartRecord
from calibration.engines.report import engine_report, report_dict, report_lines
from perfmodel import ConfigError, EngineProfile, catalog, estimate
from perfmodel.catalog.engines import engine_profile

MEASURED = Path(calibration.__file__).parent / "measured"


@pytest.fixture(scope="module")
def known() -> tuple[EngineRecords, EngineProfile]:
    return records_of(a_plan())


@pytest.fixture(scope="module")
def fit(known: tuple[EngineRecords, EngineProfile]) -> EngineFit:
    return fit_profile(known[0])


def test_known_terms_are_recovered(
    known: tuple[EngineRecords, EngineProfile], fit: EngineFit
) -> None:
    true = known[1]
    assert fit.rms_percent < 0.2
    for name in ("linear_factor", "attention_factor", "verify_attention_factor"):
        assert getattr(fit.profile, name) == pytest.approx(getattr(true, name), rel=0.02)
    assert fit.profile.attention_tail_share == pytest.approx(true.attention_tail_share, abs=0.02)
    for costs in true.host:
        if costs.method != "plain":  # whose host time is hidden behind the GPU
            found = fit.profile.host_costs(costs.method)
            assert found is not None
            assert found.step_s == pytest.approx(costs.step_s, rel=0.1)
    draft, eagle = fit.profile.host_costs("draft"), fit.profile.host_costs("eagle3")
    assert draft is not None and draft.draft_layer_s == pytest.approx(4e-4, rel=0.05)
    assert eagle is not None and eagle.draft_step_s == pytest.approx(3e-3, rel=0.05)


def test_the_fit_computes_the_rounds_that_a_prediction_has(
    known: tuple[EngineRecords, EngineProfile],
) -> None:
    """With the host time of every method, of layers without a graph and of several ranks."""
    times = {"eager_layer_s": 3e-4, "rank_eager_layer_s": 2e-4, "rank_step_s": 8e-4}
    profile = replace(known[1], **times)
    for group in grouped([*known[0].points, *records_of(a_plan(tp=2))[0].points], "h200"):
        scenario = replace(group.scenario, engine=profile)
        point = estimate(scenario, batch=group.batch, prompt_tokens=group.context_tokens)
        assert np.array_equal(group.seconds(profile), point.round_s)


def test_terms_of_several_ranks_are_recovered() -> None:
    """From the same workloads on one and on two GPUs."""
    one = records_of(a_plan(minutes=8.0))[0]
    two, true = records_of(a_plan(minutes=8.0, tp=2), sum_gap_s=4e-6, rank_step_s=8e-4)
    found = fit_profile(replace(one, points=(*one.points, *two.points))).profile
    assert found.sum_gap_s == pytest.approx(4e-6, abs=1e-6)
    assert found.rank_step_s == pytest.approx(8e-4, rel=0.1)
    alone = terms_of(two.fitted, true)
    assert "rank_step_s" not in [t.field for t in alone]  # only `step_s` + it is known


def test_the_slowdown_of_each_host_is_recovered() -> None:
    """Of two files, the second is of a host that takes 1.6 times as long."""
    fast, true = records_of(a_plan(minutes=12.0))
    slow, _ = records_of(a_plan(minutes=12.0, seed=1), host=true.on_slower_host(1.6).host)
    hosts = {r.point.id: 1 for r in slow.points} | {r.point.id: 0 for r in fast.points}
    for numbers in (hosts, {name: 1 - host for name, host in hosts.items()}):
        both = replace(fast, points=(*fast.points, *slow.points), hosts=numbers)
        fit = fit_profile(both)
        slowest = max(fit.slowdowns, key=lambda host: fit.slowdowns[host])
        assert slowest == numbers[slow.points[0].point.id]
        assert sorted(fit.slowdowns.values()) == pytest.approx([1.0, 1.6], rel=0.02)
        draft, known = fit.profile.host_costs("draft"), true.host_costs("draft")
        assert draft is not None and known is not None
        assert draft.draft_layer_s == pytest.approx(known.draft_layer_s, rel=0.02)
        assert fit.rms_percent < 1.0 < fit_profile(replace(both, hosts={})).rms_percent


def test_a_host_that_no_point_shows_is_not_the_fastest() -> None:
    """Of two files, one has only plain steps, which hide its host."""
    slow, true = records_of(a_plan(minutes=12.0))
    other = records_of(a_plan(minutes=12.0, seed=1))[0]
    hiding = [r for r in other.points if r.point.setup.method == "plain"]
    hosts = {r.point.id: 0 for r in slow.points} | {r.point.id: 1 for r in hiding}
    both = replace(slow, points=(*slow.points, *hiding), hosts=hosts)
    fit = fit_profile(both)
    assert fit.slowdowns == {0: 1.0}
    assert max(abs(e.percent) for e in engine_report(both, fit).fitted) < 1.0
    draft, known = fit.profile.host_costs("draft"), true.host_costs("draft")
    assert draft is not None and known is not None
    assert draft.draft_layer_s == pytest.approx(known.draft_layer_s, rel=0.02)


def test_held_back_points_are_predicted(
    known: tuple[EngineRecords, EngineProfile], fit: EngineFit
) -> None:
    report = engine_report(known[0], fit)
    assert len(report.held_back.errors) == len(known[0].held_back) > 0
    assert max(abs(e.percent) for e in report.held_back.errors) < 1.0
    assert not report.outside and max(report.held_back.regrets) < 1e-3
    assert report.held_back.signs == report.held_back.signs_right > 0


def test_held_back_points_are_never_fitted(
    known: tuple[EngineRecords, EngineProfile], fit: EngineFit
) -> None:
    """Wrong held-back times change the report, but not a digit of the fit."""
    records = known[0]
    spoilt = replace(
        records,
        points=tuple(
            replace(r, seconds=3.0 * r.seconds) if r.point.held_back else r for r in records.points
        ),
    )
    again = fit_profile(spoilt)
    assert again.values == fit.values
    assert "exceeds" in "; ".join(engine_report(spoilt, again).outside)


def test_figures_of_exported_plans_leave_out_rounds_that_miss_a_default_graph(
    fit: EngineFit,
) -> None:
    """A launch time of such rounds that is far too long spoils the figures of all points only."""
    records, true = records_of(a_plan(seed=2, minutes=30.0))
    hosts = tuple(replace(h, graph_sizes="mixed") for h in true.host)
    wrong = replace(true, host=hosts, piecewise_layer_s=3e-3)
    report = engine_report(records, replace(fit, profile=wrong))
    assert 0 < len(report.deployable.errors) < len(report.held_back.errors)
    assert report.held_back.figures["worst"] > 50.0 > 1.0 > report.deployable.figures["worst"]
    assert report_dict(report)["deployable"]["figures_percent"] == report.deployable.figures
    assert "as exported" in "\n".join(report_lines(report))


def test_rounds_of_a_fitted_workload_are_not_counted_as_unseen(
    known: tuple[EngineRecords, EngineProfile], fit: EngineFit
) -> None:
    """The same batch and prompt in other graphs, or with another method or γ, is not new."""
    records = known[0]
    other = tuple(
        replace(
            r,
            point=replace(
                r.point, held_back=True, setup=replace(r.point.setup, exported_graphs=True)
            ),
        )
        for r in records.fitted
    )
    report = engine_report(replace(records, points=(*records.points, *other)), fit)
    assert len(report.held_back.errors) == len(records.held_back) + len(other)
    expected = {r.point.id for r in records.held_back if r.point.setup.gamma}
    assert expected and {e.record.point.id for e in report.unseen_rounds} == expected


def test_a_plan_that_was_timed_twice_has_no_regret(
    known: tuple[EngineRecords, EngineProfile], fit: EngineFit
) -> None:
    """Predictions cannot tell a faster process from a slower one of the same plan."""
    records = known[0]
    faster = tuple(
        replace(
            r,
            seconds=0.8 * r.seconds,
            point=replace(r.point, setup=replace(r.point.setup, exported_graphs=True)),
        )
        for r in records.held_back
    )
    report = engine_report(replace(records, points=(*records.points, *faster)), fit)
    assert len(report.held_back.errors) == 2 * len(records.held_back)
    assert max(report.held_back.regrets) < 1e-3


def test_noise_of_two_percent_changes_factors_little(
    known: tuple[EngineRecords, EngineProfile],
) -> None:
    rng = random.Random(5)
    noisy, true = records_of(a_plan(), lambda index: float(np.exp(rng.gauss(0.0, 0.02))))
    found = fit_profile(noisy)
    assert found.profile.linear_factor == pytest.approx(true.linear_factor, rel=0.06)
    report = engine_report(noisy, found)
    assert np.median([abs(e.percent) for e in report.held_back.errors]) < 3.0


def test_points_whose_repeats_differ_count_less(
    known: tuple[EngineRecords, EngineProfile],
) -> None:
    """Wrong times change the fit less if they are known to be uncertain."""
    records, true = known
    plain = [r for r in records.fitted if r.point.setup.method == "plain"]
    factors = []
    for spread in (0.0, 1.0):
        wrong = replace(plain[0], seconds=1.3 * plain[0].seconds)
        wrong = replace(wrong, all_seconds=(wrong.seconds, (1.0 + spread) * wrong.seconds))
        found = fit_profile(replace(records, points=(wrong, *plain[1:]))).profile
        factors.append(abs(found.linear_factor / true.linear_factor - 1.0))
    assert factors[1] < factors[0]


def test_hidden_host_time_is_reported_as_unresolved(fit: EngineFit) -> None:
    hidden = {(term.method, term.field) for term in fit.unresolved}
    assert ("plain", "step_s") in hidden
    assert ("draft", "draft_layer_s") not in hidden and ("", "linear_factor") not in hidden


def test_the_written_profile_is_the_fitted_one(
    known: tuple[EngineRecords, EngineProfile], fit: EngineFit, tmp_path: Path
) -> None:
    report = engine_report(known[0], fit)
    path = tmp_path / "vllm-0.26.toml"
    path.write_text(profile_text(report), encoding="utf-8")
    read = engine_profile(str(path), catalog.gpu("h200"))
    assert (read.name, read.origin, read.measured_on) == ("vllm-0.26", "fitted", "h200")
    assert f"{len(known[0].points)} points measured with vllm 0.26.0 on NVIDIA H200" in read.source
    assert read.linear_factor == pytest.approx(fit.profile.linear_factor, rel=1e-4)
    assert read.timed_targets == ("llama-3.1-8b",)
    judged = [error.record for error in report.deployable.errors]
    errors = fit_errors(judged, fit.profile, "h200")
    assert (read.speedup_error, read.host_error) == pytest.approx(errors, rel=0.01)
    assert len(read.host) == len(fit.profile.host)
    for one, other in zip(read.host, fit.profile.host, strict=True):
        assert (one.method, one.overlapped) == (other.method, other.overlapped)
        assert one.step_s == pytest.approx(other.step_s, rel=1e-4)
    borrowed = engine_profile(str(path), catalog.gpu("h100-sxm"))
    assert borrowed.origin == "extrapolated" and borrowed.measured_on == "h200"
    other_gpu = engine_profile(str(path), catalog.gpu("a100-sxm-80gb"))
    assert other_gpu.origin == "assumed" and other_gpu.measured_on == ""


def test_writing_one_gpu_preserves_the_values_of_others(
    known: tuple[EngineRecords, EngineProfile], fit: EngineFit
) -> None:
    report = engine_report(known[0], fit)
    first = profile_text(report)
    both = profile_text(replace(report, gpu="h100-sxm"), first)
    assert "[gpu.h200]" in both and "[gpu.h100-sxm]" in both
    assert profile_text(replace(report, gpu="h100-sxm"), both) == both


def test_the_report_lists_terms_and_errors(
    known: tuple[EngineRecords, EngineProfile], fit: EngineFit
) -> None:
    report = engine_report(known[0], fit)
    text = "\n".join(report_lines(report))
    assert f"{len(known[0].fitted)} points fitted" in text
    assert f"{len(known[0].held_back)} held back" in text
    assert "draft draft_layer_s: " in text and "not resolved" in text
    assert report_dict(report)["outside_tolerance"] == []


def test_memory_that_is_neither_weights_nor_cache_is_reserved(
    known: tuple[EngineRecords, EngineProfile],
) -> None:
    setup = known[0].starts[0].setup
    facts = {"kv_cache_blocks": 50_000, "block_tokens": 16}
    records = replace(known[0], starts=(StartRecord(setup=setup, seconds=1.0, facts=facts),))
    spec, gpu = catalog.model("llama-3.1-8b"), catalog.gpu("h200")
    cache = 50_000 * 16 * spec.kv_bytes_per_token_per_rank(1)
    expected = gpu.memory_bytes - cache - spec.weight_bytes_per_rank(1)
    assert reserved_bytes(records) == pytest.approx(expected)


def test_memory_that_an_engine_leaves_to_others_is_not_reserved() -> None:
    """Of the shipped records, in any order; without a cache that fills a GPU, a constant."""
    kinds = ("", "-command", "-tp2", "-undisturbed")
    paths = [MEASURED / f"engine-vllm-0.26-h200{kind}.jsonl" for kind in kinds]
    shipped = engine_profile("vllm-0.26", catalog.gpu("h200")).reserved_bytes
    for order in permutations(paths):
        assert reserved_bytes(read_engine_records(order)) == pytest.approx(shipped, rel=1e-3)
    shared = read_engine_records(paths[3:])
    assert {start.facts["gpu_memory_utilization"] for start in shared.starts} == {0.05}
    assert reserved_bytes(shared) == DEFAULT_RESERVED_BYTES


def test_a_fit_needs_points_of_plain_decoding(known: tuple[EngineRecords, EngineProfile]) -> None:
    records = known[0]
    without = [r for r in records.points if r.point.setup.method != "plain"]
    with pytest.raises(ConfigError, match="plain decoding"):
        fit_profile(replace(records, points=tuple(without)))


def test_only_terms_that_the_points_determine_are_fitted(
    known: tuple[EngineRecords, EngineProfile], fit: EngineFit
) -> None:
    plain = [r for r in known[0].points if r.point.setup.method == "plain"]
    names = [term.field for term in terms_of(plain, fit.profile)]
    factors = ["linear_factor", "attention_factor", "attention_tail_share", "layer_overhead_s"]
    assert names == [*factors, "step_s", "sequence_s"]
