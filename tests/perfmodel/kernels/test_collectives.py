"""Collectives: nothing for one rank, never cheaper for more bytes, and the published times."""

import copy
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import perfmodel
from perfmodel.catalog.kernels import collective_curve, efficiency
from perfmodel.errors import ConfigError
from perfmodel.kernels.collectives import ring_seconds

FOLDER = Path(perfmodel.__file__).parent / "catalog" / "efficiency"
LINKS = {"a100-sxm-80gb": 300e9, "h100-sxm": 450e9, "h200": 450e9, "l40s": 32e9}
TABLES: dict[str, dict[str, Any]] = {
    gpu: tomllib.loads((FOLDER / gpu / "collectives.toml").read_text()) for gpu in LINKS
}
CURVES = {gpu: collective_curve(table) for gpu, table in TABLES.items()}

gpus = st.sampled_from(sorted(LINKS))
ranks = st.sampled_from([2, 3, 4, 5, 6, 8, 16])
algorithms = st.sampled_from(["best", "nccl", "custom", "custom_eager"])
sizes = st.floats(1, 1e11)


@settings(max_examples=60, deadline=None)
@given(gpus, ranks, algorithms, sizes, st.floats(1, 4), st.floats(1, 4))
def test_time_never_falls_with_bytes_nor_rises_with_the_link(
    gpu: str, n: int, algorithm: str, size: float, more: float, faster: float
) -> None:
    def reduce(message: float, link: float) -> float:
        return float(CURVES[gpu].all_reduce_seconds(
            message_bytes=message, ranks=n, algorithm=algorithm, link_bandwidth=link
        ))  # fmt: skip

    def gather(message: float, link: float) -> float:
        return float(CURVES[gpu].all_gather_seconds(
            message_bytes=message, ranks=n, link_bandwidth=link
        ))  # fmt: skip

    for seconds in (reduce, gather):
        one = seconds(size, LINKS[gpu])
        assert seconds(size * more, LINKS[gpu]) >= one * (1 - 1e-12)
        assert seconds(size, LINKS[gpu] * faster) <= one * (1 + 1e-12)


@pytest.mark.parametrize("gpu", LINKS)
def test_one_rank_costs_nothing(gpu: str) -> None:
    curve, size = CURVES[gpu], np.array([1.0, 1e6])
    assert not curve.all_reduce_seconds(message_bytes=size, ranks=1, link_bandwidth=1e9).any()
    assert not curve.all_gather_seconds(message_bytes=size, ranks=1, link_bandwidth=1e9).any()


@settings(max_examples=20, deadline=None)
@given(gpus, ranks, st.integers(0, 2**31))
def test_best_is_the_faster_of_the_two_and_arrays_equal_the_loop(
    gpu: str, n: int, seed: int
) -> None:
    size = np.exp(np.random.default_rng(seed).uniform(0, 23, (3, 2)))

    def times(message: Any, algorithm: str) -> Any:
        return CURVES[gpu].all_reduce_seconds(
            message_bytes=message, ranks=n, algorithm=algorithm, link_bandwidth=LINKS[gpu]
        )

    best = times(size, "best")
    np.testing.assert_array_equal(best, np.minimum(times(size, "nccl"), times(size, "custom")))
    loop = [times(float(s), "best") for s in size.ravel()]
    np.testing.assert_allclose(best.ravel(), loop, rtol=1e-12)


@pytest.mark.parametrize("gpu", LINKS)
def test_rank_counts_between_the_tables_lie_between_them(gpu: str) -> None:
    size = np.geomspace(1e3, 1e9, 20)
    four, six, eight = (
        CURVES[gpu].all_reduce_seconds(
            message_bytes=size, ranks=n, algorithm="nccl", link_bandwidth=LINKS[gpu]
        )
        for n in (4, 6, 8)
    )
    assert np.all(six >= np.minimum(four, eight)) and np.all(six <= np.maximum(four, eight))


