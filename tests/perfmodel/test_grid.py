"""A sweep's rows: each block keeps its own plan, masks keep their reason, bad names are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from perfmodel import ConfigError, estimate, scenario_input, sweep

BASE: dict[str, Any] = {"gpu": "a100-sxm-80gb", "tp": 8, "batch": 16}


def test_points_are_rows() -> None:
    found = sweep(BASE, {"draft": ["none", "self:full", "self"], "gamma": [1, 2], "batch": [1, 8]})
    assert found.points == len(list(found.rows())) == 2 + 4 + 4
    assert found.shape == (2, 1, 2, 1)


def test_a_draft_without_budget_has_one_row_however_many_budgets_are_swept() -> None:
    found = sweep(BASE, {"draft": ["none", "self:snapkv"], "kv_budget": [64, 128, 256]})
    assert [row["kv_budget"] for row in found.rows()] == [0, 64, 128, 256]


def test_a_budget_is_checked_at_each_prefix() -> None:
    base = BASE | {"draft": "self", "kv_budget": 512}
    rows = list(sweep(base, {"prefix_tokens": [256, 512, 4096]}).rows())
    assert [row["feasible"] for row in rows] == [False, True, True]
    assert rows[0]["reason"] == "kv_budget exceeds the context"


def test_infeasible_rows_hold_every_column() -> None:
    good, bad = sweep(BASE, {"tp": [8, 3]}).rows()
    assert list(good) == list(bad) and bad["speedup"] is None and "tp=3" in bad["reason"]


def test_a_full_cache_self_draft_accepts_everything() -> None:
    scenario = scenario_input(BASE | {"draft": "self", "draft_policy": "full"}).scenario()
    point = estimate(scenario, gamma=np.arange(1, 5))
    assert np.array_equal(point.tokens_per_round, [2, 3, 4, 5])
    assert np.all(point.speedup < 1)


@pytest.mark.parametrize(
    "axes, name",
    [
        ({"gpu": ["h100-sxm", "h1000"]}, "h1000"),
        ({"engine": ["ideal", "vlm"]}, "vlm"),
        ({"draft": ["self", "lama"]}, "lama"),
        ({"draft": ["self:h2o"]}, "h2o"),
        ({"draft_policy": ["h2o"]}, "h2o"),
        ({"kv_dtype": ["fp3"]}, "fp3"),
        ({"target": ["llama-3.1-8b"]}, "target"),
        ({"gamma": [65]}, "gamma"),
        ({"batch": [0]}, "batch"),
        ({"batch": []}, "batch"),
    ],
)
def test_a_bad_axis_is_refused(axes: dict[str, list[Any]], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        sweep(BASE | {"draft": "self"} if "draft" not in axes else BASE, axes)


def test_tokens_per_round_of_one_gamma_is_not_spread_over_others() -> None:
    with pytest.raises(ConfigError, match="one gamma"):
        sweep(BASE | {"draft": "self", "tokens_per_round": 2.5}, {"gamma": [2, 3]})
