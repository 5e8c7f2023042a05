"""The curves of experts and of latent attention: identities, limits and invariants."""

import numpy as np
import pytest

from perfmodel import ConfigError, catalog, parse_scenario
from perfmodel.catalog.kernels import efficiency
from perfmodel.kernels import ExpertsCurve, LatentCurve, LogTable
from perfmodel.specs.dtypes import DTYPES
from perfmodel.specs.layers import Experts
from perfmodel.speculation.uncertainty.step_error import ratio_error

H100 = catalog.gpu("h100-sxm")
PEAKS = {"peak_flops": H100.peak_flops, "hbm_bandwidth": H100.hbm_bandwidth}


def experts(**changes: float) -> ExpertsCurve:
    values = {
        "peak_ratio": 1.0,
        "kernel_latency_s": 1e-5,
        "memory_efficiency": 0.8,
        "compute_efficiency": 0.5,
        "activation_efficiency": 0.5,
        "overlap_exponent": 2.0,
    } | changes
    flat = LogTable((np.array([1.0, 2.0]),) * 3, np.zeros((2, 2, 2)))
    return ExpertsCurve(dtype="bf16", source="test", correction=flat, **values)


def test_a_table_returns_its_values_at_the_knots_and_the_mean_between_them() -> None:
    knots = (np.array([1.0, 4.0]), np.array([10.0, 1000.0]))
    table = LogTable(knots, np.array([[0.0, 1.0], [2.0, 5.0]]))
    corners = np.log(table.factor(np.array([1.0, 1.0, 4.0, 4.0]), np.array([10, 1000, 10, 1000])))
    np.testing.assert_allclose(corners, [0, 1, 2, 5], atol=1e-12)
    assert np.log(table.factor(np.array(2.0), np.array(100.0))) == pytest.approx(2.0)
    # Constant outside the knots.
    assert table.factor(np.array(0.1), np.array(1.0)) == pytest.approx(1.0)
    assert np.log(table.factor(np.array(99.0), np.array(1e6))) == pytest.approx(5.0)
    with pytest.raises(ConfigError, match="shape"):
        LogTable(knots, np.zeros((2, 3)))


def test_few_tokens_read_the_experts_and_many_compute() -> None:
    curve, size = experts(kernel_latency_s=1e-9, activation_efficiency=1e6), 3 * 4096 * 1024
    at = {"hidden": 4096, "inter": 1024, "top_k": 8, "weight_bytes_per_element": 2.0}
    few = curve.seconds(tokens=1, touched=8, **at, **PEAKS)
    assert few == pytest.approx(8 * size * 2.0 / (0.8 * H100.hbm_bandwidth), rel=0.01)
    many = curve.seconds(tokens=1e6, touched=64, **at, **PEAKS)
    assert many == pytest.approx(2 * 8e6 * size / (0.5 * H100.peak_flops), rel=0.01)


def test_a_token_cannot_touch_more_experts_than_it_has_rows() -> None:
    at = {"hidden": 64, "inter": 64, "top_k": 2, "weight_bytes_per_element": 2.0, **PEAKS}
    assert experts().seconds(tokens=1, touched=50, **at) == experts().seconds(
        tokens=1, touched=2, **at
    )


def test_few_tokens_are_not_sorted_unless_experts_are_on_other_ranks() -> None:
    curve = experts(sort_latency_s=1e-5)
    at = {"hidden": 64, "inter": 64, "top_k": 8, "weight_bytes_per_element": 2.0, "touched": 8}
    never, always = experts().seconds, curve.sorting_always.seconds
    for tokens, ranks, sorts in ((4, 1, False), (5, 1, True), (1, 4, True)):
        call = {"tokens": tokens, **at, **PEAKS}
        seconds = curve.seconds(**call, count=128, ranks=ranks)  # 4 tokens x 8 x 4 = 128
        assert seconds == pytest.approx((always if sorts else never)(**call)), tokens


