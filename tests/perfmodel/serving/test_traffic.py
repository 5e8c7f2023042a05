"""Arrivals and lengths have the given moments, and statistics of durations are exact."""

import numpy as np
import pytest

from perfmodel import Traffic
from perfmodel.serving import lengths
from perfmodel.serving.stats import Durations
from perfmodel.serving.timeline import Timeline


@pytest.mark.parametrize("kind", ["poisson", "bursty", "regular"])
def test_the_mean_rate_is_as_given(kind: str) -> None:
    traffic = Traffic(requests=100_000, rate=50.0, arrivals=kind, burst_s=2.0)
    times = np.concatenate([chunk.arrival_s for chunk in traffic.chunks(3)])
    assert times.size == 100_000 and np.all(np.diff(times) >= 0)
    assert times.size / times[-1] == pytest.approx(50.0, rel=0.06)
    counts = np.bincount(times.astype(int))[:-1]
    dispersion = counts.var() / counts.mean()
    expected = {"poisson": (0.9, 1.1), "bursty": (10.0, 60.0), "regular": (0.0, 0.1)}[kind]
    assert expected[0] <= dispersion <= expected[1]


def test_lengths_have_their_mean_and_spread() -> None:
    drawn = lengths(np.random.default_rng(0), 500, 1.5, 200_000)
    assert drawn.mean() == pytest.approx(500, rel=0.02)
    assert drawn.std() / drawn.mean() == pytest.approx(1.5, rel=0.1)
    assert set(lengths(np.random.default_rng(0), 500, 0.0, 9)) == {500}


def test_eos_shortens_outputs_with_the_given_probability() -> None:
    (chunk,) = Traffic(requests=8000, output_tokens=10_000, eos=0.01).chunks(0)
    assert chunk.output_tokens.mean() == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999, 1.0])
def test_a_quantile_is_the_shortest_duration_that_its_share_does_not_exceed(share: float) -> None:
    values = np.random.default_rng(0).lognormal(-3, 2, 1000)
    quantile = Durations(values).quantile_s(share)
    assert quantile in values
    assert np.mean(values <= quantile) >= share > np.mean(values < quantile)


def test_the_standard_error_is_the_spread_of_means() -> None:
    rng = np.random.default_rng(0)
    runs = [Durations(rng.exponential(2.0, 400)) for _ in range(2000)]
    means = np.array([run.mean_s for run in runs])
    assert means.std() == pytest.approx(runs[0].standard_error_s, rel=0.1)


def test_statistics_of_no_durations_are_nan() -> None:
    empty = Durations(np.zeros(0))
    assert empty.count == 0
    for value in (empty.mean_s, empty.standard_error_s, empty.most_s, empty.quantile_s(0.5)):
        assert np.isnan(value)


def test_a_timeline_keeps_its_size_and_its_sums() -> None:
    timeline, clock, rng = Timeline(spans=16, span_s=0.5), 0.0, np.random.default_rng(0)
    spent = 0.0
    for seconds in rng.exponential(3.0, 500):
        timeline.add(clock, float(seconds), 4, 0.5, 2, 10.0)
        spent += float(seconds)
        clock += 1.5 * float(seconds)
    rows = timeline.rows(clock)
    assert len(rows) <= 16
    assert sum(row["busy_share"] for row in rows) * timeline.span_s == pytest.approx(spent)
    assert sum(row["tokens_per_s"] for row in rows) * timeline.span_s == pytest.approx(5000)
    assert {round(row["batch"], 9) for row in rows} == {4.0}
