"""Attention curves: KV is read once, times are monotone and scale, and tables are reproduced."""

import copy
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import calibration
import perfmodel
from perfmodel import catalog
from perfmodel.catalog.kernels import attention_curve, efficiency
from perfmodel.errors import ConfigError
from perfmodel.kernels import TallBlocks

FOLDER = Path(perfmodel.__file__).parent / "catalog" / "efficiency"
ROWS = Path(calibration.__file__).parent / "measured" / "kernels-h200-rows.jsonl"
PEAKS = {  # dense bf16 FLOP/s, HBM bytes/s
    gpu.name: (gpu.peak_flops, gpu.hbm_bandwidth)
    for gpu in map(catalog.gpu, ("a100-sxm-80gb", "h100-sxm", "h200", "l40s"))
}
HEADS = [(1, 1), (4, 4), (32, 32), (4, 1), (8, 1), (32, 8), (40, 8), (64, 8)]


def table_of(gpu: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / gpu / "attention.toml").read_text())


TABLES = {gpu: table_of(gpu) for gpu in PEAKS}
CURVES = {gpu: attention_curve(table) for gpu, table in TABLES.items()}


def kernel(gpu: str, heads: tuple[int, int] = (32, 8), **changes: Any) -> dict[str, Any]:
    flops, bandwidth = PEAKS[gpu]
    shape = {"query_heads": heads[0], "kv_heads": heads[1], "head_dim": 128}
    return {**shape, "peak_flops": flops, "hbm_bandwidth": bandwidth, **changes}


gpus = st.sampled_from(sorted(PEAKS))
heads = st.sampled_from(HEADS)
batches = st.floats(1, 4096)
lengths = st.floats(1, 500_000)
queries = st.integers(1, 300)
growth = st.floats(1.0, 8.0)


@settings(max_examples=60, deadline=None)
@given(gpus, heads, batches, lengths, queries, growth, st.sampled_from(["b", "kv", "q"]))
def test_time_never_falls_as_the_work_grows(
    gpu: str, hq: tuple[int, int], b: float, kv: float, q: int, factor: float, which: str
) -> None:
    work = {"batch": b, "kv_tokens": kv, "query_tokens": q}
    name = {"b": "batch", "kv": "kv_tokens", "q": "query_tokens"}[which]
    more = {**work, name: work[name] * factor}
    one = CURVES[gpu].seconds(**work, **kernel(gpu, hq))
    assert CURVES[gpu].seconds(**more, **kernel(gpu, hq)) >= one * (1 - 1e-12)


@settings(max_examples=40, deadline=None)
@given(gpus, heads, batches, lengths, queries, growth)
def test_time_never_rises_with_a_peak_or_with_smaller_kv(
    gpu: str, hq: tuple[int, int], b: float, kv: float, q: int, factor: float
) -> None:
    flops, bandwidth = PEAKS[gpu]
    work = {"batch": b, "kv_tokens": kv, "query_tokens": q}
    one = CURVES[gpu].seconds(**work, **kernel(gpu, hq)) * (1 + 1e-12)
    for change in (
        {"peak_flops": flops * factor},
        {"hbm_bandwidth": bandwidth * factor},
        {"kv_bytes_per_element": 2.0 / factor},
    ):
        assert CURVES[gpu].seconds(**work, **kernel(gpu, hq, **change)) <= one


@pytest.mark.parametrize("gpu", PEAKS)
def test_doubling_peaks_and_halving_latencies_halves_the_time(gpu: str) -> None:
    table = copy.deepcopy(TABLES[gpu])
    table["regroup_latency_us"] /= 2
    for part in (*table["decode"], *table["prefill"]):
        for name in part:
            if name.endswith("_us"):
                part[name] /= 2
    flops, bandwidth = PEAKS[gpu]
    twice = kernel(gpu, peak_flops=2 * flops, hbm_bandwidth=2 * bandwidth)
    work = {"batch": np.array([1, 7, 300])[:, None], "kv_tokens": np.array([100, 3e4])}
    half = attention_curve(table)
    np.testing.assert_allclose(
        half.seconds(**work, query_tokens=5, **twice),
        CURVES[gpu].seconds(**work, query_tokens=5, **kernel(gpu)) / 2,
    )
    prompt = {"batch": np.array([1, 8]), "new_tokens": np.array([700, 9000])}
    np.testing.assert_allclose(
        half.prefill_seconds(**prompt, **twice),
        CURVES[gpu].prefill_seconds(**prompt, **kernel(gpu)) / 2,
    )