def test_rows_of_other_ranks_move_their_bytes() -> None:
    at = {"hidden": 64, "inter": 64, "top_k": 2, "weight_bytes_per_element": 2.0, "touched": 8}
    call = {"tokens": 1000, **at, **PEAKS}
    curve = experts(remote_efficiency=0.5)
    more = curve.seconds(**call, ranks=4) - curve.seconds(**call)
    rows = 1000 * 2 * (4 - 1)
    assert more == pytest.approx(rows * 64 * 2.0 / (0.5 * H100.hbm_bandwidth))


def test_experts_on_other_ranks_add_a_latency() -> None:
    at = {"hidden": 64, "inter": 64, "top_k": 2, "weight_bytes_per_element": 2.0, "touched": 8}
    curve = experts(remote_latency_s=2e-5)
    for tokens in (1, 1000):
        call = {"tokens": tokens, **at, **PEAKS}
        assert curve.seconds(**call) == experts().seconds(**call)
        for ranks in (2, 64):
            added = curve.seconds(**call, ranks=ranks) - curve.seconds(**call)
            assert added == pytest.approx(2e-5)


@pytest.mark.parametrize(
    ("gpu", "all_us", "one_us"), [("h100-sxm", 62.9, 68.3), ("h200", 60.9, 68.3)]
)
def test_mxfp4_experts_of_one_token_take_as_long_as_in_their_table(
    gpu: str, all_us: float, one_us: float
) -> None:
    """gpt-oss-120b in vLLM 0.24's table, on one rank and on 128; one latency misses by 30 %."""
    sheet, curve = catalog.gpu(gpu), efficiency(gpu).experts["mxfp4"]
    for ranks, touched, measured_us in ((1, 4, all_us), (128, 1, one_us)):
        seconds = curve.seconds(
            tokens=1,
            touched=touched,
            hidden=2880,
            inter=2880,
            top_k=4 / ranks,
            ranks=ranks,
            count=128,
            peak_flops=sheet.peak_flops,
            hbm_bandwidth=sheet.hbm_bandwidth,
            weight_bytes_per_element=DTYPES["mxfp4"].bytes,
        )
        assert 1e6 * seconds == pytest.approx(measured_us, rel=0.12)


@pytest.mark.parametrize("gpu", ["a100-sxm-80gb", "h100-sxm", "h200", "l40s", "b200"])
def test_measured_experts_take_longer_with_more_of_them(gpu: str) -> None:
    sheet = catalog.gpu(gpu)
    for dtype, curve in efficiency(gpu).experts.items():
        tokens = np.array([1.0, 4.0, 16.0, 64.0])
        seconds = curve.seconds(
            tokens=tokens,
            touched=np.minimum(128.0, 8.0 * tokens),
            hidden=2048,
            inter=768,
            top_k=8,
            peak_flops=sheet.peak_flops,
            hbm_bandwidth=sheet.hbm_bandwidth,
            weight_bytes_per_element=DTYPES[dtype].bytes,
        )
        assert np.all(np.diff(seconds) >= 0), dtype
        assert seconds[1] > 1.2 * seconds[0], dtype
        # At most the bandwidth of the datasheet.
        weights = 3 * 128 * 2048 * 768 * DTYPES[dtype].bytes
        assert seconds[-1] > weights / sheet.hbm_bandwidth, dtype


@pytest.mark.parametrize("gpu", ["a100-sxm-80gb", "h100-sxm", "h200", "l40s", "b200"])
@pytest.mark.parametrize(
    ("hidden", "width", "experts"),
    [(2048, 176, Experts(layers=1, count=60, top_k=4, width=1408)),
     (2880, 720, Experts(layers=1, count=128, top_k=4, width=2880)),
     (4096, 14_336, Experts(layers=1, count=8, top_k=2, width=14_336))],
)  # fmt: skip
def test_no_number_of_tokens_takes_less_time_than_one(
    gpu: str, hidden: int, width: int, experts: Experts
) -> None:
    sheet, tokens = catalog.gpu(gpu), np.arange(1.0, 200.0)
    for dtype, curve in efficiency(gpu).experts.items():
        seconds = curve.seconds(
            tokens=tokens,
            touched=experts.read(tokens),
            hidden=hidden,
            inter=width,
            top_k=experts.top_k,
            peak_flops=sheet.peak_flops,
            hbm_bandwidth=sheet.hbm_bandwidth,
            weight_bytes_per_element=DTYPES[dtype].bytes,
        )
        assert np.all(seconds >= seconds[0] * (1 - 1e-12)), dtype


