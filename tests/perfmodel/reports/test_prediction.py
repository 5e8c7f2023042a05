"""Predictions as JSON data: the documented keys, and null for unknown values."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from strategies import DRAFTS, SPECULATING, a_scenario, scenarios

from perfmodel import (
    Scenario,
    estimate,
    prediction_dict,
    recommendation_dict,
    scenario_dict,
    speedup_interval,
)
from perfmodel.planning.recommend import recommend
from perfmodel.planning.search import search

KEYS = {
    "target_step_s", "verify_s", "draft_step_s", "overhead_s", "round_s", "tokens_per_round",
    "tpot_s", "plain_tpot_s", "speedup", "ttft_s", "ttft_interval_90", "memory_bytes_per_gpu",
    "feasible", "reason", "origin",
}  # fmt: skip


def strict_json(value: Any) -> Any:
    """What a reader gets; NaN and infinities are not JSON."""
    return json.loads(json.dumps(value, allow_nan=False))


def predict(**values: Any) -> dict[str, Any]:
    return prediction_dict(estimate(a_scenario(**values)))


@settings(max_examples=30, deadline=None)
@given(scenario=scenarios())
def test_any_prediction_is_json_with_the_documented_keys(scenario: Scenario) -> None:
    result = prediction_dict(estimate(scenario))
    assert set(result) >= KEYS
    assert strict_json(result) == result


@settings(max_examples=30, deadline=None)
@given(scenario=scenarios(SPECULATING))
def test_the_numbers_satisfy_the_identity_of_a_round(scenario: Scenario) -> None:
    result = prediction_dict(estimate(scenario))
    gamma = result["scenario"]["gamma"]
    round_s = gamma * result["draft_step_s"] + result["verify_s"] + result["overhead_s"]
    assert result["round_s"] == pytest.approx(round_s, rel=1e-12)
    if result["speedup"] is None:
        assert result["tokens_per_round"] is result["tpot_s"] is None
        return
    assert result["tpot_s"] == pytest.approx(round_s / result["tokens_per_round"], rel=1e-12)
    assert result["speedup"] == pytest.approx(result["plain_tpot_s"] / result["tpot_s"], rel=1e-12)


@pytest.mark.parametrize("draft", DRAFTS)
def test_the_breakdown_adds_up_to_the_steps(draft: dict[str, Any]) -> None:
    result = predict(**draft, tp=8)
    for name, parts in result["breakdown"].items():
        step = "verify_s" if name == "verify" else f"{name}_s"
        total = sum(part["seconds"] for part in parts.values())
        assert total == pytest.approx(result[step], rel=1e-12)
        for part in parts.values():
            assert set(part) >= {"seconds", "group", "bound", "origin"}
    memory = result["memory"]
    terms = [v for k, v in memory.items() if k not in ("total_bytes", "capacity_bytes")]
    assert sum(terms) == pytest.approx(memory["total_bytes"], rel=1e-12)
    assert memory["total_bytes"] == result["memory_bytes_per_gpu"]


def test_unknown_acceptance_is_null_and_the_break_even_is_stated() -> None:
    result = predict(target="llama-3.1-70b", draft="llama-3.1-8b", tp=8)
    for key in ("speedup", "tpot_s", "tokens_per_round", "speedup_low"):
        assert result[key] is None
    assert 0.0 < result["break_even_acceptance"] < 1.0
    assert result["origin"]["tokens_per_round"] == "unknown"


@pytest.mark.parametrize(
    "values, origin",
    [
        ({}, "none"),
        ({"draft": "self"}, "fitted"),
        ({"draft": "self", "acceptance": 0.8}, "given"),
        ({"draft": "self", "draft_policy": "full"}, "identity"),
        ({"draft": "self", "target": "qwen2.5-7b"}, "borrowed"),
    ],
)
def test_the_origin_of_an_acceptance_is_stated(values: dict[str, Any], origin: str) -> None:
    result = predict(**values)
    assert result["origin"]["tokens_per_round"] == origin
    if origin != "none":
        assert result["acceptance"]["origin"] == origin


def test_the_forms_of_acceptance_are_distinguished() -> None:
    result = predict(draft="self", acceptance=0.8, gamma=3)["acceptance"]
    tokens = 1 + 0.8 + 0.64 + 0.512
    assert result["alpha"] == 0.8
    assert result["tokens_per_round"] == pytest.approx(tokens, rel=1e-12)
    assert result["accepted_drafts"] == pytest.approx(tokens - 1, rel=1e-12)
    assert result["accepted_fraction"] == pytest.approx((tokens - 1) / 3, rel=1e-12)
    assert result["per_position"] == [0.8, 0.8, 0.8]
    assert sum(result["distribution"]) == pytest.approx(1.0, rel=1e-12)


def test_an_infeasible_prediction_says_why_and_still_has_its_times() -> None:
    result = predict(target="llama-3.1-70b", tp=1)
    assert result["feasible"] is False
    assert " per GPU" in result["reason"] and "not even a batch of 1 fits" in result["reason"]
    assert result["target_step_s"] > 0
    fitting = predict(batch=8)
    assert fitting["reason"] == "" and fitting["feasible"] is True


def test_the_interval_is_that_of_the_scenario() -> None:
    scenario = a_scenario(draft="self", tp=8)
    result = prediction_dict(estimate(scenario))
    interval = speedup_interval(scenario)
    assert interval is not None
    assert (result["speedup_low"], result["speedup_high"]) == (interval.low, interval.high)


def test_a_scenario_has_no_null() -> None:
    for draft in DRAFTS:
        values = scenario_dict(a_scenario(**draft))
        assert None not in values.values()


@pytest.mark.parametrize(
    "values",
    [
        {"batch": 64, "tp": 8, "gpu": "a100-sxm-80gb"},
        {"batch": 1, "prompt_tokens": 512},
        {"target": "llama-3.1-70b", "tp": 8, "batch": 8},
    ],
)
def test_any_recommendation_is_json(values: dict[str, Any]) -> None:
    result = recommendation_dict(recommend(search(a_scenario(**values))))
    assert strict_json(result) == result
    assert result["sentence"] and not math.isnan(result["best"]["tpot_s"])
    schedule = result["gamma_schedule"]
    if schedule is not None:
        assert len(schedule["gamma"]) == len(schedule["batch"])
        assert {len(row) for row in schedule["gamma"]} == {len(schedule["prompt_tokens"])}
