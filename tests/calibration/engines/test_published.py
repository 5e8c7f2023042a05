"""The profile of vLLM 0.26 has its published errors on records that were not fitted."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import calibration
from calibration.engines.fit import EngineFit, grouped, predicted
from calibration.engines.judged import misses_graph
from calibration.engines.reading import read_engine_records
from calibration.engines.records import PointRecord
from calibration.engines.report import engine_report
from calibration.records.jsonl import read_lines
from perfmodel import EngineProfile, catalog
from perfmodel.catalog.engines import engine_profile
from perfmodel.speculation import time_error
from perfmodel.units import Z90

MEASURED = Path(calibration.__file__).parent / "measured"
KINDS = ("", "-tp2", "-exported-graphs", "-processes", "-seed3101", "-tp2-processes")


def test_the_shipped_profile_of_vllm_has_its_published_errors() -> None:
    """docs/results/serving-engines.md: medians of the points that were held back."""
    names = ("engine-vllm-0.26-h200.jsonl", "engine-vllm-0.26-h200-tp2.jsonl")
    records = read_engine_records([MEASURED / name for name in names])
    profile = replace(engine_profile("vllm", catalog.gpu("h200")), default_graphs=True)
    groups = grouped(records.held_back, records.gpu)
    seconds = predicted(profile, groups)
    measured = [r for group in groups for r in group.records]
    assert len(measured) == 125
    errors: dict[str, list[float]] = {}
    for record, each in zip(measured, seconds, strict=True):
        method = record.point.setup.method
        errors.setdefault(method, []).append(100.0 * (each / record.seconds - 1.0))
    medians = {method: float(np.median(np.abs(found))) for method, found in errors.items()}
    published = {"plain": 2.9, "eagle3": 2.8, "ngram": 4.4, "draft": 5.6}
    assert medians == pytest.approx(published, abs=0.06)
    assert max(errors["draft"]) == pytest.approx(49.2, abs=0.06)


def test_the_published_spread_of_rounds_whose_layers_the_host_launches() -> None:
    """docs/results/serving-engines.md: repeats of one process, and points timed several times."""
    profile = replace(engine_profile("vllm", catalog.gpu("h200")), default_graphs=True)
    timed: dict[str, list[PointRecord]] = {}
    for kind in KINDS:
        for line in read_lines(MEASURED / f"engine-vllm-0.26-h200{kind}.jsonl"):
            if line.value.get("op") == "engine-point":
                record = line.decode(PointRecord)
                timed.setdefault(record.point.id, []).append(record)
    spread: dict[bool, list[tuple[float, ...]]] = {True: [], False: []}
    for rows in (rows for rows in timed.values() if len(rows) > 1):
        point, logs = rows[0].point, [np.log(r.all_seconds) for r in rows]
        launched = point.setup.method == "draft" or misses_graph(point, profile)
        within = [np.var(each, ddof=1) for each in logs]
        expected = np.mean([one / len(each) for one, each in zip(within, logs, strict=True)])
        means = np.var([np.mean(each) for each in logs], ddof=1)
        spread[launched].append((float(np.mean(within)), float(means), float(expected)))
    assert (len(spread[False]), len(spread[True])) == (4, 16)
    percent = {key: 100.0 * np.sqrt(np.mean(rows, axis=0)) for key, rows in spread.items()}
    assert percent[False] == pytest.approx([3.6, 2.5, 2.1], abs=0.06)
    assert percent[True] == pytest.approx([16.2, 16.4, 9.3], abs=0.06)


def with_host_times(profile: EngineProfile, factor: float) -> EngineProfile:
    """The profile with all of its host times multiplied."""
    scaled = {
        name: factor * getattr(profile, name)
        for name in ("rank_step_s", "eager_layer_s", "rank_eager_layer_s", "piecewise_layer_s")
    }
    terms = ("step_s", "sequence_s", "draft_step_s", "draft_layer_s", "lookup_token_s")
    hosts = [replace(h, **{t: factor * getattr(h, t) for t in terms}) for h in profile.host]
    return replace(profile, host=tuple(hosts), **scaled)


def stated_error(record: PointRecord) -> float:
    """The standard error of the shipped profile's prediction of a point, with its CUDA graphs."""
    (group,) = grouped([record], "h200")
    profile = replace(engine_profile("vllm", catalog.gpu("h200")), default_graphs=True)
    return time_error(group.scenario_of(record, profile))