@pytest.mark.parametrize("gpu", ["a100-sxm-80gb", "b200"])
def test_corrections_are_constant_outside_the_measured_sizes(gpu: str) -> None:
    """Experts in mxfp4 were measured up to gpt-oss's; Mixtral's are seven times as large."""
    sheet = catalog.gpu(gpu)
    for dtype, curve in efficiency(gpu).experts.items():
        most = curve.measured[2][1]
        at = {"tokens": 8.0, "touched": 8.0, "top_k": 2.0}
        assert bool(curve.in_range(hidden=1, inter=most, **at)), dtype
        assert not bool(curve.in_range(hidden=1, inter=most * 1.01, **at)), dtype
        factors = []
        for inter in (most, most * 4):
            priced = curve.seconds(
                hidden=1,
                inter=inter,
                peak_flops=sheet.peak_flops,
                hbm_bandwidth=sheet.hbm_bandwidth,
                weight_bytes_per_element=DTYPES[dtype].bytes,
                **at,
            )
            base = curve.base_seconds(
                np.array(16.0),
                np.array(8.0),
                1,
                inter,
                peak_flops=sheet.peak_flops,
                hbm_bandwidth=sheet.hbm_bandwidth,
                weight_bytes_per_element=DTYPES[dtype].bytes,
            )
            factors.append(float(priced / base))
        assert factors[1] <= factors[0] * 1.05, (dtype, factors)


def latent(**changes: float) -> LatentCurve:
    values = {
        "kv_bytes_per_element": 2.0,
        "kernel_latency_s": 1e-9,
        "memory_efficiency": 0.8,
        "compute_efficiency": 0.5,
        "prefill_latency_s": 1e-9,
        "prefill_efficiency": 0.5,
    } | changes
    three = LogTable((np.array([1.0, 2.0]),) * 3, np.zeros((2, 2, 2)))
    two = LogTable((np.array([1.0, 2.0]),) * 2, np.zeros((2, 2)))
    return LatentCurve(
        kv_dtype="bf16", source="test", correction=three, prefill_correction=two, **values
    )


def test_latent_attention_reads_its_cache_once_for_all_heads_and_query_tokens() -> None:
    curve = latent(compute_efficiency=1e6)
    one = curve.seconds(batch=64, kv_tokens=8192, heads=1, **PEAKS)
    assert one == pytest.approx(64 * 8192 * 576 * 2.0 / (0.8 * H100.hbm_bandwidth), rel=1e-3)
    assert curve.seconds(batch=64, kv_tokens=8192, heads=128, query_tokens=4, **PEAKS) == (
        pytest.approx(float(one), rel=1e-6)
    )


def test_query_tokens_count_like_heads() -> None:
    at = {"batch": 16, "kv_tokens": np.array([512.0, 8192.0]), **PEAKS}
    verified = latent().seconds(heads=16, query_tokens=4, **at)
    np.testing.assert_array_equal(verified, latent().seconds(heads=64, query_tokens=1, **at))


@pytest.mark.parametrize("gpu", ["a100-sxm-80gb", "h100-sxm", "h200", "l40s", "b200"])
def test_more_query_tokens_never_take_less_time(gpu: str) -> None:
    rng, sheet = np.random.default_rng(0), catalog.gpu(gpu)
    peaks = {"peak_flops": sheet.peak_flops, "hbm_bandwidth": sheet.hbm_bandwidth}
    curves = efficiency(gpu).latent
    assert curves
    for curve in curves.values():
        for _ in range(100):
            at = {"batch": 2 ** rng.uniform(0, 10), "kv_tokens": 2 ** rng.uniform(6, 17.5)}
            heads = int(2 ** rng.integers(0, 8))
            times = curve.seconds(**at, query_tokens=np.arange(1, 17), heads=heads, **peaks)
            assert np.all(np.diff(times) >= 0)


