"""The last wave of blocks: no effect at powers of two, and the measured one in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import calibration
from perfmodel.kernels import tail_ratio

RECORDS = Path(calibration.__file__).parent / "measured" / "engine-vllm-0.26-h200.jsonl"


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
