"""A saturated service: its limits, its identities, and what prompts cost."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import a_scenario, scenarios, with_acceptance

from perfmodel import Scenario, estimate
from perfmodel.specs import Prefill
from perfmodel.speculation import service, service_gain, speedup_interval, without_speculation
from perfmodel.speculation.service import mean_rounds

SELF: dict[str, Any] = {
    "draft": "self", "draft_policy": "snapkv", "kv_budget": 1024, "gamma": 5,
    "gpu": "a100-sxm-80gb", "tp": 4, "batch": 64, "acceptance": 0.85,
}  # fmt: skip


def disaggregated(scenario: Scenario) -> Scenario:
    return replace(scenario, workload=replace(scenario.workload, prefill=Prefill.DISAGGREGATED))


@settings(max_examples=40, deadline=None)
@given(scenario=scenarios(), output=st.integers(2, 2000))
def test_littles_law_holds_and_shares_are_shares(scenario: Scenario, output: int) -> None:
    work = replace(scenario.workload, output_tokens=output)
    result = service(replace(with_acceptance(scenario, 0.8), workload=work))
    assert 0.0 < float(result.prefill_share) <= 1.0 + 1e-9
    assert 0.0 < float(result.running) <= work.batch * (1 + 1e-9)
    assert float(result.ttft_s) > 0.0
    cycle = float(result.ttft_s + result.tpot_s * (output - 1))
    assert float(result.requests_per_s) * cycle == pytest.approx(work.batch, rel=1e-9)


def test_a_decoding_pool_alone_is_the_round_at_the_mean_context() -> None:
    scenario = disaggregated(a_scenario(**SELF))
    result, work = service(scenario), scenario.workload
    assert float(result.prefill_share) == 0.0 and float(result.running) == work.batch
    at = work.prompt_tokens + 0.5 * (work.output_tokens - 1)
    rounds = float(mean_rounds(result.decode, work.output_tokens - 1))
    expected = rounds * float(estimate(scenario, prompt_tokens=at).round_s)
    assert float(result.decode_s) == pytest.approx(expected, rel=1e-12)


def test_the_readmes_former_gain_is_lost_to_prompts() -> None:
    """32,000 prompt and 256 output tokens: prefill takes most of the machine, at any plan."""
    scenario = a_scenario(**SELF)
    shared, plain = service(scenario), service(without_speculation(scenario))
    gain = float(shared.requests_per_s / plain.requests_per_s)
    assert float(estimate(scenario).speedup) > 1.5
    assert gain < 1.2 and float(shared.prefill_share) > 0.8
    apart = disaggregated(scenario)
    alone = service(apart).requests_per_s / service(without_speculation(apart)).requests_per_s
    assert float(alone) > 1.5


def test_prefix_hits_save_prefill_time_and_nothing_else() -> None:
    scenario = a_scenario(**SELF)
    rates = []
    for rate in (0.0, 0.5, 0.9):
        work = replace(scenario.workload, prefix_hit_rate=rate)
        result = service(replace(scenario, workload=work))
        rates.append((float(result.requests_per_s), float(result.prefill_s)))
        assert float(result.decode.tpot_s) == float(estimate(scenario).tpot_s)
    assert rates[0][0] < rates[1][0] < rates[2][0]
    assert rates[0][1] > rates[1][1] > rates[2][1] > 0.0


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("tokens", [1, 7, 50, 300])
def test_mean_rounds_agree_with_a_simulation(alpha: float, tokens: int) -> None:
    scenario = a_scenario(**SELF | {"acceptance": alpha, "gamma": 4})
    rng = np.random.default_rng(0)
    accepted = np.cumprod(rng.random((5_000, tokens, 4)) < alpha, axis=2).sum(axis=2)
    rounds = 1 + np.sum(np.cumsum(1 + accepted, axis=1) < tokens, axis=1)
    expected = float(mean_rounds(estimate(scenario), tokens))
    error = 4.0 * float(rounds.std()) / np.sqrt(len(rounds))
    assert expected == pytest.approx(float(rounds.mean()), abs=error + 0.5 / tokens + 0.06)


def test_a_grid_equals_single_points() -> None:
    scenario = a_scenario(**SELF)
    gammas, batches = np.array([1.0, 4.0]), np.array([1.0, 16.0, 64.0])[:, None]
    grid = service(scenario, batch=batches, gamma=gammas)
    for row, batch in enumerate(batches[:, 0]):
        for column, gamma in enumerate(gammas):
            one = service(scenario, batch=batch, gamma=gamma)
            for name in ("requests_per_s", "tpot_s", "ttft_s", "prefill_share"):
                value = np.broadcast_to(getattr(grid, name), (3, 2))[row, column]
                assert float(getattr(one, name)) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("gpu, tp", [("h200", 2), ("h200", 8), ("l4", 8)])
def test_the_gain_of_a_decoding_pool_has_the_interval_of_the_speedup(gpu: str, tp: int) -> None:
    """Also where all-reduces were not measured; the contexts differ by half the output."""
    scenario = a_scenario(
        gpu=gpu, tp=tp, draft="self", kv_budget=512, gamma=3, batch=16, prompt_tokens=16_000,
        prefill="disaggregated", output_tokens=32,
    )  # fmt: skip
    decode, gain = speedup_interval(scenario), service_gain(scenario)
    assert decode is not None
    for end in ("low", "high"):
        distance = np.log(getattr(decode, end) / decode.value)
        assert np.log(getattr(gain, end) / gain.value) == pytest.approx(distance, rel=0.1)