@pytest.mark.parametrize("gpu", PEAKS)
def test_kv_is_read_once_regardless_of_the_query_tokens(gpu: str) -> None:
    kv = np.array([1e3, 1e4, 1e5, 1e6])
    curve, shape = CURVES[gpu], kernel(gpu)
    decode = curve.seconds(batch=32, kv_tokens=kv, **shape)
    four = curve.seconds(batch=32, kv_tokens=kv, query_tokens=4, **shape)  # 16 rows: same tile
    np.testing.assert_allclose(four, decode, rtol=1e-12)
    eight = curve.seconds(batch=32, kv_tokens=kv, query_tokens=8, **shape)  # 32 rows
    step = TABLES[gpu]["row_tile_factor"][1]
    assert np.all(eight <= decode * step * 1.01)
    assert np.all(eight < 2 * decode)  # eight separate reads would take eight times


def test_many_query_tokens_are_bound_by_compute() -> None:
    shape = kernel("h200")
    q = np.array([1024.0, 2048.0, 4096.0])
    seconds = CURVES["h200"].seconds(batch=8, kv_tokens=32_768, query_tokens=q, **shape)
    flops = 4 * 8 * 32 * 128 * 32_768 * q
    ceiling = TABLES["h200"]["tensor_core_efficiency"] * PEAKS["h200"][0]
    assert np.all(flops / seconds <= ceiling * 1.2)  # residuals of the decode table move it a bit
    assert seconds[2] / seconds[1] == pytest.approx(2.0, rel=0.02)


