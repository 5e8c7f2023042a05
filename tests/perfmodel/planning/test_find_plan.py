"""Flat values with several TP degrees, drafts and budgets give the corresponding search."""

from __future__ import annotations

from typing import Any

import pytest
from strategies import a_scenario

from perfmodel import ConfigError, find_plan, recommendation_dict
from perfmodel.planning.recommend import recommend
from perfmodel.planning.search import search

SMALL: dict[str, Any] = {"gpu": "a100-sxm-80gb", "batch": 16, "prompt_tokens": 8000}


def test_lists_of_values_give_the_corresponding_search() -> None:
    answer = find_plan(
        {**SMALL, "tp": [8, 2], "draft": ["self:snapkv", "llama-3.2-1b:full"], "kv_budget": [512]},
        objective="latency",
    )
    expected = recommend(
        search(
            a_scenario(**SMALL, tp=8),
            objective="latency",
            choices=[("self", "snapkv"), ("llama-3.2-1b", "full")],
            tps=[2, 8],
            budgets=[512],
        )
    )
    assert recommendation_dict(answer) == recommendation_dict(expected)


@pytest.mark.parametrize(
    "as_list, as_text",
    [
        ({"tp": [2, 4]}, {"tp": "2, 4"}),
        ({"tp": 2}, {"tp": "2"}),
        ({"tp": 4, "draft": ["self", "self:snapkv"]}, {"tp": "4", "draft": "self,self:snapkv"}),
        ({"tp": 4, "kv_budget": range(256, 513, 256)}, {"tp": "4", "kv_budget": "256,512"}),
    ],
)
def test_lists_and_comma_separated_text_are_equivalent(
    as_list: dict[str, Any], as_text: dict[str, Any]
) -> None:
    draft = {"draft": "self"}
    listed = find_plan(SMALL | draft | as_list)
    assert listed.sentence == find_plan(SMALL | draft | as_text).sentence


def test_a_draft_without_a_policy_is_compared_under_every_policy() -> None:
    answer = find_plan(SMALL | {"tp": 2, "draft": "llama-3.2-1b", "kv_budget": 512})
    plans = [answer.best, answer.plain, *answer.runners_up]
    policies = {p.scenario.plan.policy for p in plans if p.scenario.plan.draft == "llama-3.2-1b"}
    unmeasured = {u.candidate.scenario.plan.policy for u in answer.unmeasured}
    assert policies | unmeasured == {"streamingllm", "full"}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"gamma": 3}, "recommend chooses gamma;"),
        ({"tokens_per_round": 2.5, "draft": "self:snapkv"}, "needs the gamma"),
        ({"draft_policy": "snapkv"}, "draft_policy needs a draft"),
        ({"draft": ["none"]}, "draft none"),
        ({"draft": []}, "draft is empty"),
        ({"acceptance": 0.8, "draft": "self"}, "acceptance applies to one draft choice"),
        ({"draft": "self,llama-3.2-1b", "draft_tp": 1}, "draft_tp applies to one draft"),
        ({"draft": "llama-3.2-1b:full", "kv_budget": 64}, "no effect with draft policy full"),
        ({"draft": "self", "kv_budget": [64, 9000]}, "kv_budget=9000 exceeds the context"),
        ({"tp": [1, 3]}, "tp=3 does not fit"),
        ({"draft": "llama-3.2-1b", "draft_tp": 16}, "draft_tp=16 exceeds the 8 GPUs"),
    ],
)
def test_values_that_a_search_cannot_use_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        find_plan(SMALL | values)
    assert "\n" not in str(refused.value)
