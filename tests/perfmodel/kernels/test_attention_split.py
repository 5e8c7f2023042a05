"""The cost of unequal caches and idle rows in attention."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import a_scenario

from perfmodel import estimate
from perfmodel.kernels.attention_split import AttentionCall
from perfmodel.serving.ragged_rounds import graph_rows, ragged_round_seconds

CALLS = st.sampled_from([(32, 8, 128), (32, 32, 128), (32, 4, 64), (16, 2, 64)]).flatmap(
    lambda heads: st.integers(1, 9).map(
        lambda queries: AttentionCall(
            query_tokens=queries, query_heads=heads[0], kv_heads=heads[1], head_dim=heads[2],
            sm_count=132,
        )
    )
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(call=CALLS, tokens=st.integers(200, 60_000), batch=st.integers(1, 64))
def test_equal_caches_have_factor_one(call: AttentionCall, tokens: int, batch: int) -> None:
    assert call.ragged_factor(np.full(batch, float(tokens))) == 1.0


def test_idle_rows_and_unequal_caches_take_longer() -> None:
    call = AttentionCall(query_tokens=4, query_heads=32, kv_heads=8, head_dim=128, sm_count=132)
    equal, ragged = np.full(64, 8000.0), np.geomspace(1000, 32_000, 64)
    assert call.ragged_factor(equal, idle=60) > 1.0
    assert call.ragged_factor(ragged) > 1.05


def test_a_graph_shrinks_once_half_of_its_rows_are_idle() -> None:
    running = np.array([8, 7, 5, 4, 3, 2, 1])
    assert graph_rows(running, 0).tolist() == [8, 8, 8, 4, 4, 2, 1]
    assert graph_rows(running[1:], 16).tolist() == [7, 7, 7, 3, 3, 1]


@pytest.mark.parametrize("gamma", [0, 3])
def test_idle_rows_cost_matrix_products_but_no_host_time(gamma: int) -> None:
    scenario = a_scenario(draft="self", gpu="h200", engine="specroof", kv_budget=512)
    lengths, on = np.full((1, 64), 4000), np.ones((1, 64), bool)
    on[0, 40:] = False
    alone, padded, full = (
        ragged_round_seconds(scenario, gamma, lengths, taking, np.array([rows]))[0][0]
        for taking, rows in ((on, 40), (on, 64), (np.ones_like(on), 64))
    )
    point = estimate(scenario, batch=40, prompt_tokens=4000, gamma=gamma)
    assert alone == pytest.approx(float(point.round_s), rel=1e-12)
    assert alone < padded < full


def test_other_engines_depend_on_the_mean_context_only() -> None:
    scenario = a_scenario(draft="self", gpu="h100-sxm", engine="magicdec", kv_budget=512)
    lengths = np.array([[1000, 3000, 20_000]])
    on = np.ones_like(lengths, bool)
    seconds, _ = ragged_round_seconds(scenario, 3, lengths, on, np.array([3]))
    point = estimate(scenario, batch=3, prompt_tokens=8000, gamma=3)
    assert seconds[0] == float(point.round_s)