def errors_by_share(records: Iterable[PointRecord]) -> tuple[list[PointRecord], np.ndarray]:
    """Records as exported; ln(predicted / measured), host's share and stated standard error."""
    profile = replace(engine_profile("vllm", catalog.gpu("h200")), default_graphs=True)
    groups = grouped([r for r in records if not misses_graph(r.point, profile)], "h200")
    rows = [record for group in groups for record in group.records]
    more, less = (predicted(with_host_times(profile, factor), groups) for factor in (1.25, 0.8))
    share = np.log(more / less) / np.log(1.25 / 0.8)
    error = np.log(predicted(profile, groups) / [r.seconds for r in rows])
    return rows, np.array([error, share, [stated_error(record) for record in rows]])


def rms_by_share(error: np.ndarray, share: np.ndarray) -> list[tuple[int, float, int]]:
    """Points, rms error in percent and errors above 15 %, by classes of the host's share."""
    above = np.abs(np.expm1(error)) > 0.15
    return [
        (int(part.sum()), 100.0 * float(np.sqrt(np.mean(error[part] ** 2))), int(above[part].sum()))
        for part in (share < 0.2, (share >= 0.2) & (share < 0.6), share >= 0.6)
    ]


def held_by(error: np.ndarray, stated: np.ndarray) -> int:
    """Percentage of points in their 90 % intervals."""
    return round(100.0 * float(np.mean(np.abs(error) < Z90 * stated)))


def test_errors_grow_with_the_share_of_the_host() -> None:
    """docs/results/serving-engines.md: held-back points as exported, by the host's share."""
    paths = [MEASURED / f"engine-vllm-0.26-h200{kind}.jsonl" for kind in KINDS]
    rows, (error, share, stated) = errors_by_share(
        read_engine_records(paths[:2], check=paths[2:]).held_back
    )
    published = [(104, 3.6, 0), (50, 6.3, 1), (36, 16.6, 11)]
    assert np.array(rms_by_share(error, share)) == pytest.approx(np.array(published), abs=0.06)
    launched = [r for r, each in zip(rows, share, strict=True) if each >= 0.6]
    repeats = np.mean([np.var(np.log(r.all_seconds), ddof=1) for r in launched])
    assert 100.0 * float(np.sqrt(repeats)) == pytest.approx(15.6, abs=0.06)
    assert held_by(error, stated) == 95


def test_errors_of_seed_4101_grow_with_the_share_of_the_host() -> None:
    """docs/results/serving-engines.md: seed 4101, of which nothing was fitted but the errors."""
    path = MEASURED / "engine-vllm-0.26-h200-seed4101.jsonl"
    _, (error, share, stated) = errors_by_share(read_engine_records([path]).points)
    published = [(36, 3.2, 0), (15, 7.9, 1), (36, 18.0, 13)]
    assert np.array(rms_by_share(error, share)) == pytest.approx(np.array(published), abs=0.06)
    assert held_by(error, stated) == 94


Blind = dict[tuple[str, str, int, int, int, int], float]  # target, method, γ, TP, batch, prompt


def blind_predictions(name: str, column: str) -> Blind:
    """Seconds by point, from a file that was committed before the run."""
    path = MEASURED / f"predicted-vllm-0.26-h200-{name}.csv"
    with path.open(encoding="utf-8") as file:
        return {
            (
                *(r["target"], r["method"], int(r["gamma"]), int(r.get("tp", 1))),
                *(int(r["batch"]), int(r["prompt_tokens"])),
            ): float(r[column])
            for r in csv.DictReader(file)
        }


def blind_misses(records: str, expected: Blind) -> list[tuple[str, list[float], float]]:
    """Target, method, γ and TP; ln(predicted / measured) of the median and of each repeat; width.

    The width is that of the shipped profile's 90 % interval.
    """
    found = []
    for record in read_engine_records([MEASURED / f"engine-vllm-0.26-{records}.jsonl"]).points:
        point, setup = record.point, record.point.setup
        key = (setup.target, setup.method, setup.gamma, setup.tp, point.batch, point.prompt_tokens)
        times = np.array([record.seconds, *(s for s in record.all_seconds if s > 0.0)])
        if key in expected:
            misses = [float(each) for each in np.log(expected[key] / times)]
            width = Z90 * stated_error(record)
            found.append((" ".join(map(str, key[:4])), misses, width))
    return found