@settings(max_examples=20, deadline=None)
@given(gpus, heads, st.integers(0, 2**31))
def test_an_array_call_equals_the_loop(gpu: str, hq: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    b, kv = rng.uniform(1, 300, (4, 1, 1)), rng.uniform(1, 1e5, (1, 3, 1))
    q = rng.integers(1, 40, (1, 1, 3))
    curve, shape = CURVES[gpu], kernel(gpu, hq)
    whole = curve.seconds(batch=b, kv_tokens=kv, query_tokens=q, **shape)
    new = curve.prefill_seconds(batch=b, new_tokens=q * 50, cached_tokens=kv, **shape)
    assert whole.shape == new.shape == (4, 3, 3)
    for i, j, k in np.ndindex(4, 3, 3):
        x, y, z = float(b[i, 0, 0]), float(kv[0, j, 0]), float(q[0, 0, k])
        one = curve.seconds(batch=x, kv_tokens=y, query_tokens=z, **shape)
        assert one == pytest.approx(whole[i, j, k], rel=1e-12)
        one = curve.prefill_seconds(batch=x, new_tokens=z * 50, cached_tokens=y, **shape)
        assert one == pytest.approx(new[i, j, k], rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(gpus, heads, batches, lengths, lengths, growth, st.sampled_from(["b", "new", "cached"]))
def test_prefill_never_falls_as_the_prompt_grows(
    gpu: str, hq: tuple[int, int], b: float, new: float, cached: float, factor: float, which: str
) -> None:
    work = {"batch": b, "new_tokens": new, "cached_tokens": cached}
    name = {"b": "batch", "new": "new_tokens", "cached": "cached_tokens"}[which]
    more = {**work, name: work[name] * factor}
    one = CURVES[gpu].prefill_seconds(**work, **kernel(gpu, hq))
    assert CURVES[gpu].prefill_seconds(**more, **kernel(gpu, hq)) >= one * (1 - 1e-12)


@pytest.mark.parametrize(
    ("gpu", "hq", "batch", "kv", "microseconds"),
    [  # aiconfigurator-core 0.12.0, generation_attention, bf16, no window, head dimension 128
        ("a100-sxm-80gb", (4, 4), 32, 8192, 384.3),
        ("a100-sxm-80gb", (4, 4), 64, 8192, 863.3),
        ("a100-sxm-80gb", (4, 4), 128, 8192, 1436.0),
        ("a100-sxm-80gb", (32, 8), 64, 4096, 681.6),
        ("h200", (32, 8), 32, 16384, 494.0),
        ("h200", (32, 8), 128, 4096, 492.6),
        ("h200", (8, 8), 64, 8192, 490.5),
        ("l40s", (32, 8), 16, 16384, 1667.6),
    ],
)
def test_measured_decode_times_are_reproduced_within_the_stated_error(
    gpu: str, hq: tuple[int, int], batch: int, kv: int, microseconds: float
) -> None:
    seconds = CURVES[gpu].seconds(batch=batch, kv_tokens=kv, **kernel(gpu, hq))
    stated = TABLES[gpu]["residuals"]["decode"]["in_sample_p90_percent"] / 100
    assert seconds == pytest.approx(microseconds * 1e-6, rel=stated)
    inside = {"query_heads": hq[0], "kv_heads": hq[1], "head_dim": 128}
    assert CURVES[gpu].in_range(batch=batch, kv_tokens=kv, **inside)


def test_a_second_wave_of_blocks_costs_a_step() -> None:
    """A100, group 1: 216 resident blocks; batch 54 of 4 KV heads fills them, 60 does not."""
    shape = kernel("a100-sxm-80gb", (4, 4))
    batch = np.array([44.0, 54.0, 60.0])
    seconds = CURVES["a100-sxm-80gb"].seconds(batch=batch, kv_tokens=8192, **shape)
    rate = batch / seconds
    assert rate[2] < 0.9 * rate[1]


@pytest.mark.parametrize("gpu", PEAKS)
def test_small_kv_is_never_faster_than_hbm(gpu: str) -> None:
    """The benchmark timed these out of L2, up to 2.8x the bandwidth of an L40S's memory."""
    batch, kv = np.array([1, 8, 32, 128])[:, None], np.array([128, 512, 2048, 8192])
    for hq in HEADS:
        size = batch * kv * hq[1] * 128 * 4
        seconds = CURVES[gpu].seconds(batch=batch, kv_tokens=kv, **kernel(gpu, hq))
        assert np.all(size / seconds < PEAKS[gpu][1])


def test_outside_the_table_the_utilisation_is_constant() -> None:
    shape = kernel("h100-sxm")
    kv = np.array([1e6, 4e6, 8e6])
    seconds = CURVES["h100-sxm"].seconds(batch=4, kv_tokens=kv, **shape)
    assert seconds[2] / seconds[1] == pytest.approx(2.0, rel=0.01)
    inside = {"query_heads": 32, "kv_heads": 8, "head_dim": 128}
    assert not CURVES["h100-sxm"].in_range(batch=4, kv_tokens=kv, **inside).any()
    assert not CURVES["h100-sxm"].in_range(batch=4, kv_tokens=1e4, query_tokens=4, **inside)


def test_a_head_dimension_without_a_table_borrows_the_nearest_rates() -> None:
    shape = kernel("h200", head_dim=256)
    wide = CURVES["h200"].seconds(batch=64, kv_tokens=65_536, **shape)
    narrow = CURVES["h200"].seconds(batch=64, kv_tokens=65_536, **kernel("h200"))
    assert wide == pytest.approx(2 * narrow, rel=0.02)


def broken(change: str) -> dict[str, Any]:
    table = copy.deepcopy(TABLES["l40s"])
    if change == "unknown":
        table["decode"][0]["stream_eficiency"] = 1.0
    elif change == "missing":
        del table["sm_count"]
    elif change == "shape":
        table["decode"][0]["unit_knots"].pop()
    elif change == "order":
        table["prefill"][0]["token_knots"][1] = 0.5
    elif change == "no list":
        table["decode"] = 3
    elif change == "falls":
        table["row_tile_factor"][-1] = 0.9
    return table


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("unknown", "unknown key 'stream_eficiency'"),
        ("missing", "sm_count is missing"),
        ("shape", "its knots"),
        ("order", "must be a list of increasing positive numbers"),
        ("no list", "decode must be a list of tables"),
        ("falls", "row_tile_factor must be non-decreasing"),
    ],
)
def test_an_invalid_table_is_refused_with_the_key(change: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        attention_curve(broken(change))


def test_verification_is_in_range_where_row_factors_or_blocks_were_measured() -> None:
    shape = {"batch": 8, "kv_tokens": 4096, "query_tokens": 4, "query_heads": 32, "kv_heads": 8,
             "head_dim": 128}  # fmt: skip
    known = [("h200", "flashinfer"), ("h200", "specroof")]
    for gpu, kernels in (*known, ("h100-sxm", "flashinfer"), ("h200", "vllm")):
        curve = efficiency(gpu, kernels).attention
        assert bool(curve.in_range(**shape)) is ((gpu, kernels) in known), (gpu, kernels)


@pytest.mark.parametrize("gpu", ["a100-sxm-80gb", "l40s"])
def test_a_library_that_may_split_more_grids_is_at_least_as_fast(gpu: str) -> None:
    units, tokens = np.geomspace(1, 1024, 41)[:, None], np.geomspace(64, 65536, 11)
    work = {"batch": units, "kv_tokens": tokens, **kernel(gpu, (1, 1))}
    flashinfer = efficiency(gpu, "flashinfer").attention.seconds(**work)
    measured = CURVES[gpu].seconds(**work)
    assert np.all(flashinfer <= measured * 1.001)
    slots = CURVES[gpu].sm_count * table_of(gpu)["blocks_per_sm"]
    many = units.ravel() > 1.1 * slots
    np.testing.assert_allclose(flashinfer[many], measured[many], rtol=2e-3)
    assert np.any(flashinfer < 0.9 * measured)


def test_a_split_grid_takes_no_residual_of_unsplit_grids() -> None:
    table = TABLES["a100-sxm-80gb"]
    rule = {"split_min_group": 1, "split_occupancy": 1.0}
    rule |= {f"fitted_{key}": table[key] for key in rule}
    work = {"batch": np.array([16, 32, 48, 53]), "kv_tokens": 16_384}
    shape = kernel("a100-sxm-80gb", (4, 4))
    before = attention_curve({**table, **rule}).seconds(**work, **shape)
    slower = copy.deepcopy(table)
    for decode in slower["decode"]:
        unsplit = np.asarray(decode["residual"], float)
        unsplit[0] += 0.5  # a group of one head, which the measured kernels do not split
        decode["residual"] = unsplit.tolist()
    after = attention_curve({**slower, **rule}).seconds(**work, **shape)
    np.testing.assert_allclose(after, before, rtol=1e-12)


def test_more_than_64_rows_take_the_time_of_measured_blocks() -> None:
    """The file's cells of at least 0.1 ms; none of their times is in the library's curve."""
    curve, (flops, bandwidth) = efficiency("h200", "flashinfer").attention, PEAKS["h200"]
    keys = ("batch", "kv_tokens", "query_tokens", "query_heads", "kv_heads", "head_dim")
    errors: dict[bool, list[float]] = {False: [], True: []}
    for line in map(json.loads, ROWS.read_text(encoding="utf-8").splitlines()[1:]):
        if line["seconds"] < 1e-4 or line["head_dim"] != 128:
            continue
        shape = {key: line[key] for key in keys}
        seconds = float(curve.seconds(**shape, peak_flops=flops, hbm_bandwidth=bandwidth))
        rows = line["query_tokens"] * line["query_heads"] / line["kv_heads"]
        errors[rows > 128].append(seconds / line["seconds"] - 1.0)
    for each in errors.values():  # were +0.21 and +0.26 at the FLOP/s of 32 rows, without waves
        assert len(each) > 200
        assert abs(np.median(each)) < 0.05 and np.median(np.abs(each)) < 0.08


@given(st.integers(1, 4000), st.integers(1, 10**6), st.booleans())
def test_waves_of_tall_blocks_take_at_least_the_time_of_their_work(
    units: int, tokens: int, smoothed: bool
) -> None:
    tall = TallBlocks(
        blocks_per_sm=2, efficiency=0.4, softmax_dims=56, pair_slowdown=0.6, smoothed=smoothed
    )
    shape = {"sm_count": 100, "least_tokens": 128}
    waste = float(tall.waste(np.array(float(units)), np.array(float(tokens)), **shape))
    assert waste > 0.999
    if units % 200 == 0 and not smoothed:
        assert waste == pytest.approx(1.0)
    if units == 201 and not smoothed:
        assert waste == pytest.approx((1.6 + 1.0) / (201 / 200 * 1.6))
    assert tall.rate(128) == pytest.approx(0.4) and tall.rate(64) < 0.4


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["h100-sxm", "h200"]), heads, batches, lengths, st.integers(1, 200))
def test_one_more_query_token_is_never_faster(
    gpu: str, hq: tuple[int, int], b: float, kv: float, q: int
) -> None:
    curve, shape = efficiency(gpu, "flashinfer").attention, kernel(gpu, hq)
    work = {"batch": b, "kv_tokens": kv, **shape}
    fewer, more = (curve.seconds(**work, query_tokens=n) for n in (q, q + 1))
    assert more >= fewer * (1 - 1e-12)
