"""The request simulator: conservation, capacity, causality and queueing laws."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import a_scenario

import perfmodel as pm
from perfmodel import Scenario, ServingRun, Simulation, Traffic
from perfmodel.reports import serving_dict
from perfmodel.serving import AcceptanceProcess, RoundTimes, Serving, scenario_acceptance
from perfmodel.serving.scheduler import PrefixCache

SELF: dict[str, Any] = {"draft": "self", "kv_budget": 512, "acceptance": 0.8, "gamma": 3}


def play(
    scenario: Scenario, traffic: Traffic, max_batch: int = 16, **options: Any
) -> tuple[ServingRun, np.ndarray[Any, np.dtype[np.float64]]]:
    """The run, and its finished requests in order of arrival, one row each (`RECORD`)."""
    simulation = Simulation(
        traffic=traffic,
        serving=Serving(max_batch=max_batch, token_budget=options.pop("token_budget", 8192)),
        process=options.pop("process", None) or scenario_acceptance(scenario),
        seed=options.pop("seed", 0),
        exact=options.pop("exact", False),
    )
    run = pm.simulate_requests(scenario, simulation, **options)
    rows = run.stats.finished
    return run, rows[np.argsort(rows[:, 0])]


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(("poisson", "bursty", "regular", "at-once")),
    rate=st.floats(0.5, 200.0),
    gammas=st.sampled_from(((0,), (3,), (0, 1, 2, 4))),
    exact=st.booleans(),
    seed=st.integers(0, 1000),
    budget=st.sampled_from((100, 1000, 8192)),
)
def test_requests_are_complete_and_causal(
    kind: str, rate: float, gammas: tuple[int, ...], exact: bool, seed: int, budget: int
) -> None:
    traffic = Traffic(
        requests=150, rate=rate, arrivals=kind, prompt_tokens=400, output_tokens=40,
        prompt_cv=1.0, output_cv=1.0,
    )  # fmt: skip
    options = {"gammas": gammas, "exact": exact, "seed": seed, "token_budget": budget}
    run, rows = play(a_scenario(**SELF), traffic, **options)
    asked = list(traffic.chunks(seed))
    prompts = np.concatenate([chunk.prompt_tokens for chunk in asked])
    outputs = np.concatenate([chunk.output_tokens for chunk in asked])
    index, arrival, first, finish, prompt, output = rows.T
    assert index.tolist() == list(range(150)) and run.stats.refused == 0
    assert prompt.tolist() == prompts.tolist() and output.tolist() == outputs.tolist()
    assert run.stats.output_tokens == outputs.sum()
    assert np.all(np.diff(arrival) >= 0) and np.all(first > arrival)
    assert np.all(np.where(output > 1, finish > first, finish == first))
    assert finish.max() == run.stats.makespan_s
    assert np.all(np.diff(first) >= 0)  # nobody overtakes before the first token
    assert run.stats.busy_s <= run.stats.makespan_s * (1 + 1e-12)
    assert run.stats.most_kv <= 1.0


def recorded(path: Path, prompts: list[tuple[int, list[int]]], apart_ms: int = 60_000) -> Traffic:
    """A trace in Mooncake's format: prompt tokens and the ids of their blocks."""
    rows = [
        {"timestamp": i * apart_ms, "input_length": tokens, "output_length": 9, "hash_ids": ids}
        for i, (tokens, ids) in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Traffic(requests=None, path=str(path))


def test_recorded_prefixes_save_as_much_time_as_the_same_hit_rate(tmp_path: Path) -> None:
    """The second prompt shares two of four blocks; a whole repetition computes its last token."""
    scenario = a_scenario(**SELF)
    blocks = [[1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 5, 6], [7, 2, 5, 6]]
    run, rows = play(scenario, recorded(tmp_path / "t", [(2048, ids) for ids in blocks]))
    ttft = rows[:, 2] - rows[:, 1]
    for row, hits in enumerate((0.0, 0.5, 2047 / 2048, 0.0)):
        traffic = Traffic(requests=1, prompt_tokens=2048, output_tokens=9, prefix_hit_rate=hits)
        _, alone = play(scenario, traffic)
        assert ttft[row] == pytest.approx(alone[0, 2] - alone[0, 1], rel=1e-9)
    assert run.stats.prefix_hit_tokens == 1024 + 2047


def test_the_least_recently_used_block_is_dropped_first() -> None:
    """And of one prompt the last block, as the others are useless without the first."""
    cache = PrefixCache(4 * 16)
    assert cache.hit_tokens((1, 2, 3), 16) == 0
    assert cache.hit_tokens((4,), 16) == 0
    assert cache.hit_tokens((1, 2), 16) == 32
    assert cache.hit_tokens((5,), 16) == 0  # drops 3
    assert cache.hit_tokens((1, 2, 3), 16) == 32  # drops 4
    assert cache.hit_tokens((4,), 16) == 0
    assert PrefixCache(15).hit_tokens((1,), 16) == 0


@given(
    prompts=st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=30),
    capacity=st.integers(0, 200),
)
def test_hits_are_leading_blocks_and_the_cache_keeps_its_capacity(
    prompts: list[list[int]], capacity: int
) -> None:
    cache, seen = PrefixCache(capacity), set[int]()
    for prompt in prompts:
        hits = cache.hit_tokens(tuple(prompt), 16)
        assert hits % 16 == 0 and set(prompt[: hits // 16]) <= seen
        assert len(cache) * 16 <= capacity
        if capacity >= 160:  # all ten blocks fit
            first_new = next((i for i, b in enumerate(prompt) if b not in seen), len(prompt))
            assert hits == 16 * first_new
        seen |= set(prompt)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("gammas", [(0,), (3,), (0, 2, 4)])
def test_the_cache_never_exceeds_its_capacity(
    exact: bool, gammas: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth of what the batch wants: requests are preempted, and still each finishes once."""
    monkeypatch.setattr(RoundTimes, "kv_capacity", lambda self, gamma: 6000)
    traffic = Traffic(
        requests=200, arrivals="at-once", prompt_tokens=300, output_tokens=800, output_cv=0.5
    )
    run, rows = play(a_scenario(**SELF), traffic, 64, gammas=gammas, exact=exact)
    assert run.stats.preemptions > 20
    assert 0.9 < run.stats.most_kv <= 1.0
    assert run.stats.requests == 200 == len(set(rows[:, 0]))


@pytest.mark.parametrize("gammas", [(0,), (3,), (0, 2, 4)])
def test_pooled_agrees_with_exact_under_preemption(
    gammas: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RoundTimes, "kv_capacity", lambda self, gamma: 20_000)
    traffic = Traffic(requests=600, rate=20.0, prompt_tokens=300, output_tokens=400, output_cv=0.5)
    pooled, exact = (
        play(a_scenario(**SELF), traffic, 64, gammas=gammas, exact=exact)[0].stats
        for exact in (False, True)
    )
    assert exact.preemptions > 20
    assert pooled.preemptions == pytest.approx(exact.preemptions, rel=0.15)
    assert pooled.makespan_s == pytest.approx(exact.makespan_s, rel=0.03)
    assert pooled.latency.mean_s == pytest.approx(exact.latency.mean_s, rel=0.05)


def test_requests_that_can_never_fit_are_refused_and_counted() -> None:
    scenario = a_scenario(**SELF)
    traffic = Traffic(requests=100, prompt_tokens=60_000, prompt_cv=2.0, rate=1.0)
    run, rows = play(scenario, traffic)
    assert run.stats.refused > 0
    assert run.stats.refused + run.stats.requests == 100
    assert rows[:, 4].max() + 256 <= scenario.target.max_context_tokens


def test_the_same_seed_gives_the_same_bytes() -> None:
    traffic = Traffic(requests=300, rate=20.0, arrivals="bursty", prompt_cv=1.0, output_cv=1.0)
    first, again, other = (
        json.dumps(serving_dict(play(a_scenario(**SELF), traffic, gammas=range(5), seed=s)[0]))
        for s in (7, 7, 8)
    )
    assert first == again != other


def test_every_run_sees_the_same_requests() -> None:
    traffic = Traffic(requests=100, rate=20.0, prompt_cv=1.0, output_cv=1.0)
    _, plain = play(a_scenario(**SELF), traffic, gammas=[0])
    _, drafted = play(a_scenario(**SELF), traffic, gammas=[4], exact=True)
    assert np.array_equal(plain[:, [0, 1, 4, 5]], drafted[:, [0, 1, 4, 5]])


# ---- degenerate settings with a known answer --------------------------------------------------


def test_a_lone_request_takes_its_prefill_and_its_steps() -> None:
    """TTFT is the prefill; then plain decoding at every context, as `estimate()` prices it."""
    scenario = a_scenario()
    scenario = replace(scenario, engine=scenario.engine.changed(prompt_chunk_tokens=8192))
    traffic = Traffic(requests=1, arrivals="at-once", prompt_tokens=5000, output_tokens=300)
    for exact in (True, False):
        _, rows = play(scenario, traffic, gammas=[0], exact=exact)
        one = pm.estimate(scenario, batch=1, prompt_tokens=5000 + np.arange(299), gamma=0)
        first, finish = rows[0, 2], rows[0, 3]
        assert first == pytest.approx(float(one.prefill_s[0]), rel=1e-3)
        assert finish - first == pytest.approx(float(one.round_s.sum()), rel=1e-3)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_one_server_of_equal_requests_is_an_m_d_1_queue(load: float) -> None:
    """Mean wait is load / (2 (1 - load)) services (Pollaczek-Khinchine), within 5 batch errors."""
    scenario = a_scenario()
    lone, rows = play(scenario, Traffic(requests=1, arrivals="at-once", output_tokens=1), 1)
    service = rows[0, 3]
    traffic = Traffic(requests=60_000, rate=load / service, output_tokens=1)
    run, rows = play(scenario, traffic, 1, gammas=[0])
    waits = (rows[:, 3] - rows[:, 1] - service) / service
    blocks = waits.reshape(20, -1).mean(axis=1)
    expected, error = load / (2 * (1 - load)), blocks.std(ddof=1) / np.sqrt(20)
    assert abs(waits.mean() - expected) < 5 * error < 0.25 * expected
    assert run.busy_share == pytest.approx(load, rel=0.02)
    assert lone.stats.requests == 1


@pytest.mark.parametrize("gammas", [(0,), (0, 2, 4)])
def test_littles_law_holds(gammas: tuple[int, ...]) -> None:
    """Sequences in the system on average, from the loop's own time-weighted batch, are rate x stay.

    Outputs are long and prompts short, so that nearly all of a stay is spent in the batch.
    """
    traffic = Traffic(requests=3000, rate=4.0, prompt_tokens=16, output_tokens=300, output_cv=0.3)
    run, rows = play(a_scenario(**SELF), traffic, 256, gammas=gammas)
    stats = run.stats
    in_batch = stats.batch_s / stats.makespan_s
    stay = float(np.mean(rows[:, 3] - rows[:, 2]))
    assert in_batch == pytest.approx(3000 / stats.makespan_s * stay, rel=1e-3)
    events = np.concatenate([rows[:, 1], rows[:, 3]])
    steps = np.concatenate([np.ones(3000), -np.ones(3000)])[np.argsort(events, kind="stable")]
    inside = np.cumsum(steps)
    spans = np.diff(np.append(np.sort(events), stats.makespan_s))
    mean_inside = float(np.sum(inside * spans)) / stats.makespan_s
    assert mean_inside == pytest.approx(3000 / stats.makespan_s * stats.latency.mean_s, rel=1e-9)


def test_a_full_machine_has_the_throughput_of_the_closed_form() -> None:
    """At once, equal and tiny prompts, long outputs: the batch is full until near the end."""
    scenario = a_scenario(**SELF)
    traffic = Traffic(requests=2000, arrivals="at-once", prompt_tokens=8000, output_tokens=100)
    run, _ = play(scenario, traffic, 32)
    point = pm.estimate(scenario, batch=32, prompt_tokens=8050)
    rounds = 99 / float(point.tokens_per_round)
    per_request = rounds * float(point.round_s) / 32 + float(point.prefill_s)
    # A request needs 0.4 rounds more than the mean: its last round is cut short.
    assert run.stats.makespan_s / 2000 == pytest.approx(per_request, rel=0.03)


# ---- the pooled batch against every round drawn -------------------------------------------------


TRAFFICS = {
    "steady": Traffic(
        requests=3000, rate=11.0, prompt_tokens=800, output_tokens=150, prompt_cv=0.5, output_cv=0.7
    ),
    "bursty": Traffic(
        requests=3000, rate=6.0, arrivals="bursty", prompt_tokens=1500, output_tokens=120,
        prompt_cv=0.8, output_cv=0.7,
    ),
}  # fmt: skip
PROCESSES = {
    "iid": AcceptanceProcess(per_position=(0.8,)),
    "spread": AcceptanceProcess(per_position=(0.7,), spread=0.15),
    "recorded": AcceptanceProcess(recorded=(4, 4, 3, 4, 0, 1, 0, 0, 2, 4)),
}


@pytest.mark.parametrize(
    ("traffic", "process", "gammas"),
    [
        ("steady", "iid", (0, 1, 2, 3, 4)),
        ("bursty", "iid", (3,)),
        ("steady", "spread", (3,)),
        ("bursty", "spread", (0, 1, 2, 3, 4)),
        ("steady", "recorded", (0, 1, 2, 3, 4)),
        ("bursty", "recorded", (3,)),
    ],
)
def test_pooled_rounds_agree_with_every_round_drawn(
    traffic: str, process: str, gammas: tuple[int, ...]
) -> None:
    """Means within 3 % and tails within 6 %, Monte-Carlo error of the two runs included."""
    scenario, options = a_scenario(**SELF), {"gammas": gammas, "process": PROCESSES[process]}
    pooled, _ = play(scenario, TRAFFICS[traffic], 64, **options)
    exact, _ = play(scenario, TRAFFICS[traffic], 64, **options, exact=True)
    for name in ("tpot", "latency"):
        a, b = getattr(pooled.stats, name), getattr(exact.stats, name)
        assert a.mean_s == pytest.approx(b.mean_s, rel=0.03), name
        assert a.quantile_s(0.5) == pytest.approx(b.quantile_s(0.5), rel=0.04), name
        assert a.quantile_s(0.99) == pytest.approx(b.quantile_s(0.99), rel=0.06), name
    assert pooled.stats.rounds == pytest.approx(exact.stats.rounds, rel=0.02)
    assert pooled.stats.kv_s == pytest.approx(exact.stats.kv_s, rel=0.03)


def test_at_gamma_zero_pooled_equals_exact() -> None:
    """Nothing is random then: each request's times agree but for arrivals within a round."""
    traffic = Traffic(requests=400, arrivals="at-once", prompt_cv=1.0, output_cv=1.0)
    _, pooled = play(a_scenario(), traffic, gammas=[0])
    _, exact = play(a_scenario(), traffic, gammas=[0], exact=True)
    assert np.allclose(pooled, exact, rtol=1e-3)