def test_blind_rounds_with_a_draft_model_lie_in_the_interval_of_the_profile() -> None:
    """docs/results/serving-engines.md: predictions that were committed before the runs."""
    expected = blind_predictions("processes", "predicted_s")
    points = [
        p for name in ("h200", "h200-tp2") for p in blind_misses(f"{name}-processes", expected)
    ]
    drafts = [(each[1:], width) for label, each, width in points if " draft " in label]
    misses = np.concatenate([each for each, _ in drafts])
    assert (len(misses), round(1e3 * float(misses.mean()))) == (156, 2)
    assert round(1e3 * float(misses.std())) == 156
    assert sum(abs(miss) < width for each, width in drafts for miss in each) == 134


@pytest.mark.parametrize(
    ("records", "predictions", "column", "published"),
    [
        (
            *("h200-seed3101", "seed3101", "predicted_d5890447_s"),
            {
                "llama-3.1-8b plain 0 1": (4, 1.1, 2.9, 4),
                "llama-3.1-8b ngram 3 1": (5, 9.6, 10.4, 5),
                "llama-3.1-8b eagle3 4 1": (4, 1.7, 8.3, 3),
                "qwen2.5-7b ngram 4 1": (4, 3.0, 5.6, 4),
            },
        ),
        (
            *("h200-seed3101", "seed3101", "predicted_eec4778c_s"),
            {
                "llama-3.1-8b plain 0 1": (4, 1.1, 3.3, 4),
                "llama-3.1-8b ngram 3 1": (5, 10.0, 12.0, 4),
                "llama-3.1-8b eagle3 4 1": (4, 1.1, 4.4, 4),
                "qwen2.5-7b ngram 4 1": (4, 3.0, 4.6, 4),
            },
        ),
        (
            *("h200-tp2-processes", "processes", "predicted_s"),
            {
                "llama-3.1-8b draft 1 2": (8, 8.6, -17.7, 7),
                "llama-3.1-8b draft 3 2": (8, 3.6, -13.0, 8),
                "qwen2.5-7b eagle3 5 2": (5, 12.0, 22.4, 5),
            },
        ),
    ],
)
def test_blind_points_have_their_published_errors(
    records: str, predictions: str, column: str, published: dict[str, tuple[float, ...]]
) -> None:
    """docs/results/serving-engines.md: points, errors in percent (median and worst), and inside."""
    found: dict[str, list[float]] = {}
    inside: dict[str, int] = {}
    for label, (miss, *_), width in blind_misses(records, blind_predictions(predictions, column)):
        found.setdefault(label, []).append(100.0 * float(np.expm1(miss)))
        inside[label] = inside.get(label, 0) + (abs(miss) < width)
    assert found.keys() == published.keys()
    for label, errors in found.items():
        median, worst = float(np.median(np.abs(errors))), max(errors, key=abs)
        figures = (len(errors), median, worst, inside[label])
        assert figures == pytest.approx(published[label], abs=0.06), label


SEED_4101 = {
    "predicted_shipped_s": {
        "llama-3.1-8b plain 0 1": (9, 2.1, 6.8),
        "llama-3.1-8b eagle3 5 1": (9, 0.9, -3.5),
        "llama-3.1-8b ngram 3 1": (9, 2.3, -5.8),
        "llama-3.1-8b draft 2 1": (9, 10.9, -24.2),
        "llama-3.1-8b draft 3 1": (9, 19.1, -23.3),
        "qwen2.5-7b plain 0 1": (9, 1.8, -4.1),
        "qwen2.5-7b eagle3 4 1": (9, 3.9, -7.1),
        "llama-3.2-1b plain 0 1": (8, 6.8, -34.0),
        "llama-3.2-1b ngram 1 1": (8, 8.4, -12.7),
        "llama-3.2-1b eagle3 2 1": (8, 26.1, -40.4),
    },
    "predicted_89a79fdf_s": {
        "llama-3.1-8b plain 0 1": (9, 1.6, 7.3),
        "llama-3.1-8b eagle3 5 1": (9, 0.8, -3.2),
        "llama-3.1-8b ngram 3 1": (9, 2.1, -5.5),
        "llama-3.1-8b draft 2 1": (9, 11.9, -24.3),
        "llama-3.1-8b draft 3 1": (9, 19.7, -22.9),
        "qwen2.5-7b plain 0 1": (9, 1.8, -3.5),
        "qwen2.5-7b eagle3 4 1": (9, 3.8, -7.0),
        "llama-3.2-1b plain 0 1": (8, 6.8, -34.0),
        "llama-3.2-1b ngram 1 1": (8, 8.0, -12.9),
        "llama-3.2-1b eagle3 2 1": (8, 26.0, -39.8),
    },
}


