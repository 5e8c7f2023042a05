"""The last wave of blocks: no effect at powers of two, and the measured one in between."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import calibration
from perfmodel import catalog
from perfmodel.catalog.engines import engine_profile
from perfmodel.kernels import AttentionCall, carried_share, saturating_share, tail_ratio

MEASURED = Path(calibration.__file__).parent / "measured"
RECORDS = MEASURED / "engine-vllm-0.26-h200.jsonl"


def ratio(units: float, tokens: float, share: float = 0.43) -> float:
    return float(ratios(np.array(units), tokens, share=share))


def ratios(
    units: Any, tokens: float, *, sm_count: int = 132, share: float = 0.43, measured: bool = True
) -> Any:
    counts = {"sm_count": sm_count, "measured_sm_count": 132}
    return tail_ratio(units, tokens, **counts, saturating_share=share, is_measured=measured)


@given(st.integers(0, 12), st.integers(1, 10**6), st.floats(0.0, 1.0))
def test_batches_that_are_powers_of_two_are_those_of_the_table(
    power: int, tokens: int, share: float
) -> None:
    assert ratio(2.0**power, tokens, share) == pytest.approx(1.0)


@given(st.integers(1, 4000), st.integers(1, 10**6), st.floats(0.05, 1.0))
def test_a_last_wave_costs_at_most_a_full_one(units: int, tokens: int, share: float) -> None:
    """One to two waves, and as much between the batches of the table."""
    assert 0.2 < ratio(units, tokens, share) < 4.0


def test_a_wave_of_few_blocks_is_as_long_as_measured() -> None:
    """Attention of 6 x 28,672 tokens: 144 blocks. 3 x 51,264 tokens: 120 blocks, one wave."""
    times = {
        (line["point"]["batch"], line["point"]["prompt_tokens"]): line["seconds"]
        for line in map(json.loads, RECORDS.read_text(encoding="utf-8").splitlines())
        if line.get("op") == "engine-point"
        and line["point"]["setup"]["method"] == "plain"
        and line["point"]["setup"]["target"] == "llama-3.1-8b"
    }
    rest = 5.0e-3  # of a step with few tokens, nearly all for the weights
    per_token = {
        key: (seconds - rest) / (key[0] * key[1])
        for key, seconds in times.items()
        if key in ((6, 28_672), (3, 51_264))
    }
    measured = per_token[6, 28_672] / per_token[3, 51_264]
    predicted = ratio(48.0, 28_704) / ratio(24.0, 51_296)
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(
    ("head_dim", "rms", "of_other"), [(128, 0.0511, 0.123), (64, 0.0338, 0.163)]
)
def test_narrow_heads_have_the_measured_waves_with_twice_the_share(
    head_dim: int, rms: float, of_other: float
) -> None:
    """docs/results/serving-engines.md: vLLM's kernel alone, 1 to 32 x 8,592 tokens, 8 KV heads."""
    path = MEASURED / "attention-vllm-h200.jsonl"
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines()[1:])
    chosen = {"dim": head_dim, "kv_heads": 8, "tokens": 8592, "query": 1}
    times = {row["batch"]: row["us"] for row in rows if chosen.items() <= row.items()}
    powers = [2**n for n in range(6) if 2**n in times]
    batch = np.arange(1, 33)
    at_powers = [np.log(times[n] / n) for n in powers]
    table = batch * np.exp(np.interp(np.log(batch), np.log(powers), at_powers))
    measured = np.array([times[int(n)] for n in batch])

    def error(share: float) -> float:
        found = np.log(table * ratios(8.0 * batch, 8592, share=share) / measured)
        return float(np.sqrt(np.mean(found**2)))

    profile = engine_profile("vllm-0.26", catalog.gpu("h200")).attention_tail_share
    share = saturating_share(profile, head_dim)
    other = saturating_share(profile, 192 - head_dim)
    assert error(share) == pytest.approx(rms, abs=0.0006)
    assert error(other) == pytest.approx(of_other, abs=0.0006)


@given(st.floats(0.0, 1.0), st.integers(16, 512))
def test_no_more_multiprocessors_than_all_reach_the_bandwidth(wide: float, head_dim: int) -> None:
    share = saturating_share(wide, head_dim)
    assert wide <= share <= min(1.0, 8.0 * wide + 1e-12)
    assert head_dim < 128 or share == wide


GPUS = {name: catalog.gpu(name) for name in ("h200", "h100-sxm", "h100-nvl", "h100-pcie")}