def test_without_tables_the_physical_form_gives_bytes_over_the_link() -> None:
    table = {k: v for k, v in TABLES["h100-sxm"].items() if k != "measured"}
    form = next(f for f in table["alpha_beta"] if f["operation"] == "all_reduce")
    curve = collective_curve(table)
    size = 1e9
    seconds = curve.all_reduce_seconds(
        message_bytes=size, ranks=4, algorithm="nccl", link_bandwidth=100e9
    )
    latency = (form["latency_us"] + 2 * form["latency_per_rank_us"]) * 1e-6
    assert seconds == pytest.approx(latency + size * 1.5 / (100e9 * form["link_efficiency"]))


@pytest.mark.parametrize("gpu", ["a100-sxm-80gb", "h100-sxm", "h200"])
def test_the_physical_form_stays_near_a_ring_on_nvlink(gpu: str) -> None:
    """Two and four ranks reduce over a ring; eight H100s or H200s in the switch, which beats it."""
    bare = collective_curve({k: v for k, v in TABLES[gpu].items() if k != "measured"})

    def over_measured(n: int) -> float:
        call = {"message_bytes": 256e6, "ranks": n, "link_bandwidth": LINKS[gpu]}
        formed = bare.all_reduce_seconds(algorithm="nccl", **call)
        return float(formed / CURVES[gpu].all_reduce_seconds(algorithm="nccl", **call))

    assert over_measured(2) == pytest.approx(1.0, rel=0.15)
    assert over_measured(4) == pytest.approx(1.0, rel=0.15)
    if gpu != "a100-sxm-80gb":
        assert over_measured(8) > 1.2


@pytest.mark.parametrize(
    ("gpu", "size", "microseconds", "tolerance"),
    [  # nccl-tests, 8 GPUs, stas00/ml-engineering @744d01e: an eager run, so large messages only
        ("a100-sxm-80gb", 268_435_456, 2420.6, 0.12),
        ("a100-sxm-80gb", 4_294_967_296, 32_136.0, 0.06),
        ("h200", 67_108_864, 338.9, 0.07),
        ("h200", 1_073_741_824, 4053.4, 0.03),
        ("h200", 17_179_869_184, 62_340.8, 0.06),
    ],
)
def test_nccl_times_agree_with_independent_runs(
    gpu: str, size: int, microseconds: float, tolerance: float
) -> None:
    seconds = CURVES[gpu].all_reduce_seconds(
        message_bytes=size, ranks=8, algorithm="nccl", link_bandwidth=LINKS[gpu]
    )
    assert seconds == pytest.approx(microseconds * 1e-6, rel=tolerance)


def test_the_custom_kernel_wins_small_messages_on_nvlink_but_not_on_pcie() -> None:
    def ratio(gpu: str) -> float:
        call = {"message_bytes": 64e3, "ranks": 8, "link_bandwidth": LINKS[gpu]}
        custom = CURVES[gpu].all_reduce_seconds(algorithm="custom", **call)
        return float(custom / CURVES[gpu].all_reduce_seconds(algorithm="nccl", **call))

    assert ratio("h100-sxm") < 0.5 and ratio("a100-sxm-80gb") < 0.5
    assert ratio("l40s") > 0.4


def broken(change: str) -> dict[str, Any]:
    table = copy.deepcopy(TABLES["h200"])
    if change == "unknown":
        table["latency_us"] = 3
    elif change == "falls":
        table["measured"][0]["time_us"][0] = 1e9
    elif change == "length":
        table["measured"][0]["time_us"].pop()
    return table


