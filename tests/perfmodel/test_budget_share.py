"""A KV budget as a share of the context equals the fixed budget of as many tokens there."""

from typing import Any

import numpy as np
import pytest

from perfmodel import ConfigError, estimate, find_plan, parse_scenario, prediction_dict, sweep
from perfmodel.passes.memory import largest_batch
from perfmodel.serving.round_times import RoundTimes, estimate_rounds
from perfmodel.specs.draft import DraftPlan

BASE = {"draft": "self", "gamma": 3, "acceptance": 0.8, "batch": 8, "tp": 4}


def numbers(values: dict[str, Any]) -> dict[str, Any]:
    result = prediction_dict(estimate(parse_scenario(values).scenario()))
    del result["scenario"]["kv_budget"]
    return result


@pytest.mark.parametrize("policy", ["streamingllm", "snapkv"])
@pytest.mark.parametrize(("share", "tokens"), [("5%", 1600), ("12.5 %", 4000), ("100%", 32_000)])
def test_a_share_is_the_fixed_budget_at_that_context(policy: str, share: str, tokens: int) -> None:
    values = BASE | {"draft_policy": policy}
    assert numbers(values | {"kv_budget": share}) == numbers(values | {"kv_budget": tokens})


def test_a_share_grows_with_the_context() -> None:
    scenario = parse_scenario(BASE | {"kv_budget": "5%"}).scenario()
    contexts = np.array([1000.0, 20_000.0, 100_000.0])
    point = estimate_rounds(scenario, 8.0, contexts, 3.0)
    for context, draft_s in zip(contexts, point.draft_step_s, strict=True):
        fixed = {"kv_budget": int(0.05 * context), "prompt_tokens": int(context)}
        alone = estimate(parse_scenario(BASE | fixed).scenario())
        assert float(draft_s) == pytest.approx(float(alone.draft_step_s), rel=1e-12)
    assert np.all(np.diff(point.draft_step_s) > 0)


def test_a_simulated_draft_reads_more_as_its_context_grows() -> None:
    share, fixed = (
        RoundTimes(parse_scenario(BASE | {"kv_budget": budget}).scenario(), max_batch=8)
        for budget in ("5%", 1600)
    )
    at = [table.round_seconds(3, 8, 32_000.0) for table in (share, fixed)]
    assert at[0] == pytest.approx(at[1], rel=1e-3)
    assert share.round_seconds(3, 8, 100_000.0) > fixed.round_seconds(3, 8, 100_000.0)
    assert share.round_seconds(3, 8, 4000.0) < fixed.round_seconds(3, 8, 4000.0)


def test_a_sweep_states_the_tokens_of_a_share_at_each_context() -> None:
    base = {key: value for key, value in BASE.items() if key != "batch"}
    axes = {"prompt_tokens": [8000, 32_000], "kv_budget": [512, "5%"], "batch": [1, 8]}
    rows = list(sweep(base, axes).rows())
    tokens = {(row["prompt_tokens"], row["kv_budget"]) for row in rows}
    assert tokens == {(8000, 512), (8000, 400), (32_000, 512), (32_000, 1600)}
    for row in rows:
        point = estimate(
            parse_scenario(
                base | {name: row[name] for name in ("prompt_tokens", "kv_budget", "batch")}
            ).scenario()
        )
        assert row["speedup"] == pytest.approx(float(point.speedup), rel=1e-12)


def test_a_swept_context_evaluates_a_share_of_the_base_at_each_context() -> None:
    rows = list(sweep(BASE | {"kv_budget": "5%"}, {"prompt_tokens": [8000, 32_000]}).rows())
    assert [row["kv_budget"] for row in rows] == [400, 1600]
    point = estimate(parse_scenario(BASE | {"kv_budget": 400, "prompt_tokens": 8000}).scenario())
    assert rows[0]["draft_step_s"] == pytest.approx(float(point.draft_step_s), rel=1e-12)


def test_a_recommendation_compares_shares_with_fixed_budgets() -> None:
    values = {"draft": "self", "draft_policy": "streamingllm", "tp": 4, "acceptance": 0.8}
    values |= {"prefill": "disaggregated"}
    chosen = [
        find_plan(values | {"kv_budget": budget}, acceptance_budget=1600).best
        for budget in ("5%", "1600", ["5%", 512])
    ]
    shared = find_plan(values | {"kv_budget": "5%"}, acceptance_budget="5%").best
    assert (shared.tpot_s, shared.scenario) == (chosen[0].tpot_s, chosen[0].scenario)
    assert chosen[0].scenario.plan.kv_budget_tokens == 1600
    assert chosen[0].tpot_s == chosen[1].tpot_s
    assert chosen[2].tpot_s <= 1.01 * chosen[0].tpot_s  # costs within 1 % are equal


def test_a_share_is_written_as_it_was_stated() -> None:
    scenario = parse_scenario(BASE | {"kv_budget": " 2.50% "}).scenario()
    assert prediction_dict(estimate(scenario))["scenario"]["kv_budget"] == "2.5%"
    assert scenario.plan.budget_text == "2.5%"
    assert largest_batch(scenario) > 8


@pytest.mark.parametrize("budget", ["0%", "-5%", "101%", "x%", "%", "5%%", "nan%", "1e999%"])
def test_a_share_outside_0_to_100_percent_is_refused(budget: str) -> None:
    with pytest.raises(ConfigError, match=r"kv_budget=.*share of the context") as caught:
        parse_scenario(BASE | {"kv_budget": budget})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("share", "tokens"), [(0.0, None), (1.5, None), (0.1, 512)])
def test_a_plan_has_one_valid_budget(share: float, tokens: int | None) -> None:
    with pytest.raises(ConfigError, match="kv_budget"):
        DraftPlan(
            draft="self",
            policy="streamingllm",  # type: ignore[arg-type]
            gamma=1,
            kv_budget_share=share,
            kv_budget_tokens=tokens,
        )