def test_a_kernel_may_pad_its_rows_to_a_number_that_is_faster() -> None:
    """On a B200, TensorRT-LLM takes up to 1.4 times as long for 32 heads as for 64."""
    at = {"batch": 64, "kv_tokens": np.array([8192.0, 32_768.0]), "heads": 16}
    for gpu, least, most in (("b200", 1.25, 1.5), ("h200", 1.0, 1.02), ("h100-sxm", 1.0, 1.02)):
        sheet = catalog.gpu(gpu)
        peaks = {"peak_flops": sheet.peak_flops, "hbm_bandwidth": sheet.hbm_bandwidth}
        curve = efficiency(gpu).latent["bf16"]
        ratio = curve.padded_ratio(query_tokens=2, **at, **peaks)
        assert np.all((ratio >= least) & (ratio <= most)), gpu
        padded = curve.seconds(query_tokens=2, **at, **peaks) / ratio
        assert np.all(padded >= curve.seconds(**at, **peaks) * (1 - 1e-12))
        assert np.all(curve.padded_ratio(query_tokens=1, **at, **peaks) == 1.0)


def test_the_interval_includes_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = {"target": "deepseek-v3", "gpu": "b200", "tp": 8, "batch": 32, "prompt_tokens": 32_000,
            "draft": "mtp", "gamma": 2}  # fmt: skip
    scenario = parse_scenario(plan).scenario()
    wide = float(ratio_error(scenario))
    assert any("padded" in note for note in scenario.notes)
    monkeypatch.setattr(LatentCurve, "padded_ratio", lambda self, **_: np.ones(()))
    assert wide > 1.01 * float(ratio_error(scenario))


@pytest.mark.parametrize("gpu", ["a100-sxm-80gb", "h100-sxm", "h200", "l40s", "b200"])
def test_latent_attention_has_no_cell_that_is_much_slower_than_a_larger_one(gpu: str) -> None:
    """B200's kernels for 32 heads take 1.6 times as long as those for 64, and no more than that."""
    peaks = {name: getattr(catalog.gpu(gpu), name) for name in PEAKS}
    for curve in efficiency(gpu).latent.values():
        heads, batch, tokens = curve.correction.knots
        at = {"batch": batch[:, None], "kv_tokens": tokens, **peaks}
        times = np.array([curve.seconds(heads=int(h), **at) for h in heads])
        least = np.flip(times)
        for axis in range(3):
            least = np.minimum.accumulate(least, axis)
        assert (times < 1.75 * np.flip(least)).all()


def test_latent_prefill_does_the_flops_of_causal_attention() -> None:
    seconds = latent().prefill_seconds(batch=1, new_tokens=8192, heads=128, **PEAKS)
    flops = 128 * 8192**2 * (192 + 128)  # two products, of which half is masked
    assert seconds == pytest.approx(flops / (0.5 * H100.peak_flops), rel=1e-3)
    # A chunk costs what it adds to its prefix.
    whole = latent().prefill_seconds(batch=1, new_tokens=4096, cached_tokens=4096, heads=8, **PEAKS)
    both = latent().prefill_seconds(batch=1, new_tokens=8192, heads=8, **PEAKS)
    first = latent().prefill_seconds(batch=1, new_tokens=4096, heads=8, **PEAKS)
    assert whole == pytest.approx(float(both - first), rel=1e-3)


@pytest.mark.parametrize(
    ("gpu", "splits"),
    [("a100-sxm-80gb", False), ("l40s", False), ("h100-sxm", True), ("h200", True), ("b200", True)],
)
def test_times_of_a_kernel_that_does_not_split_the_cache_are_outside_the_range(
    gpu: str, splits: bool
) -> None:
    curve = efficiency(gpu).latent["bf16"]
    at = {"batch": np.array([1.0, 1024.0]), "kv_tokens": 32_000, "heads": 16}
    ratio = curve.unsplit_ratio(**at)
    assert (ratio == 1.0).all() if splits else ratio[0] > 10.0
    assert ratio[1] == 1.0
    assert curve.in_range(**at).tolist() == [splits, True]