@pytest.mark.parametrize("column", SEED_4101)
def test_points_of_seed_4101_have_their_published_errors(column: str) -> None:
    """docs/results/serving-engines.md: two profiles' predictions, committed before the run."""
    found: dict[str, list[float]] = {}
    for label, (miss, *_), _ in blind_misses(
        "h200-seed4101", blind_predictions("seed4101", column)
    ):
        found.setdefault(label, []).append(100.0 * float(np.expm1(miss)))
    assert found.keys() == SEED_4101[column].keys()
    for label, errors in found.items():
        figures = (len(errors), float(np.median(np.abs(errors))), max(errors, key=abs))
        assert figures == pytest.approx(SEED_4101[column][label], abs=0.06), label


def test_decisions_of_seed_4101_are_as_published() -> None:
    """docs/results/serving-engines.md: the side of 1, and the regret of method and γ."""
    profile = replace(engine_profile("vllm", catalog.gpu("h200")), default_graphs=True)
    records = read_engine_records([MEASURED / "engine-vllm-0.26-h200-seed4101.jsonl"])
    fit = EngineFit(profile=profile, terms=(), values=(), rms_percent=0.0, points=0)
    report = engine_report(records, fit)
    judged = report.held_back
    assert (judged.signs_right, judged.signs) == (224, 237)
    assert len(judged.regrets) == 104 and 100.0 * max(judged.regrets) < 0.25


def test_steps_of_a_mixture_have_their_published_errors() -> None:
    """docs/results/architectures.md, "now": none of these times was used in a fit."""
    path = MEASURED / "engine-vllm-0.26-h200-experts.jsonl"
    profile = replace(engine_profile("vllm", catalog.gpu("h200")), default_graphs=True)
    medians, worst = {}, {}
    for group in grouped(read_engine_records([path]).points, "h200"):
        if group.scenario.target.experts is not None:
            errors = 100.0 * (group.seconds(profile) / group.measured_s - 1.0)
            medians[group.method] = float(np.median(np.abs(errors)))
            worst[group.method] = float(np.max(np.abs(errors)))
            assert np.abs(errors[group.batch == 1]).item() < 1.0
    assert medians == pytest.approx({"plain": 4.7, "ngram": 2.3}, abs=0.06)
    assert worst == pytest.approx({"plain": 9.2, "ngram": 6.7}, abs=0.06)


def test_steps_with_latent_attention_and_mxfp4_have_their_published_errors() -> None:
    """docs/results/architectures.md: predictions that were committed before the run."""
    name = "mxfp4-mla"
    records = read_engine_records([MEASURED / f"engine-vllm-0.26-h200-{name}.jsonl"])
    assert [f.point.batch for f in records.failed] == [48, 107]
    expected = blind_predictions(name, "default_graphs_s")
    found: dict[str, list[tuple[float, float]]] = {}
    for record in records.points:
        point, target = record.point, record.point.setup.target
        ratio = expected[target, "plain", 0, 1, point.batch, point.prompt_tokens] / record.seconds
        assert abs(np.log(ratio)) < Z90 * stated_error(record)
        found.setdefault(target, []).append((record.spread, 100.0 * (ratio - 1.0)))
    published = {
        "deepseek-v2-lite": [(12, 6.3, -17.6), (4, 2.5, -5.8)],
        "gpt-oss-120b": [(9, 1.8, 12.3), (8, 1.8, 12.3)],
    }
    assert found.keys() == published.keys()
    for target, rows in found.items():
        for most, figures in zip((np.inf, 0.1), published[target], strict=True):
            errors = [error for spread, error in rows if spread <= most]
            got = len(errors), float(np.median(np.abs(errors))), max(errors, key=abs)
            assert got == pytest.approx(figures, abs=0.06), target


def test_steps_with_mxfp4_have_their_published_errors() -> None:
    """docs/results/architectures.md, "now": none of these times was used in a fit."""
    records = read_engine_records([MEASURED / "engine-vllm-0.26-h200-mxfp4-mla.jsonl"])
    profile = replace(engine_profile("vllm", catalog.gpu("h200")), default_graphs=True)
    timed = [r for r in records.points if r.point.setup.target == "gpt-oss-120b"]
    ratios = [group.seconds(profile) / group.measured_s for group in grouped(timed, records.gpu)]
    errors = list(100.0 * (np.concatenate(ratios) - 1.0))
    got = len(errors), float(np.median(np.abs(errors))), max(errors, key=abs)
    assert got == pytest.approx((9, 2.5, -4.2), abs=0.06)