@pytest.mark.parametrize("engine", ["vllm-0.26", "vllm-0.23"])
def test_a_carried_share_follows_the_bandwidth_of_a_multiprocessor(engine: str) -> None:
    share = {name: engine_profile(engine, gpu).attention_tail_share for name, gpu in GPUS.items()}
    per_sm = {name: gpu.hbm_bandwidth / gpu.sm_count for name, gpu in GPUS.items()}
    ratio = {name: share[name] / per_sm[name] for name in GPUS}
    assert ratio == pytest.approx(dict.fromkeys(GPUS, ratio["h200"]), rel=1e-12)
    # 3.35 and 4.8 TB/s, both on 132 multiprocessors
    assert share["h100-sxm"] == pytest.approx(share["h200"] * 3.35 / 4.8, rel=1e-12)
    other = engine_profile(engine, catalog.gpu("b200")).attention_tail_share
    assert other == 0.0  # another architecture runs another kernel


@given(
    st.floats(0.0, 1.0), st.floats(1e11, 1e14), st.integers(8, 1024), st.floats(1.0, 10.0),
    st.sampled_from(["bandwidth", "multiprocessors"]),
)  # fmt: skip
def test_a_carried_share_is_bounded_and_grows_with_the_bandwidth_of_a_multiprocessor(
    share: float, bandwidth: float, sm_count: int, more: float, by: str
) -> None:
    own = GPUS["h200"]
    gpu = replace(own, hbm_bandwidth=bandwidth, sm_count=sm_count)
    if by == "bandwidth":
        faster = replace(gpu, hbm_bandwidth=more * bandwidth)
    else:
        faster = replace(gpu, sm_count=max(1, int(sm_count / more)))
    at, above = carried_share(share, own, gpu), carried_share(share, own, faster)
    assert 0.0 <= at <= above <= 1.0
    assert carried_share(share, gpu, gpu) == share
    assert at > 0.0 or share < 1e-300  # which is rounded to zero


@given(st.floats(0.01, 1.0), st.floats(0.3, 3.0))
def test_carrying_back_gives_the_measured_share_unless_all_are_needed(
    share: float, speed: float
) -> None:
    own = GPUS["h200"]
    gpu = replace(own, hbm_bandwidth=speed * own.hbm_bandwidth)
    there = carried_share(share, own, gpu)
    back = carried_share(there, gpu, own)
    assert back == pytest.approx(share, rel=1e-12) if there < 1.0 else back <= share * (1 + 1e-12)


def _flashinfer_times(name: str) -> dict[tuple[int, ...], float]:
    """Attention of at most 64 query rows per KV head, one block per tile and range of KV. [s]"""
    keys = ("query_heads", "kv_heads", "head_dim", "query_tokens", "batch", "kv_tokens")
    rows = map(json.loads, (MEASURED / name).read_text(encoding="utf-8").splitlines())
    cells = [row for row in rows if row["op"] == "attention"]
    return {tuple(row[key] for key in keys): row["seconds"] for row in cells}


def test_few_blocks_take_as_long_on_an_h100_as_on_an_h200() -> None:
    """A constant share would let them take 1.43 times as long, as full grids do."""
    times, faster = (_flashinfer_times(f"kernels-{gpu}.jsonl") for gpu in ("h100", "h200"))
    few, full = [], []
    for cell in times.keys() & faster.keys():
        heads, kv_heads, dim, queries, batch, tokens = cell
        call = AttentionCall(
            query_tokens=queries, query_heads=heads, kv_heads=kv_heads, head_dim=dim, sm_count=132
        )
        split = call.split_kv(np.array([[float(tokens)]]), float(batch))
        ratio = times[cell] / faster[cell]
        if split.blocks[0] <= 0.297 * 132 and split.range_tokens[0] >= 512:
            few.append(ratio)
        if split.blocks[0] >= 200 and split.range_tokens[0] > 4096 and queries == 1:
            full.append(ratio)
    assert len(few) >= 5 and len(full) >= 50
    assert 0.97 < min(few) <= max(few) < 1.03
    assert np.median(full) == pytest.approx(4.8 / 3.35, abs=0.05)


def test_on_gpus_without_measured_kernels_waves_begin_gradually() -> None:
    units = 8.0 * np.arange(8, 200)

    def growth(sm_count: int, *, measured: bool) -> float:
        log_ratio = np.log(ratios(units, 16_000, sm_count=sm_count, measured=measured))
        return float(np.max(units[1:] / units[:-1] * np.exp(np.diff(log_ratio))))

    assert growth(132, measured=True) > 1.4  # 16 to 17 sequences with 8 KV heads, as measured
    assert growth(132, measured=False) < 1.25
    assert growth(114, measured=False) < 1.25
    # The mean effect is that of exact waves.
    mean = [np.log(ratios(units, 16_000, measured=known)).mean() for known in (True, False)]
    assert mean[0] == pytest.approx(mean[1], abs=0.03)
