"""Curves that are transferred to another GPU follow its datasheet."""

from dataclasses import replace

import numpy as np
import pytest
from strategies import a_scenario

from perfmodel import catalog, estimate
from perfmodel.catalog.kernels import efficiency
from perfmodel.kernels.curves import Efficiency

H200 = catalog.gpu("h200")
CURVES = efficiency("h200", "specroof", "specroof")
CELL = {"batch": 8, "query_heads": 32, "kv_heads": 8, "head_dim": 128}


def attention_s(curves: Efficiency, tokens: float, bandwidth: float) -> float:
    peaks = {"peak_flops": H200.peak_flops, "hbm_bandwidth": bandwidth}
    return float(curves.attention.seconds(kv_tokens=tokens, **CELL, **peaks))


def test_the_same_datasheet_changes_nothing() -> None:
    same = CURVES.transfer_to(H200)
    for tokens in (128, 4096, 131_072):
        assert attention_s(same, tokens, H200.hbm_bandwidth) == pytest.approx(
            attention_s(CURVES, tokens, H200.hbm_bandwidth), rel=1e-12
        )
    peaks = {"peak_flops": H200.peak_flops, "hbm_bandwidth": H200.hbm_bandwidth}
    rows = np.array([1, 64, 1024])
    assert np.array_equal(
        same.gemm.seconds(m=rows, n=6144, k=4096, **peaks),
        CURVES.gemm.seconds(m=rows, n=6144, k=4096, **peaks),
    )


def test_half_the_bandwidth_doubles_memory_bound_time_but_not_latency() -> None:
    slow = replace(H200, hbm_bandwidth=0.5 * H200.hbm_bandwidth)
    curves = CURVES.transfer_to(slow)

    def ratio(tokens: float) -> float:
        after = attention_s(curves, tokens, slow.hbm_bandwidth)
        return after / attention_s(CURVES, tokens, H200.hbm_bandwidth)

    assert 1.8 < ratio(131_072) <= 2.0  # blocks take a share of their own beside the memory
    assert 1.0 <= ratio(128) < 1.25
    weights = {"m": 1, "n": 128_256, "k": 4096, "peak_flops": H200.peak_flops}
    before = float(CURVES.gemm.seconds(**weights, hbm_bandwidth=H200.hbm_bandwidth))
    after = float(curves.gemm.seconds(**weights, hbm_bandwidth=slow.hbm_bandwidth))
    assert after == pytest.approx(2.0 * before, rel=0.03)


def test_few_blocks_do_not_depend_on_the_total_bandwidth() -> None:
    """One sequence is a few blocks, far from what memory could deliver to all."""
    slow = replace(H200, hbm_bandwidth=0.9 * H200.hbm_bandwidth)
    cell = {**CELL, "batch": 1, "kv_tokens": 256, "query_tokens": 1}
    before, after = (
        float(
            curves.attention.seconds(**cell, peak_flops=g.peak_flops, hbm_bandwidth=g.hbm_bandwidth)
        )
        for curves, g in ((CURVES, H200), (CURVES.transfer_to(slow), slow))
    )
    assert after == pytest.approx(before, rel=1e-3)


def test_fewer_multiprocessors_take_longer_if_cores_are_the_limit() -> None:
    small = replace(H200, sm_count=66)
    moved = CURVES.transfer_to(small)
    assert moved.attention.sm_count == 66
    cell = CELL | {"batch": 16, "kv_tokens": 65_536, "query_tokens": 1}
    peaks = {"peak_flops": H200.peak_flops, "hbm_bandwidth": 4.0 * H200.hbm_bandwidth}
    assert moved.attention.seconds(**cell, **peaks) >= CURVES.attention.seconds(**cell, **peaks)


@pytest.mark.parametrize("name", ["h100-pcie", "h100-nvl", "mi300x"])
def test_a_prediction_with_transferred_curves_has_a_note(name: str) -> None:
    scenario = a_scenario(engine="specroof", gpu=name, draft="self", batch=4, gamma=3)
    assert any(f"{name} has no kernel measurements with" in note for note in scenario.notes)
    point = estimate(scenario)
    origins = {part.origin for part in point.verify.parts}
    assert "fitted" not in origins
    faster = estimate(a_scenario(engine="specroof", gpu="h200", draft="self", batch=4, gamma=3))
    if catalog.gpu(name).hbm_bandwidth < H200.hbm_bandwidth:
        assert float(point.target_step.total_s) > float(faster.target_step.total_s)