@pytest.mark.parametrize(
    ("change", "words"),
    [("unknown", "unknown key 'latency_us'"), ("falls", "must not decrease"), ("length", "times")],
)
def test_a_bad_table_is_refused(change: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        collective_curve(broken(change))


def test_a_bad_call_is_refused() -> None:
    call = {"message_bytes": 1.0, "link_bandwidth": 1e9}
    with pytest.raises(ConfigError, match="positive whole number"):
        CURVES["h200"].all_reduce_seconds(ranks=0, **call)
    with pytest.raises(ConfigError, match=r"tree.* best, ring, nccl"):
        CURVES["h200"].all_reduce_seconds(ranks=2, algorithm="tree", **call)


@pytest.mark.parametrize("name", CURVES)
def test_a_ring_of_two_is_a_pair_and_a_longer_one_takes_longer(name: str) -> None:
    size = np.array([2.0**10, 2.0**18, 2.0**24])
    at = {"message_bytes": size, "link_bandwidth": CURVES[name].link_bandwidth}
    pair = CURVES[name].all_reduce_seconds(ranks=2, algorithm="ring", **at)
    measured = CURVES[name].all_reduce_seconds(ranks=2, algorithm="nccl", **at)
    np.testing.assert_allclose(pair, measured)
    assert np.all(CURVES[name].all_reduce_seconds(ranks=8, algorithm="ring", **at) > pair)


# ---- all-reduce inside norm kernels, and rings ----------------------------------------

FUSED = efficiency("h200", "specroof", "specroof").collectives


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([2, 3, 4, 8]), st.floats(1, 1e9), st.floats(1, 4), st.floats(1, 4))
def test_an_exchange_takes_longer_for_more_bytes_and_less_on_faster_links(
    n: int, size: float, more: float, faster: float
) -> None:
    def fused(message: float, link: float) -> float:
        return float(FUSED.all_reduce_seconds(
            message_bytes=message, ranks=n, algorithm="exchange", link_bandwidth=link, row_bytes=8e3
        ))  # fmt: skip

    assert fused(size * more, 450e9) >= fused(size, 450e9) * (1 - 1e-12)
    assert fused(size, 450e9 * faster) <= fused(size, 450e9) * (1 + 1e-12)


def test_large_messages_use_another_algorithm() -> None:
    assert FUSED.exchange is not None
    assert FUSED.exchange.largest_bytes(2) == 9 * FUSED.exchange.largest_bytes(4) == 8 * 2**20
    size = np.array([2.0**20, 2.0**25])
    for n in (2, 4):
        call = {"message_bytes": size, "ranks": n, "link_bandwidth": 450e9}
        best = FUSED.all_reduce_seconds(algorithm="best", **call)
        fused = FUSED.all_reduce_seconds(algorithm="exchange", row_bytes=8192.0, **call)
        assert fused[1] == best[1]
        assert (fused[0] < 0.5 * best[0]) == (n == 2)


def test_without_an_exchange_the_best_algorithm_is_used() -> None:
    call = {"message_bytes": 1e5, "ranks": 4, "link_bandwidth": LINKS["a100-sxm-80gb"]}
    curve = CURVES["a100-sxm-80gb"]
    fused = curve.all_reduce_seconds(algorithm="exchange", **call)
    assert fused == curve.all_reduce_seconds(algorithm="best", **call)


def test_an_exchange_needs_its_kind_of_link_and_engine() -> None:
    assert FUSED.exchange_over("nvlink", "exchange") is FUSED.exchange
    assert FUSED.exchange_over("pcie", "exchange") is None
    assert FUSED.exchange_over("nvlink", "nccl") is None


def test_a_gpu_of_the_same_architecture_uses_an_extrapolated_exchange() -> None:
    own = efficiency("h100-sxm", "specroof", "specroof").collectives.exchange
    assert own is not None and FUSED.exchange is not None
    assert own.latency_s == FUSED.exchange.latency_s
    assert own.error_at(2) > 0.0 == FUSED.exchange.error_at(2)
    assert efficiency("a100-sxm-80gb", "specroof", "specroof").collectives.exchange is None


def test_the_time_of_a_ring() -> None:
    """Eight cards: 14 hops, and 14/8 of the message at the rate of one card."""
    seconds = ring_seconds(np.array([0.0, 8e6]), 8, hop_s=5e-6, rate=10e9)
    np.testing.assert_allclose(seconds, [70e-6, 70e-6 + 1.4e-3])
    assert ring_seconds(1e6, 1, hop_s=5e-6, rate=10e9) == 0.0
